"""What a worker of a pilot knows of itself: plain values, made before the fork."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from balsam_celery import keys
from balsam_celery.outbox import read_unended
from balsam_celery.pilot.attempt import attempt_brand
from balsam_celery.resources import NodeCapacity
from balsam_celery.site import Site
from balsam_celery.wire import Outcome


@dataclass(frozen=True, slots=True)
class PilotContext:
    """One incarnation of a pilot.

    Attributes:
        site: whose pilot it is.
        pilot: its id, new for each incarnation.
        allocation: the batch job it runs in.
        nodes: what the scheduler gave; the pilot may not have the use of all.
        end_time: when the batch job ends at the latest, seconds since the epoch.
        environment: what programs inherit; free of secrets and of outer MPI jobs' variables.
        native_id: the scheduler's id of that job, "" when it is not known.
        virtual: the nodes are parts of this one machine.
    """

    site: Site
    pilot: str
    allocation: str
    nodes: tuple[NodeCapacity, ...]
    end_time: float
    environment: dict[str, str]
    native_id: str = ""
    virtual: bool = False

    @property
    def one_host(self) -> bool:
        """All of its workers run on this host."""
        return self.virtual or len(self.nodes) == 1

    @property
    def last_moment(self) -> float:
        """When the pilot stops what runs, before its end; seconds since the epoch."""
        return self.end_time - self.site.settings.pilot.drain_margin

    def patience(self, now: float) -> float:
        """Seconds that programs which are told to end at ``now`` may take, kill grace included.

        The longest: what they have been granted to write checkpoints ends at :attr:`last_moment`.
        """
        settings = self.site.settings
        left = max(0.0, self.last_moment - now)
        return min(settings.pilot.max_checkpoint_grace, left) + settings.site.kill_grace

    @property
    def allocation_dir(self) -> Path:
        """Shared by the incarnations of one allocation."""
        return self.site.run_dir / "allocations" / self.allocation

    @property
    def directory(self) -> Path:
        """Outboxes, logs and pid files of this incarnation."""
        return self.allocation_dir / self.pilot

    def workers(self) -> list[WorkerContext]:
        """The node workers and, where tasks can span nodes, the gang worker."""
        workers = [WorkerContext(self, node.name, (node,)) for node in self.nodes]
        if len(self.nodes) > 1:
            workers.append(WorkerContext(self, keys.GANG, self.nodes))
        return workers


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """One worker of a pilot.

    Attributes:
        pilot: whose.
        node: its node's name or ``keys.GANG``.
        nodes: what it has.
        silent: of those the ones that nobody could ask when it was started in place of one that
            died: what that had on them may live.
    """

    pilot: PilotContext
    node: str
    nodes: tuple[NodeCapacity, ...]
    silent: frozenset[str] = frozenset()

    @property
    def queue(self) -> str:
        """Celery queue that it consumes."""
        return keys.pilot_queue(self.pilot.pilot, self.node)

    @property
    def name(self) -> str:
        """Celery host name."""
        return keys.worker_name(self.pilot.pilot, self.node)

    @property
    def capacity(self) -> int:
        """Concurrency with nothing held elsewhere: cores of the node, or nodes of the gang."""
        return len(self.nodes) if self.node == keys.GANG else len(self.nodes[0].cores)

    @property
    def mark(self) -> str:
        """Environment entry that every program of this worker carries."""
        return f"BALSAM_PILOT_NODE={self.pilot.pilot}/{self.node}"

    @property
    def brands(self) -> tuple[str, ...]:
        """Attempts that it has received and not ended, as :mod:`balsam_celery.brands` names them.

        Only of a worker that does not live: its outbox is read.
        """
        return tuple(attempt_brand(*key) for key in self.unended)

    @property
    def unended(self) -> tuple[tuple[str, int], ...]:
        """The same as (task, number of the attempt)."""
        try:
            return tuple(read_unended(self.outbox_path))
        except FileNotFoundError:
            return ()

    @property
    def outbox_path(self) -> Path:
        """Its outbox."""
        return self.pilot.directory / f"{self.node}.outbox"

    @property
    def pid_path(self) -> Path:
        """Its pid file."""
        return self.pilot.directory / f"{self.node}.pid"

    @property
    def log_path(self) -> Path:
        """Its log."""
        return self.pilot.directory / f"{self.node}.log"


@dataclass(frozen=True, slots=True)
class Parent:
    """What a worker is to make of the death of the process that forked it.

    Attributes:
        name: what that process is, for people.
        outcome: of the worker's attempts: ``drained`` tells the service that the whole pilot
            stops, ``lost`` that this worker alone does.
        orders: it orders ends itself (:mod:`balsam_celery.pilot.watchdog`); other signals that
            would end the worker are for that process to judge.
    """

    name: str = "the main process of its pilot"
    outcome: Outcome = "drained"
    orders: bool = False
