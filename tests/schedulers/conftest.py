"""A local scheduler in a temporary directory, and a Slurm; nothing is left of either."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from balsam_celery import procs
from balsam_celery.schedulers.base import Job, JobRequest, JobState
from balsam_celery.schedulers.local import LocalOptions, LocalScheduler
from balsam_celery.schedulers.local_state import MARK, Record, State
from balsam_celery.settings import LocalSettings, QueueSettings
from tests.slurm_cluster import own_slurm_cluster, slurm_cluster, slurm_installed
from tests.waiting import wait_until

__all__ = ["own_slurm_cluster", "slurm_cluster", "slurm_installed"]

QUEUES = {
    "small": QueueSettings(max_nodes=2, min_wall_time=1, max_wall_time=600, max_running=2),
    "large": QueueSettings(min_nodes=2, max_nodes=9, min_wall_time=1, max_wall_time=60),
}


class Cluster:
    """The scheduler under test, and how to look behind it."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.root = root
        self.directory = root / "scheduler"
        self.work = root / "work"
        self.work.mkdir(exist_ok=True)
        self.options = LocalOptions(
            site=uuid.uuid4().hex[:8],
            local=LocalSettings(nodes=3, cores_per_node=2),
            queues=QUEUES,
            kill_grace=0.5,
            lock_timeout=20,
        )
        self.options = dataclasses.replace(self.options, **changes)
        self.scheduler = LocalScheduler(self.directory, self.options)

    def request(self, script: str, **changes: Any) -> JobRequest:
        """A request for one node of queue ``small`` for a minute."""
        name = uuid.uuid4().hex
        path = self.work / f"{name}.sh"
        path.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        request = JobRequest(name, "small", 1, 60, path, self.work)
        return dataclasses.replace(request, **changes)

    def submit(self, script: str, **changes: Any) -> str:
        return self.scheduler.submit(self.request(script, **changes))

    def job(self, native_id: str) -> Job:
        return self.scheduler.jobs()[native_id]

    def wait_for(self, native_id: str, state: JobState, timeout: float = 30) -> Job:
        wait_until(
            lambda: self.job(native_id).state is state, timeout, f"{native_id} to be {state}"
        )
        return self.job(native_id)

    def idle(self) -> int:
        """Nodes that a job of queue ``large``, which may be as wide as the machine, could have."""
        return sum(window.nodes for window in self.scheduler.idle() if window.queue == "large")

    def output(self, native_id: str) -> str:
        return (self.work / f"{native_id}.out").read_text(encoding="utf-8")

    def record(self, native_id: str) -> Record:
        """The job as the files have it, without moving the queue."""
        state = State(self.directory)
        with state.locked(20):
            record = state.load(int(native_id.removeprefix("local-")))
        assert record is not None
        return record

    def leader(self, native_id: str) -> procs.Identity:
        """The process of a job's script, once started."""
        leader = wait_until(lambda: self.record(native_id).leader, what="the script to start")
        assert leader is not None
        return leader

    def processes(self, native_id: str) -> list[procs.Identity]:
        """Living processes of a job, its keeper aside, found without its keeper's help."""
        mark = f"{self.options.site}.{native_id.removeprefix('local-')}"
        return procs.find(procs.Quarry(marks=frozenset({f"{MARK}={mark}"}), job=mark))

    def close(self) -> None:
        """End every job."""
        for native_id, job in self.scheduler.jobs().items():
            if job.state is not JobState.ENDED:
                self.scheduler.cancel(native_id)
        wait_until(
            lambda: all(j.state is JobState.ENDED for j in self.scheduler.jobs().values()),
            what="all jobs to end",
        )
        keepers = [self.record(native_id).keeper for native_id in self.scheduler.jobs()]
        wait_until(
            lambda: not any(procs.alive(keeper) for keeper in keepers if keeper),
            what="all keepers to end",
        )


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    made: list[Cluster] = []

    def make(**changes: Any) -> Cluster:
        root = tmp_path / str(len(made))
        root.mkdir()
        made.append(Cluster(root, **changes))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster()
