"""The local scheduler for the conformance test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from balsam_celery.schedulers.base import JobRequest, JobState, Scheduler
from balsam_celery.schedulers.local_state import State
from balsam_celery.settings import (
    DatabaseSettings,
    LocalSettings,
    QueueSettings,
    SchedulerSettings,
    Settings,
    SiteSettings,
)
from tests.schedulers import scripts
from tests.schedulers.harness import SECRET, Harness


class LocalHarness(Harness):
    """Three virtual nodes. Each site has its own."""

    kind = "local"
    unknown_id = "local-77"

    def adapt(self, site: str, command_timeout: int) -> Settings:
        return Settings(
            site=SiteSettings(id=site),
            scheduler=SchedulerSettings(command_timeout=command_timeout),
            local=LocalSettings(nodes=3, cores_per_node=2),
            queues={"debug": QueueSettings(max_nodes=3)},
            database=DatabaseSettings(url_env=SECRET),
        )

    def request(self, *, name: str = "", nodes: int = 1) -> JobRequest:
        request = JobRequest(name or self.name(), "debug", nodes, 300, Path(), self.root)
        return scripts.write_script(request)

    def finish(self, request: JobRequest, status: int = 0) -> None:
        scripts.finish(request, status)

    def environment(self, request: JobRequest) -> Mapping[str, str]:
        return scripts.environment(request)

    def refused(self) -> JobRequest:
        return self.request(nodes=4)

    @contextlib.contextmanager
    def unavailable(self) -> Iterator[Scheduler]:
        scheduler = self.make(self.settings(command_timeout=1))
        scheduler.jobs()  # makes the directory
        with State(self.local_dir(self.site) / "scheduler").locked():
            yield scheduler

    def stop(self) -> None:
        scheduler = self.scheduler
        for native_id in scheduler.jobs():
            scheduler.cancel(native_id)
        for native_id in scheduler.jobs():
            self.wait_for(native_id, JobState.ENDED)
