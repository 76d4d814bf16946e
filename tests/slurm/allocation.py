"""A job of the test cluster that only holds its nodes, and workers that use it."""

from __future__ import annotations

import json
import os
import queue
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balsam_celery import wire
from balsam_celery.resources import NodeShare
from balsam_celery.wire import Ended, TaskSpec
from tests.slurm_cluster import SlurmCluster
from tests.waiting import wait_until

WORKER = str(Path(__file__).with_name("rank_worker.py"))
#: What is swept of an attempt is swept on the whole machine, also from other runs of these tests.
TASK = f"t{secrets.token_hex(6)}"
CORES = tuple(sorted(os.sched_getaffinity(0)))
SITE = """\
[site]
name = "ranks"
id = "0123abcd"

[scheduler]
kind = "slurm"

[launcher]
kind = "{kind}"
mpi = "{mpi}"
options = [{options}]
"""


@dataclass(frozen=True)
class Allocation:
    """A running job: its id, the file with its environment, the directory for its tests."""

    cluster: SlurmCluster
    job: str
    variables: Path
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        """That of the batch script, which is a pilot's."""
        text = self.variables.read_bytes().decode().rstrip("\0")
        return dict(entry.split("=", 1) for entry in text.split("\0"))

    def steps(self) -> list[str]:
        """Names of its job steps, the batch script's aside."""
        argv = ("squeue", "--steps", "--noheader", "--format=%j", f"--jobs={self.job}")
        names = self.cluster.run(*argv).stdout.split()
        return [name for name in names if name not in ("batch", "extern")]

    def takes_steps(self) -> bool:
        """A step over all its nodes runs: for a while after its start the controller refuses."""
        argv = ("srun", f"--jobid={self.job}", "--overlap", "--input=none", "/bin/true")
        try:
            return self.cluster.run(*argv, check=False, timeout=15).returncode == 0
        except subprocess.TimeoutExpired:
            return False  # srun itself asks again after up to a minute only


@contextmanager
def allocate(cluster: SlurmCluster, directory: Path, nodes: int) -> Iterator[Allocation]:
    """A job of so many nodes for as long as the block runs."""
    variables = directory / "environment"
    script = directory / "hold.sh"
    script.write_text(
        f'#!/bin/sh\nenv -0 > "{variables}.part"\nmv "{variables}.part" "{variables}"\n'
        "exec sleep 3600\n"
    )
    argv = ["sbatch", "--parsable", f"--nodes={nodes}", "--ntasks-per-node=1", "--exclusive"]
    argv += ["--no-kill", "--no-requeue", "--time=30", f"--output={directory}/out", str(script)]
    job = cluster.run(*argv).stdout.strip()
    try:
        wait_until(variables.exists, 60, "the job runs")
        yield Allocation(cluster, job, variables, directory)
    finally:
        cluster.run("scancel", job)
        wait_until(
            lambda: set(cluster.node_states().values()) == {"idle"}, 60, "the nodes are idle again"
        )


class Worker:
    """A ``rank_worker`` and what it has said; its pilot has the nodes ``others`` too."""

    def __init__(
        self,
        allocation: Allocation,
        directory: Path,
        nodes: tuple[str, ...],
        kind: str = "srun",
        mpi: str = "pmi2",
        others: tuple[str, ...] = (),
    ) -> None:
        # Open MPI's shared memory takes equal host names for one host
        options = '"--mca", "btl", "self,tcp"' if kind == "openmpi" else ""
        self.directory = directory
        self.nodes = nodes
        site = directory / "site"
        site.mkdir(mode=0o700)
        (site / "site.toml").write_text(SITE.format(kind=kind, mpi=mpi, options=options))
        self.said: list[list[Any]] = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.process = subprocess.Popen(
            [sys.executable, WORKER, str(site), str(allocation.variables), *nodes, "/", *others],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=directory,
            env={**os.environ, **allocation.environment},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self._lines.put(line)

    def run(self, name: str, *argv: str, **changes: Any) -> None:
        """Run an attempt, one rank on each node unless told otherwise."""
        values: dict[str, Any] = {
            "id": name,
            "attempt": 1,
            "name": name,
            "application": "app",
            "argv": argv,
            "environment": {},
            "work_dir": str(self.directory / name),
            "shares": tuple(NodeShare(node, CORES) for node in self.nodes),
            "ranks_per_node": 1,
            "threads_per_rank": 1,
            "wall_time": 600,
            "kill_grace": 2,
            **changes,
        }
        self._tell("run", wire.to_plain(TaskSpec(**values)))

    def kill(self, name: str) -> None:
        """Kill it."""
        self._tell("kill", name, 1)

    def ended(self, name: str, timeout: float = 60) -> Ended:
        """Its outcome; waits for it."""
        return wait_until(lambda: self.outcome(name), timeout, f"{name} has ended")  # type: ignore[return-value]

    def outcome(self, name: str) -> Ended | None:
        """Its outcome, if it has ended."""
        for word, *what in self.heard():
            if word == "ended" and what[0]["id"] == name:
                return wire.from_plain(Ended, {k: v for k, v in what[0].items() if k != "type"})
        return None

    def heard(self) -> list[list[Any]]:
        """All that it has said so far."""
        while not self._lines.empty():
            self.said.append(json.loads(self._lines.get()))
        return self.said

    def _tell(self, *what: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def drain(self) -> None:
        """Let it end all that it runs, and then itself."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close(self) -> None:
        """End it, and all that it runs."""
        self.drain()
        self.process.wait(60)
        self._reader.join(60)
