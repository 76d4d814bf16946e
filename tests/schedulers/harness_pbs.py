"""PBS for the conformance test: stand-ins that run jobs and answer as a real OpenPBS did."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from balsam_celery.schedulers.base import JobRequest, Scheduler
from balsam_celery.settings import (
    DatabaseSettings,
    QueueSettings,
    SchedulerSettings,
    Settings,
    SiteSettings,
)
from tests.schedulers import fake_pbs, scripts
from tests.schedulers.harness import SECRET, Harness
from tests.waiting import wait_until

COMMANDS = ("qsub", "qstat", "qselect", "qdel", "pbsnodes", "pbs_release_nodes")


class PbsHarness(Harness):
    """A fake PBS in a directory, found by PATH."""

    kind = "pbs"
    unknown_id = "99999.pbsserver"
    loses_nodes = True

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fake = fake_pbs.Fake(root / "pbs")
        self.fake.state.mkdir()
        commands = root / "bin"
        commands.mkdir()
        for name in COMMANDS:
            line = f'exec {sys.executable} {fake_pbs.__file__} {self.fake.state} {name} "$@"'
            (commands / name).write_text(f"#!/bin/sh\n{line}\n")
            (commands / name).chmod(0o755)
        self._path = os.environ["PATH"]
        os.environ["PATH"] = f"{commands}:{self._path}"

    def adapt(self, site: str, command_timeout: int) -> Settings:
        return Settings(
            site=SiteSettings(id=site),
            scheduler=SchedulerSettings(kind="pbs", command_timeout=command_timeout),
            queues={"workq": QueueSettings(max_nodes=8, cores_per_node=4)},
            database=DatabaseSettings(url_env=SECRET),
        )

    def request(self, *, name: str = "", nodes: int = 1, queue: str = "workq") -> JobRequest:
        """As the service makes them, and with ``-V``, which gives qsub's environment to the job."""
        request = JobRequest(name or self.name(), queue, nodes, 300, Path(), self.root)
        options = (
            *(f"-N {request.name}", f"-q {queue}", f"-l select={nodes}:ncpus=4"),
            *("-l place=scatter:excl", "-l walltime=00:05:00", "-r n", "-j oe", "-V"),
            "-W tolerate_node_failures=all",
        )
        return scripts.write_script(request, "\n".join(f"#PBS {option}" for option in options))

    def finish(self, request: JobRequest, status: int = 0) -> None:
        scripts.finish(request, status)

    def environment(self, request: JobRequest) -> Mapping[str, str]:
        return scripts.environment(request)

    def refused(self) -> JobRequest:
        return self.request(queue="nope")

    def impossible(self) -> JobRequest:
        return self.request(nodes=9)

    @contextlib.contextmanager
    def unavailable(self) -> Iterator[Scheduler]:
        """The server is down."""
        down = self.fake.state / "down"
        down.touch()
        try:
            yield self.scheduler
        finally:
            down.unlink()

    def lose(self, node: str) -> None:
        """PBS has known it for long enough."""
        self.fake.lose(node, ago=self.settings().over_after)

    def stop(self) -> None:
        os.environ["PATH"] = self._path
        with self.fake.locked():
            for job in self.fake.jobs():
                if job["state"] == "R":
                    self.fake.save({**job, "deleted": True})
        wait_until(
            lambda: all(job["state"] != "R" for job in self.fake.jobs()), what="all jobs to end"
        )
        assert (
            not (self.fake.state / "mom.err").exists()
            or not (self.fake.state / "mom.err").read_text()
        )
