"""Tasks over several nodes, and single-node programs of several ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from balsam_celery import keys, procs
from balsam_celery.wire import KillOrder, Registered
from tests import nasty
from tests.pilot.service import Service
from tests.pilot.test_kills import pids_in
from tests.waiting import wait_until

pytest.importorskip("mpi4py")
#: Not imported: it would make an MPI process of this one.
PROGRAM = [sys.executable, str(Path(nasty.__file__).with_name("mpi_program.py"))]


def ranks(work_dir: str) -> list[dict[str, object]]:
    paths = sorted(Path(work_dir).glob("rank-*.json"))
    return [json.loads(path.read_text()) for path in paths]


def test_gang_task(service: Service) -> None:
    """Two virtual nodes, two ranks on each, through the gang worker."""
    pilot = service.start([2, 2])
    [registered] = service.all(Registered)
    assert [node.name for node in registered.nodes] == ["n0", "n1"]
    shares = (pilot.whole("n0"), pilot.whole("n1"))
    spec = pilot.spec("gang", *PROGRAM, "a b", shares=shares, ranks_per_node=2)
    pilot.run(spec, node=keys.GANG)
    ended = service.ended("gang", timeout=60)
    assert ended.exit_code == 0, ended
    found = ranks(spec.work_dir)
    assert [(one["rank"], one["size"], one["shared"]) for one in found] == [
        (rank, 4, 2) for rank in range(4)
    ]
    assert found[0]["argv"] == ["a b"]
    environment = found[3]["environment"]
    assert isinstance(environment, dict)
    assert environment["BALSAM_NODES"] == "n0,n1"
    assert environment["BALSAM_RANKS"] == "4"
    assert Path(environment["BALSAM_NODEFILE"]).read_text() == "n0\nn1\n"


def test_ranks_on_one_node(service: Service) -> None:
    pilot = service.start([2])
    spec = pilot.spec("ranks", *PROGRAM, shares=(pilot.whole("n0"),), ranks_per_node=2)
    pilot.run(spec)
    ended = service.ended("ranks", timeout=60)
    assert ended.exit_code == 0, ended
    assert [one["size"] for one in ranks(spec.work_dir)] == [2, 2]


@pytest.mark.parametrize("ranks_per_node", [1, 2])
def test_programs_have_no_signal_blocked(service: Service, ranks_per_node: int) -> None:
    """The pilot's main process has."""
    pilot = service.start([2])
    command = ("grep", "SigBlk", "/proc/self/status")
    pilot.run(pilot.spec("task", *command, ranks_per_node=ranks_per_node))
    masks = service.ended("task").stdout_tail.split()[1::2]
    assert [int(mask, 16) for mask in masks] == [0] * ranks_per_node


def test_kill_of_a_gang_task_reaches_every_rank(service: Service, tmp_path: Path) -> None:
    pilot = service.start([1, 1])
    pids = tmp_path / "pids"
    shares = (pilot.whole("n0"), pilot.whole("n1"))
    command = (sys.executable, nasty.__file__, "session", str(pids))
    pilot.run(pilot.spec("gang", *command, shares=shares), node=keys.GANG)
    found = wait_until(pids_in(pids, 4), 30, "both ranks run")
    [active] = pilot.inspect("active", keys.GANG)
    assert active["kwargs"]["nodes"] == ["n0", "n1"]
    assert pilot.inspect("stats", keys.GANG)["pool"]["max-concurrency"] == 2
    pilot.kill(KillOrder("gang", 1, "asked"), node=keys.GANG)
    assert service.ended("gang").outcome == "killed"
    assert [pid for pid in found if procs.identity(pid)] == []


def test_launcher_that_is_not_there(service: Service) -> None:
    pilot = service.start([2])
    spec = pilot.spec("ranks", "/bin/true", ranks_per_node=2, launcher="no-such")
    pilot.run(spec)
    ended = service.ended("ranks")
    assert ended.outcome == "cannot-start"
    assert "'no-such'" in ended.reason
