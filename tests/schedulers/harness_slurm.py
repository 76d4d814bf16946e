"""A real Slurm for the conformance test."""

from __future__ import annotations

import contextlib
import os
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
from tests.schedulers import scripts
from tests.schedulers.harness import SECRET, Harness
from tests.slurm_cluster import NODES, SlurmCluster
from tests.waiting import wait_until


class SlurmHarness(Harness):
    """The eight nodes of ``cluster``, which this process's environment leads to."""

    kind = "slurm"
    unknown_id = "999999"

    def __init__(self, root: Path, cluster: SlurmCluster) -> None:
        super().__init__(root)
        self.cluster = cluster

    def adapt(self, site: str, command_timeout: int) -> Settings:
        return Settings(
            site=SiteSettings(id=site),
            scheduler=SchedulerSettings(kind="slurm", command_timeout=command_timeout),
            queues={"debug": QueueSettings(max_nodes=8, cores_per_node=4)},
            database=DatabaseSettings(url_env=SECRET),
        )

    def request(
        self, *, name: str = "", nodes: int = 1, queue: str = "debug", wall_time: int = 300
    ) -> JobRequest:
        """As the service makes them: all options are in the script."""
        request = JobRequest(name or self.name(), queue, nodes, wall_time, Path(), self.root)
        options = (
            *(f"--job-name={request.name}", f"--partition={queue}", f"--nodes={nodes}"),
            *(f"--time={wall_time // 60}", f"--chdir={self.root}", f"--output={self.root}/%j.out"),
            *("--exclusive", "--no-requeue", "--no-kill"),
        )
        directives = "\n".join(f"#SBATCH {option}" for option in options)
        return scripts.write_script(request, directives)

    def finish(self, request: JobRequest, status: int = 0) -> None:
        scripts.finish(request, status)

    def environment(self, request: JobRequest) -> Mapping[str, str]:
        return scripts.environment(request)

    def refused(self) -> JobRequest:
        return self.request(queue="nowhere")

    def impossible(self) -> JobRequest:
        return self.request(nodes=20)

    @contextlib.contextmanager
    def unavailable(self) -> Iterator[Scheduler]:
        """The controller is down."""
        self.cluster.stop_controller()
        try:
            yield self.make(self.settings(command_timeout=5))
        finally:
            self.cluster.start_controller()

    def stop(self) -> None:
        self.cluster.run("scancel", f"--user={os.geteuid()}")
        idle = dict.fromkeys(NODES, "idle")
        wait_until(lambda: self.cluster.node_states() == idle, 60, "all nodes are idle")
