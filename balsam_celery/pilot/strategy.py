"""What the worker does with each message: bundles become attempts, kill orders become ends.

Celery looks a task's ``Strategy`` up once and calls what it returns for each message. Nothing is
run in Python, nothing is acknowledged late (R3), and whatever is not one of ours, or is addressed
to another worker, is refused with :class:`InvalidTaskError`, which Celery logs.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery, Task
from celery.exceptions import InvalidTaskError

from balsam_celery import keys
from balsam_celery.durations import ENDLESS
from balsam_celery.pilot.desk import Desk
from balsam_celery.wire import KillOrder, MalformedMessage, TaskSpec, from_plain

logger = logging.getLogger(__name__)

Handler = Callable[..., None]

#: Numbers of a :class:`TaskSpec`: the least and the most that make sense, and that the system's
#: calls take.
_RANGES = {
    "attempt": (1, 2**31),
    "ranks_per_node": (1, 2**31),
    "threads_per_rank": (1, 2**31),
    "wall_time": (0, ENDLESS),
    "kill_grace": (0, ENDLESS),
    "checkpoint_grace": (0, ENDLESS),
}
#: More than any machine has of cores, or of GPUs.
_UNITS = 2**16
_SIGNALS = frozenset(map(int, signal.valid_signals()))


class RunAttempts(Task[Any, Any]):
    """``balsam.run``: a bundle of :class:`TaskSpec`."""

    name = keys.RUN
    ignore_result = True

    def __init__(self, desk: Desk, address: str) -> None:
        self._desk = desk
        self._address = address

    def start_strategy(self, app: Any, consumer: Any, **kwargs: Any) -> Handler:
        """Called by Celery when it connects."""
        desk, address = self._desk, self._address

        def handle(message: Any, body: Any, *_: Any) -> None:
            plains = _argument(message, body, address)
            message.ack()
            specs = []
            for plain in plains:
                try:
                    specs.append(_spec(plain))
                except MalformedMessage as error:
                    logger.error("refused a task that is not one: %s", error)
            desk.run(specs)

        return handle


class KillAttempts(Task[Any, Any]):
    """``balsam.kill``: a list of :class:`KillOrder`; never waits for a slot."""

    name = keys.KILL
    ignore_result = True

    def __init__(self, desk: Desk, address: str) -> None:
        self._desk = desk
        self._address = address

    def start_strategy(self, app: Any, consumer: Any, **kwargs: Any) -> Handler:
        """Called by Celery when it connects."""
        desk, address = self._desk, self._address

        def handle(message: Any, body: Any, *_: Any) -> None:
            plains = _argument(message, body, address)
            message.ack()
            for plain in plains:
                try:
                    order = from_plain(KillOrder, plain)
                except MalformedMessage as error:
                    logger.error("refused a kill order that is not one: %s", error)
                else:
                    desk.kill(order)

        return handle


def register(app: Celery[Any], desk: Desk, address: str) -> None:
    """Make ``app`` know our two Celery tasks and no other, Celery's own included.

    ``address`` is the queue of this worker, by which it knows what is meant for it.
    """
    app.finalize()
    for name in list(app.tasks):
        app.tasks.unregister(name)
    app.register_task(RunAttempts(desk, address))
    app.register_task(KillAttempts(desk, address))


def _argument(message: Any, body: Any, address: str) -> Sequence[Any]:
    """The list behind the address in a message's ``args``.

    Raises:
        InvalidTaskError: the message is built otherwise, or is meant for another worker.
    """
    payload = message.payload if body is None else body
    match payload:
        case [[str() as meant, list() as argument], dict(), *_]:
            if meant == address:
                return argument
            raise InvalidTaskError(f"it is addressed to {meant[:200]!r}, and this is {address}")
    raise InvalidTaskError("args does not hold an address and a list")


def _spec(plain: Any) -> TaskSpec:
    spec = from_plain(TaskSpec, plain)
    if not spec.argv or not spec.argv[0]:
        raise MalformedMessage(f"TaskSpec.argv of {spec.id} is empty")
    if not spec.shares:
        raise MalformedMessage(f"TaskSpec.shares of {spec.id} is empty")
    if not spec.work_dir.startswith("/"):
        raise MalformedMessage(f"TaskSpec.work_dir of {spec.id} is {spec.work_dir!r}")
    for name, (least, most) in _RANGES.items():
        if not least <= getattr(spec, name) <= most:
            raise MalformedMessage(f"TaskSpec.{name} of {spec.id} is not {least} to {most}")
    if spec.end_signal not in _SIGNALS:
        raise MalformedMessage(f"TaskSpec.end_signal of {spec.id} is no signal")
    for share in spec.shares:
        units = [*share.cores, *(gpu.index for gpu in share.gpus)]
        if not all(0 <= unit < _UNITS for unit in units):
            raise MalformedMessage(f"TaskSpec.shares of {spec.id}: no such core or GPU")
        if not all(0 < gpu.fraction < 1.001 for gpu in share.gpus):
            raise MalformedMessage(f"TaskSpec.shares of {spec.id}: no such part of a GPU")
    return spec
