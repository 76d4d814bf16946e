"""Schedulers that fail on demand, around the real local one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from balsam_celery.errors import SchedulerError, SchedulerUnavailable
from balsam_celery.schedulers.base import Capabilities, Job, JobRequest, Scheduler


class Faulty(Scheduler):
    """The real scheduler behind a line that breaks: before or after it has done what was asked."""

    def __init__(self, real: Scheduler) -> None:
        self.real = real
        self.lose_answer = False
        self.is_away = False
        self.submissions = 0

    def submit(self, request: JobRequest) -> str:
        self.submissions += 1
        native_id = self.real.submit(request)
        if self.lose_answer:
            raise SchedulerUnavailable("the answer was lost")
        return native_id

    def jobs(self, ids: Collection[str] = ()) -> dict[str, Job]:
        if self.is_away:
            raise SchedulerUnavailable("the controller does not answer")
        return self.real.jobs(ids)

    def cancel(self, native_id: str) -> None:
        self.real.cancel(native_id)

    def inside(self, environment: object) -> object:  # type: ignore[override]
        raise NotImplementedError


class Nameless(Faulty):
    """Tells only of jobs whose ids it is given, as PSI/J does."""

    capabilities = Capabilities(finds_by_name=False)

    def jobs(self, ids: Collection[str] = ()) -> dict[str, Job]:
        """Those of ``ids``, without their names."""
        jobs = super().jobs()
        return {id: replace(job, name="") for id, job in jobs.items() if id in ids}


class Told(Faulty):
    """The real scheduler, of which a test may have an answer of its own instead."""

    answer: dict[str, Job] | None = None
    cancelled: tuple[str, ...] = ()
    down: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()

    def submit(self, request: JobRequest) -> str:
        """Submit, unless the test has closed the queue."""
        if request.queue in self.refused:
            raise SchedulerError(f"{request.queue} is closed")
        return super().submit(request)

    def jobs(self, ids: Collection[str] = ()) -> dict[str, Job]:
        """What the test says, or what is."""
        return super().jobs(ids) if self.answer is None or self.is_away else self.answer

    def cancel(self, native_id: str) -> None:
        """Note it; a real job is cancelled."""
        self.cancelled = (*self.cancelled, native_id)
        if self.answer is None:
            super().cancel(native_id)

    def down_nodes(self, nodes: Collection[str]) -> frozenset[str]:
        """What the test says."""
        if self.is_away:
            raise SchedulerUnavailable("the controller does not answer")
        return self.down & frozenset(nodes)
