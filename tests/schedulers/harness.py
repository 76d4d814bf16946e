"""What the conformance test needs to know of a scheduler to try its adapter.

A harness brings the scheduler (a real one, or stand-ins that answer as a real one was seen to) and
jobs that run for as long as the test wants.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from balsam_celery.schedulers import make_scheduler
from balsam_celery.schedulers.base import Job, JobRequest, JobState, Scheduler
from balsam_celery.settings import Settings
from tests.waiting import wait_until

#: Environment variable that holds a secret in the tests; adapters are told to hide it from jobs.
SECRET = "BALSAM_CONFORMANCE_DATABASE"
SECRET_VALUE = "postgresql://user:hunter2@db/balsam"


class Harness(ABC):
    """One scheduler with its adapter, in a directory of its own.

    ``stop`` leaves no job and no process behind.
    """

    #: ``scheduler.kind`` in ``site.toml``.
    kind: ClassVar[str]

    def __init__(self, root: Path) -> None:
        self.root = root
        self.site = uuid.uuid4().hex[:8]

    @property
    def scheduler(self) -> Scheduler:
        """The adapter as a site of these settings gets it, made anew."""
        return self.make(self.settings())

    def make(self, settings: Settings) -> Scheduler:
        """The adapter of a site with these settings."""
        local_dir = self.local_dir(settings.site.id)
        return make_scheduler(self.kind, settings=settings, local_dir=local_dir)

    def local_dir(self, site: str) -> Path:
        """The local directory of a site."""
        return self.root / f"local-{site}"

    def settings(self, site: str = "", command_timeout: int = 30) -> Settings:
        """Settings of a site (this harness's own unless named) that hide :data:`SECRET`."""
        return self.adapt(site or self.site, command_timeout)

    @abstractmethod
    def adapt(self, site: str, command_timeout: int) -> Settings:
        """Settings with ``site.id``, ``scheduler.kind`` and ``command_timeout``,
        ``database.url_env`` SECRET, and whatever this scheduler needs.
        """

    @abstractmethod
    def stop(self) -> None:
        """End all jobs and whatever else this harness started."""

    def name(self, site: str = "") -> str:
        """A job name as the service makes them: ``balsam-<site>-<allocation>``."""
        return f"balsam-{site or self.site}-{uuid.uuid4().hex[:12]}"

    @abstractmethod
    def request(self, *, name: str = "", nodes: int = 1) -> JobRequest:
        """A request for a job that writes its environment down and runs until :meth:`finish`."""

    @abstractmethod
    def finish(self, request: JobRequest, status: int = 0) -> None:
        """Let the job of a request end with an exit status, now or when it starts."""

    @abstractmethod
    def environment(self, request: JobRequest) -> Mapping[str, str]:
        """The environment of the request's job, which runs, once it has written it down."""

    @abstractmethod
    def refused(self) -> JobRequest | None:
        """A request that the scheduler refuses at once; ``None`` if it refuses none."""

    def impossible(self) -> JobRequest | None:
        """A request that it accepts and can never start; ``None`` if it accepts none such."""
        return None

    @abstractmethod
    def unavailable(self) -> AbstractContextManager[Scheduler]:
        """An adapter whose scheduler does not answer within this context."""

    #: Tells whether :meth:`lose` can be called.
    loses_nodes: ClassVar[bool] = False

    def lose(self, node: str) -> None:
        """Take a node away under its jobs, so that the scheduler has given it up now or soon."""
        raise NotImplementedError

    #: An id of the scheduler's form that no job has had.
    unknown_id: ClassVar[str]

    def job(self, native_id: str) -> Job | None:
        """The job as the adapter tells it; ``None`` when the scheduler has forgotten it."""
        return self.scheduler.jobs([native_id]).get(native_id)

    def wait_for(self, native_id: str, state: JobState, timeout: float = 60) -> Job | None:
        """The job in a state; a job that is no longer known has ENDED."""

        def reached() -> bool:
            job = self.job(native_id)
            return (JobState.ENDED if job is None else job.state) is state

        wait_until(reached, timeout, f"{self.kind} job {native_id} to be {state}")
        return self.job(native_id)
