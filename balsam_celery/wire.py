"""What travels through Redis, as frozen values with a strict JSON codec.

Three directions: the service sends bundles of :class:`TaskSpec` and :class:`KillOrder` to a
worker's Celery queue and :class:`PilotOrder` to a pilot; workers, pilots and clients push a
:class:`Report` to the service's inbox; workers leave a :class:`Heartbeat`. Everything is JSON
(R10). :func:`decode` refuses whatever does not fit with :class:`MalformedMessage`, so that a
forged or foreign message is dropped with a reason and harms nothing.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from balsam_celery.codec import MalformedMessage as MalformedMessage
from balsam_celery.codec import convert, encodable
from balsam_celery.resources import NodeCapacity, NodeShare

JSON = Any
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """All a worker needs to run one attempt.

    Attributes:
        id: the task's id, also its Celery id.
        attempt: number of this attempt, from 1.
        name: for people.
        application: whose program it is, for people and statistics.
        argv: the command, ready to run; never parsed again.
        environment: variables that the user asked for.
        work_dir: directory of this attempt; made by the worker.
        shares: nodes and what was given on each, head node first.
        ranks_per_node: MPI ranks on each node.
        threads_per_rank: also ``OMP_NUM_THREADS``.
        wall_time: limit in seconds, enforced by the worker.
        kill_grace: seconds between TERM and KILL.
        launcher: launcher asked for by the application, or ``None`` for the site's.
        inputs: ``{"args": […], "kwargs": {…}}`` written to ``$BALSAM_INPUTS`` when not ``None``.
        staged: directory whose content is copied into the work directory first, or ``None``.
        pin: bind the program to the cores given.
        checkpoint_grace: seconds before an imposed end at which the program gets ``end_signal``.
        end_signal: number of that signal.
        restartable: its work directory is that of its earlier attempts, whose files stay.
    """

    id: str
    attempt: int
    name: str
    application: str
    argv: tuple[str, ...]
    environment: dict[str, str]
    work_dir: str
    shares: tuple[NodeShare, ...]
    ranks_per_node: int
    threads_per_rank: int
    wall_time: int
    kill_grace: int
    launcher: str | None = None
    inputs: dict[str, JSON] | None = None
    staged: str | None = None
    pin: bool = True
    checkpoint_grace: int = 0
    end_signal: int = signal.SIGTERM.value
    restartable: bool = False


@dataclass(frozen=True, slots=True)
class KillOrder:
    """End an attempt, or make sure that it never starts here.

    The worker always answers with an :class:`Ended`: ``killed`` once no process of the attempt
    lives, ``fenced`` for an attempt that it never saw (and from then on never starts), or, for
    one that has ended already, the outcome it has in its outbox again.

    ``waiting_only``: take back an attempt that was sent ahead; one that runs goes on, and that is
    the only order without an answer.
    """

    id: str
    attempt: int
    reason: str
    waiting_only: bool = False


@dataclass(frozen=True, slots=True)
class PilotOrder:
    """An order to a pilot's main process.

    ``drain``: end. ``lose``: the scheduler has taken ``node`` out of the job; end what still
    lives there, place nothing there again, and say so with :class:`WorkerLost`. ``release``: the
    same of an idle node that is to be given back, which is confirmed once nothing of the pilot
    lives there.
    """

    action: Literal["drain", "lose", "release"]
    reason: str
    node: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """The program of an attempt runs."""

    id: str
    attempt: int
    time: float
    pid: int


Outcome = Literal[
    "exit",  # it ended by itself; see exit_code
    "signal",  # a signal that was not ours ended it
    "timeout",  # its wall_time was over
    "killed",  # a KillOrder ended it, before or after its start
    "fenced",  # a KillOrder came before the attempt; it never starts here
    "cannot-start",  # no such program, no permission
    # the node could not start it: no disk, no memory, no work directory; or, with ``started``, its
    # launcher could not start the ranks, as the batch system was away
    "unfit",
    "lost",  # the worker that held it died; no process of it lives
    "drained",  # the pilot ended first (walltime, drain, SIGTERM)
    "cut",  # told to end before the allocation's end; the pilot goes on
]


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt is over and no process of it lives: what the outbox keeps.

    Times are seconds since the epoch, ``started`` ``None`` if it never ran; memory is the peak in
    bytes, user and system time seconds; tails are decoded with replacement characters.
    """

    id: str
    attempt: int
    outcome: Outcome
    reason: str
    ended: float
    started: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    user_time: float = 0.0
    system_time: float = 0.0
    max_memory: int = 0
    stdout_tail: str = ""
    stderr_tail: str = ""
    argv: tuple[str, ...] = ()
    environment_digest: str = ""


@dataclass(frozen=True, slots=True)
class Registered:
    """A pilot is ready: its workers consume, on the nodes that it names.

    ``native_id`` is the scheduler's id of the job that it runs in, "" when it does not know.
    """

    pilot: str
    allocation: str
    host: str
    pid: int
    end_time: float
    nodes: tuple[NodeCapacity, ...]
    time: float
    native_id: str = ""


@dataclass(frozen=True, slots=True)
class PilotEnded:
    """A pilot stops; every outcome has been acknowledged, no process of it lives."""

    pilot: str
    reason: str
    time: float


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker of a pilot is gone.

    ``restarted`` tells whether a new one took its queue; else its node is lost. ``confirmed``: no
    process of its attempts lives, and all outcomes that it kept were sent before this. Without
    that its node does not answer: nothing more is known of its attempts. A new one tells itself
    what became of each attempt, of those on a silent node later.
    """

    pilot: str
    node: str
    reason: str
    restarted: bool
    time: float
    confirmed: bool = True


@dataclass(frozen=True, slots=True)
class Wake:
    """A hint: rows were inserted or changed, look into SQL."""


@dataclass(frozen=True, slots=True)
class KillAsked:
    """Celery's revoke or terminate, forwarded by a worker."""

    ids: tuple[str, ...]
    terminate: bool
    who: str


@dataclass(frozen=True, slots=True)
class StepStarted:
    """An ordinary Celery task of a canvas runs on the tasks worker."""

    id: str
    attempt: int
    time: float
    worker: str


@dataclass(frozen=True, slots=True)
class StepEnded:
    """An ordinary Celery task of a canvas is over.

    ``state`` is Celery's (SUCCESS, FAILURE, REVOKED); ``result`` the JSON return value, or the
    exception as Celery's backend encodes it.
    """

    id: str
    attempt: int
    state: str
    result: JSON
    traceback: str | None
    time: float


@dataclass(frozen=True, slots=True)
class TransitionEnded:
    """The transitions worker did (or failed) a step.

    ``step`` is ``stage_in``, ``preprocess``, ``postprocess``, ``stage_out`` or ``handler``;
    ``verdict`` of a handler is ``restart``, ``finish`` or ``fail``. ``unfit``: it could not begin,
    or could not copy, for what is no fault of the task's and may pass (no disk, no memory).
    """

    id: str
    attempt: int
    step: str
    ok: bool
    reason: str
    verdict: str | None
    time: float
    unfit: bool = False


Record = (
    Started
    | Ended
    | Registered
    | PilotEnded
    | WorkerLost
    | Wake
    | KillAsked
    | StepStarted
    | StepEnded
    | TransitionEnded
)
_RECORDS: dict[str, type[Any]] = {cls.__name__: cls for cls in typing.get_args(Record)}


@dataclass(frozen=True, slots=True)
class Report:
    """One push to the service's inbox.

    Attributes:
        pilot, node: the sender (``""`` for clients and login-node workers; node ``"pilot"`` for
            a pilot's main process).
        records: (number, record) pairs; a record whose number is above 0 is sent again until the
            service has put that number on the sender's acknowledgement list.
    """

    pilot: str = ""
    node: str = ""
    records: tuple[tuple[int, Record], ...] = ()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker (or the pilot itself) last said of itself.

    Attributes:
        held: (task id, attempt) pairs that it has received and whose outcomes are not yet
            acknowledged.
    """

    time: float
    pid: int
    state: str
    held: tuple[tuple[str, int], ...] = field(default=())


def encode(value: Any) -> str:
    """JSON text of a dataclass of this module (or of ``resources``)."""
    return json.dumps(to_plain(value), separators=(",", ":"))


def to_plain(value: Any) -> JSON:
    """``value`` as JSON values; a record carries its class name as ``"type"``.

    What UTF-8 cannot hold in a text is replaced.
    """
    if isinstance(value, str):
        return encodable(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if type(value) in _RECORDS.values():
            plain["type"] = type(value).__name__
        return plain
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    return value


def decode(cls: type[T], text: str | bytes) -> T:
    """The ``cls`` that ``text`` holds; what UTF-8 cannot hold in a text is replaced.

    Raises:
        MalformedMessage: not JSON, unknown or missing fields, a value of another type.
    """
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"not JSON: {error}") from None
    return from_plain(cls, plain)


def from_plain(cls: type[T], plain: JSON) -> T:
    """The ``cls`` that the JSON value ``plain`` holds.

    Raises:
        MalformedMessage: unknown or missing fields, a value of another type.
    """
    return typing.cast(T, convert(cls, plain, cls.__name__))
