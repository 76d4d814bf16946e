"""A site and its real local scheduler; the store is that of ``tests.service``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery.schedulers import make_scheduler
from balsam_celery.schedulers.base import JobState, Scheduler
from balsam_celery.service import submit
from balsam_celery.settings import LocalSettings, QueueSettings
from balsam_celery.site import Site, init
from tests.waiting import wait_until


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site of four virtual nodes of two cores, with a queue of at most ten minutes."""
    made = init(tmp_path / "site", local=LocalSettings(nodes=4, cores_per_node=2))
    queue = QueueSettings(max_nodes=4, max_wall_time=600, max_queued=3, max_running=3)
    return dataclasses.replace(
        made, settings=dataclasses.replace(made.settings, queues={"local": queue})
    )


@pytest.fixture
def scheduler(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scheduler]:
    """The local scheduler; in its jobs a program that stays takes the place of the pilot."""
    program = tmp_path / "stays"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o700)
    monkeypatch.setattr(submit, "PYTHON", str(program))
    made = make_scheduler("local", settings=site.settings, local_dir=site.local_dir)
    yield made
    for job in made.jobs():
        made.cancel(job)
    wait_until(lambda: all(j.state is JobState.ENDED for j in made.jobs().values()), 30, "the end")
