"""What a scheduler adapter gives: submit, list, cancel, and, inside a job, its nodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from balsam_celery.resources import NodeCapacity


class JobState(StrEnum):
    """State of a batch job, common to all schedulers."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    #: No process of it lives any more.
    ENDED = "ENDED"


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A batch job to submit.

    Attributes:
        name: unique over the site's life, so that a job whose submission's answer was lost is
            found again.
        queue: the scheduler's queue.
        nodes: number of nodes.
        wall_time: limit in seconds.
        script: path of the batch script.
        directory: the job's working directory; its output goes there.
    """

    name: str
    queue: str
    nodes: int
    wall_time: int
    script: Path
    directory: Path


@dataclass(frozen=True, slots=True)
class Job:
    """A batch job as the scheduler tells; times in seconds since the epoch."""

    native_id: str
    name: str
    state: JobState
    started: float | None = None
    ended: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class JobNodes:
    """What a pilot learns inside its job: the nodes, and when the job ends at the latest."""

    nodes: tuple[NodeCapacity, ...]
    end_time: float


class Scheduler(ABC):
    """One kind of batch scheduler.

    Every method may raise :class:`~balsam_celery.errors.SchedulerUnavailable` (it did not answer:
    nothing is known) and ``submit`` also :class:`~balsam_celery.errors.SchedulerError` (refused
    for good).
    """

    @abstractmethod
    def submit(self, request: JobRequest) -> str:
        """Submit a job and return its native id."""

    @abstractmethod
    def jobs(self) -> dict[str, Job]:
        """All jobs of this site that the scheduler still knows, by native id."""

    @abstractmethod
    def cancel(self, native_id: str) -> None:
        """Ask for a job's end; harmless for one that has ended. ``jobs`` tells when it has."""

    @abstractmethod
    def inside(self, environment: Mapping[str, str]) -> JobNodes:
        """The nodes of the job whose environment this is; called by the pilot."""

    def free_nodes(self) -> int | None:
        """Nodes that a job submitted now could start on at once; ``None``: not told."""
        return None
