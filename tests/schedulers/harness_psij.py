"""PSI/J with its local executor for the conformance test: jobs are processes of this machine."""

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
from tests.waiting import wait_until


def running(root: Path) -> list[str]:
    """Command lines of processes that name a file below ``root``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_text(encoding="utf-8", errors="replace").replace("\0", " ")
            if f"{root}/" in line:
                found.append(line)
    return found


class PsijHarness(Harness):
    """Whatever is submitted starts at once."""

    kind = "psij"
    unknown_id = "4194999.1"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._requests: list[JobRequest] = []

    def adapt(self, site: str, command_timeout: int) -> Settings:
        return Settings(
            site=SiteSettings(id=site),
            scheduler=SchedulerSettings(
                kind="psij", executor="local", command_timeout=command_timeout
            ),
            queues={"debug": QueueSettings(max_nodes=8, cores_per_node=2)},
            database=DatabaseSettings(url_env=SECRET),
        )

    def request(self, *, name: str = "", nodes: int = 1) -> JobRequest:
        request = JobRequest(name or self.name(), "debug", nodes, 300, Path(), self.root)
        directives = (
            "export BALSAM_JOB_END=$(($(date +%s) + 300))\n"
            f"export BALSAM_JOB_QUEUE=debug BALSAM_JOB_NODES={nodes}"
        )
        request = scripts.write_script(request, directives)
        request.script.chmod(0o700)
        self._requests.append(request)
        return request

    def finish(self, request: JobRequest, status: int = 0) -> None:
        scripts.finish(request, status)

    def environment(self, request: JobRequest) -> Mapping[str, str]:
        return scripts.environment(request)

    def refused(self) -> None:
        """It starts whatever it is given."""

    @contextlib.contextmanager
    def unavailable(self) -> Iterator[Scheduler]:
        """A PSI/J that cannot be imported."""
        broken = self.root / "broken" / "psij"
        broken.mkdir(parents=True)
        (broken / "__init__.py").write_text('raise RuntimeError("the scheduler is down")\n')
        scheduler = self.scheduler
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(broken.parent)
        try:
            yield scheduler
        finally:
            del os.environ["PYTHONPATH"]
            if before is not None:
                os.environ["PYTHONPATH"] = before

    def stop(self) -> None:
        for request in self._requests:
            scripts.finish(request, 0)
        wait_until(lambda: not running(self.root), what="all jobs to end")
