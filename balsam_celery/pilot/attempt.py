"""One attempt in a worker's hands, from the message to its end."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from balsam_celery.keys import RUN
from balsam_celery.procs import Identity, Quarry, alive, boot_id, identity
from balsam_celery.wire import Ended, Outcome, TaskSpec

if TYPE_CHECKING:
    from balsam_celery.pilot.ending import Launched


def attempt_brand(task: str, attempt: int) -> str:
    """Name of an attempt for ``balsam_celery.brands``, and in its marks."""
    return f"{task}/{attempt}"


def attempt_mark(brand: str) -> str:
    """Environment entry of every process of an attempt, its launcher's too."""
    return f"BALSAM_ATTEMPT_MARK={brand}"


def rank_mark(brand: str) -> str:
    """Environment entry of the ranks of an attempt, which their launcher does not carry."""
    return f"BALSAM_RANK_MARK={brand}"


class Attempt:
    """A task's run that waits here, runs here, or has just ended; safe between threads.

    Attributes:
        spec: what to run.
        slots: (node, core) pairs that it occupies while it runs.
        started: when its process was started, seconds since the epoch.
        deadline: when it is to end for its ``wall_time``, on the monotonic clock: so long before
            that is over as it needs for a checkpoint.
        told_until: until then, on the monotonic clock, it may write one; 0: it was not told.
        pid: its leader's, once there is one; the worker's child until ``over``.
        verdict: (outcome, reason) that this worker imposed, if any.
        launched: set before its process is started when that is a launcher.
        own_steps: its program was seen to have made job steps itself, which may be there yet.
        leader: that process, known once there is a verdict on it.
        over: the leader has ended; no verdict is taken any more.
        doubt: why its failure need not be its own: a node of it had trouble while it ran; "": none.
        peak: bytes of memory that its leader was seen to have at the most.
    """

    __slots__ = (
        "__weakref__",
        "_lock",
        "deadline",
        "doubt",
        "launched",
        "leader",
        "over",
        "own_steps",
        "peak",
        "pid",
        "slots",
        "spec",
        "started",
        "told_until",
        "verdict",
    )

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.slots = frozenset((share.node, core) for share in spec.shares for core in share.cores)
        self.started: float | None = None
        self.deadline = float("inf")
        self.told_until = 0.0
        self.pid: int | None = None
        self.leader: Identity | None = None
        self.launched: Launched | None = None
        self.own_steps = False
        self.verdict: tuple[Outcome, str] | None = None
        self.over = False
        self.doubt = ""
        self.peak = 0
        self._lock = threading.Lock()

    @property
    def key(self) -> tuple[str, int]:
        """(task id, number of the attempt)."""
        return self.spec.id, self.spec.attempt

    @property
    def mark(self) -> str:
        """Environment entry of every process of this attempt."""
        return attempt_mark(self.brand)

    @property
    def brand(self) -> str:
        """Name of the attempt for ``balsam_celery.brands``."""
        return attempt_brand(*self.key)

    @property
    def leader_lives(self) -> bool:
        """Its leader is known and has not ended, reaped or not; cheap."""
        return self.leader is not None and alive(self.leader)

    @property
    def quarry(self) -> Quarry:
        """Every process of this attempt, also those that left its session."""
        leader = self.leader
        if leader is None and self.pid is not None:
            # the number of a leader that is gone still names its session
            leader = Identity(self.pid, 0, boot_id())
        leaders = frozenset((leader,) if leader else ())
        return Quarry(
            roots=leaders,
            sessions=leaders,
            marks=frozenset((self.mark,)),
            attempts=frozenset((self.brand,)),
        )

    def is_on(self, node: str) -> bool:
        """Some of its cores are there."""
        return any(share.node == node for share in self.spec.shares)

    def has_started(self, pid: int, started: float) -> bool:
        """Its program runs now; true when a verdict came before anyone could act on it."""
        with self._lock:
            self.pid = pid
            spec = self.spec
            self.deadline = time.monotonic() + max(0, spec.wall_time - spec.checkpoint_grace)
            self.started = started
            if self.verdict is not None:
                self.leader = identity(pid)
            return self.verdict is not None

    def condemn(self, outcome: Outcome, reason: str) -> bool:
        """Impose an outcome; false when it is over already or another was imposed before.

        A program that has ended by itself keeps its own outcome, also when nobody has reaped it.
        """
        with self._lock:
            if self.over or self.verdict is not None:
                return False
            if self.pid is not None:
                # only now: looking it up costs as much as all the rest of a short attempt's books
                self.leader = identity(self.pid)
                if self.leader is None:
                    return False
            self.verdict = (outcome, reason)
            return True

    def finish(self) -> tuple[Outcome, str] | None:
        """Take no verdict from now on; returns the one imposed before."""
        with self._lock:
            self.over = True
            return self.verdict

    def ended(self, outcome: Outcome, reason: str) -> Ended:
        """The record of an end without a process."""
        return Ended(
            id=self.spec.id,
            attempt=self.spec.attempt,
            outcome=outcome,
            reason=reason,
            ended=time.time(),
            argv=self.spec.argv,
        )

    def info(self, worker: str) -> dict[str, Any]:
        """What ``celery inspect`` and Flower show of it; the fields of Celery's requests."""
        spec = self.spec
        return {
            "id": spec.id,
            "name": spec.name or spec.application,
            "args": list(spec.argv),
            "kwargs": {
                "application": spec.application,
                "attempt": spec.attempt,
                "nodes": [share.node for share in spec.shares],
                "cores": {share.node: list(share.cores) for share in spec.shares},
                "work_dir": spec.work_dir,
            },
            "type": RUN,
            "hostname": worker,
            "time_start": self.started,
            "acknowledged": True,
            "delivery_info": {
                "exchange": "",
                "routing_key": "",
                "priority": 0,
                "redelivered": False,
            },
            "worker_pid": self.pid,
        }
