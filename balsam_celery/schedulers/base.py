"""What a scheduler adapter gives: submit, list, cancel, queues, and, inside a job, its nodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from balsam_celery.errors import SchedulerError
from balsam_celery.resources import NodeCapacity

#: Set by batch scripts: when their job ends at the latest, in seconds since the epoch; its queue in
#: ``site.toml``; its number of nodes. For schedulers that do not tell, or do not answer, inside.
JOB_END, JOB_QUEUE, JOB_NODES = "BALSAM_JOB_END", "BALSAM_JOB_QUEUE", "BALSAM_JOB_NODES"


def job_prefix(site: str) -> str:
    """What the names of batch jobs of the site with this id begin with, and those of no other's."""
    return f"balsam-{site}-"


class JobState(StrEnum):
    """State of a batch job, common to all schedulers."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    #: No process of it lives any more, unless ``Capabilities.end_is_proof`` says otherwise.
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
    """A batch job as the scheduler tells; times in seconds since the epoch.

    Attributes:
        name: empty when the scheduler does not tell.
        state: a held job is QUEUED, one that is exiting or completing RUNNING.
        reason: in words, for people: why it waits, why it ended as it did.
        impossible: it waits, and as it stands it can never start; ``reason`` says why.
        nodes: names of the nodes that it holds now, where the scheduler tells them: one that it
            gave up (a dead node of a job that goes on) is not among them. Empty where a dead node
            stays listed.
        expected_start: of one that waits, when the scheduler expects it to start, for people;
            ``None`` when it tells nothing.
    """

    native_id: str
    name: str
    state: JobState
    started: float | None = None
    ended: float | None = None
    reason: str = ""
    impossible: bool = False
    nodes: tuple[str, ...] = ()
    expected_start: float | None = None


@dataclass(frozen=True, slots=True)
class JobNodes:
    """What a pilot learns inside its job.

    Attributes:
        nodes: what each has, the head node (where the batch script runs) first. Cores and GPUs are
            numbers 0…n-1 unless their ids are known here; a node's own worker refines them.
        end_time: when the job ends at the latest, seconds since the epoch.
        native_id: the job's id, as ``submit`` returned it.
        virtual: the nodes are parts of this one machine.
    """

    nodes: tuple[NodeCapacity, ...]
    end_time: float
    native_id: str = ""
    virtual: bool = False


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """A queue or partition as the scheduler describes it; ``None`` where it names no limit.

    Times are in seconds, memory in bytes per node.
    """

    name: str
    max_nodes: int
    min_nodes: int = 1
    min_wall_time: int | None = None
    max_wall_time: int | None = None
    max_queued: int | None = None
    max_running: int | None = None
    cores_per_node: int = 1
    gpus_per_node: int = 0
    memory_per_node: int = 0
    is_default: bool = False
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class IdleWindow:
    """Nodes that a job could have at once, for ``seconds`` (``None``: no end is told)."""

    queue: str
    nodes: int
    seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a scheduler can be asked.

    Attributes:
        finds_by_name: ``jobs`` tells of all jobs of the site, with their names; else only of those
            whose ids it was given, and a job whose submission's answer was lost is known by its
            pilot's claim alone.
        tells_queues: ``queues`` answers.
        tells_idle: ``idle`` answers.
        end_is_proof: no process of a job that it calls ENDED lives. Else that is a word only: what
            left the job's session or its node's supervision may live, and a pilot that has said no
            farewell is waited for (:mod:`balsam_celery.service.lingering`).
        releases_nodes: ``release`` gives nodes of a running job back.
    """

    finds_by_name: bool = True
    tells_queues: bool = False
    tells_idle: bool = False
    end_is_proof: bool = True
    releases_nodes: bool = False


class Scheduler(ABC):
    """One kind of batch scheduler.

    The four abstract methods are enough; the others have answers that mean "cannot tell". How to
    add a kind: ``docs/adapters.md``.

    Every method may raise :class:`~balsam_celery.errors.SchedulerUnavailable` (it did not answer:
    nothing is known), ``submit`` and ``release`` also
    :class:`~balsam_celery.errors.SchedulerError` (refused for good).
    """

    capabilities: ClassVar[Capabilities] = Capabilities()
    #: File in ``config/jobs`` with the Jinja template of the batch script.
    template: ClassVar[str] = "plain.sh.j2"
    #: Seconds between TERM and KILL of a job that is cancelled, as the scheduler has it by default,
    #: and the setting's name there; ``None`` where it waits for ``kill_grace``.
    kill_delay: ClassVar[tuple[float, str] | None] = None

    def submit_command(self, request: JobRequest) -> Sequence[str]:
        """The command that ``submit`` runs, for people; empty when it runs none."""
        return ()

    @abstractmethod
    def submit(self, request: JobRequest) -> str:
        """Submit a job and return its native id.

        ``request.script`` is submitted whole, under ``request.name``, so that it is never started
        again by the scheduler itself (not requeueable, R4).

        Raises:
            SchedulerError: refused: there is no such job.
            SchedulerUnavailable: it is not known whether there is; in doubt this one, after which
                the job is looked for before another is submitted.
        """

    @abstractmethod
    def jobs(self, ids: Collection[str] = ()) -> dict[str, Job]:
        """Jobs that the scheduler still knows, by native id.

        All of this site (:func:`job_prefix`) where it can list them, ended ones too, else those of
        ``ids``. Never a part of that: a job that is missing for a while (``verdict.GONE_AFTER``)
        counts as ended once its pilot is silent. So an id that was asked for is told whatever its
        name has become: users and sites may rename jobs.
        """

    @abstractmethod
    def cancel(self, native_id: str) -> None:
        """Ask for a job's end; harmless for one that has ended. ``jobs`` tells when it has."""

    def release(self, native_id: str, nodes: Collection[str], kept: Sequence[str]) -> None:
        """Take ``nodes`` out of a running job, which goes on with those ``kept``, its head first.

        Harmless for nodes that it does not have any more. Only where
        ``capabilities.releases_nodes``, and of nodes on which nothing runs.
        """
        raise SchedulerError("this scheduler takes no nodes out of a running job")

    @abstractmethod
    def inside(self, environment: Mapping[str, str]) -> JobNodes:
        """The nodes of the job whose environment this is; called by the pilot.

        Cores, GPUs and memory that the scheduler does not tell come from ``[queues.NAME]``.

        Raises:
            SchedulerError: it is none.
        """

    def down_nodes(self, nodes: Collection[str]) -> frozenset[str]:
        """Those of ``nodes`` that the scheduler has given up for good.

        Asked only for nodes that their pilot has lost. No proof that nothing lives there: the pilot
        waits until what is cut off has ended (:mod:`balsam_celery.cutoff`).
        """
        return frozenset()

    def queues(self) -> tuple[QueueInfo, ...]:
        """The queues that this user may submit to, the default first."""
        return ()

    def idle(self) -> tuple[IdleWindow, ...]:
        """Idle nodes now, by queue; asked when allocations are to be asked for.

        Windows of one queue may tell of the same nodes.
        """
        return ()
