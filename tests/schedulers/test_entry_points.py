"""Adapters of other packages are found by their entry point."""

from __future__ import annotations

from pathlib import Path

import pytest

from balsam_celery import schedulers
from balsam_celery.errors import SettingsError
from balsam_celery.settings import SchedulerSettings, Settings

MODULE = """
from balsam_celery.schedulers.base import JobNodes, Scheduler

class Fancy(Scheduler):
    def __init__(self, settings, local_dir):
        self.settings, self.local_dir = settings, local_dir

    def submit(self, request):
        return "1"

    def jobs(self, ids=()):
        return {}

    def cancel(self, native_id):
        pass

    def inside(self, environment):
        return JobNodes((), 0.0)

def make(settings, local_dir):
    return Fancy(settings, local_dir)
"""


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package ``fancy-scheduler`` with three kinds of scheduler."""
    information = tmp_path / "fancy_scheduler-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: fancy-scheduler\nVersion: 1.0\n"
    )
    (information / "entry_points.txt").write_text(
        "[balsam_celery.schedulers]\n"
        "fancy = fancy_scheduler_for_tests:make\n"
        "empty = fancy_scheduler_for_tests:nothing\n"
        "absent = absent_scheduler_for_tests:make\n"
        "local = fancy_scheduler_for_tests:make\n"
    )
    (tmp_path / "fancy_scheduler_for_tests.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_third_partys_adapter(distribution: Path) -> None:
    assert {"fancy", "local", "slurm", "pbs", "psij"} <= set(schedulers.kinds())
    settings = Settings(scheduler=SchedulerSettings(kind="fancy"))
    made = schedulers.make_scheduler("fancy", settings=settings, local_dir=distribution)
    assert (made.settings, made.local_dir) == (settings, distribution)  # type: ignore[attr-defined]
    # what an adapter need not have
    assert made.queues() == made.idle() == ()
    assert made.down_nodes(["n1"]) == frozenset()
    assert not made.capabilities.tells_queues


def test_a_kind_of_our_own_stays_ours(distribution: Path) -> None:
    made = schedulers.make_scheduler("local", settings=Settings(), local_dir=distribution)
    assert type(made).__module__ == "balsam_celery.schedulers.local"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty", "fancy_scheduler_for_tests:nothing cannot be loaded: .*'nothing'"),
        ("absent", "absent_scheduler_for_tests:make cannot be loaded: No module named"),
        ("other", "give one of absent, empty, fancy, local, pbs, psij, slurm"),
    ],
)
def test_one_that_cannot_be_loaded_is_told(distribution: Path, kind: str, said: str) -> None:
    with pytest.raises(SettingsError, match=rf"scheduler\.kind is '{kind}': {said}"):
        schedulers.make_scheduler(kind, settings=Settings(), local_dir=distribution)
