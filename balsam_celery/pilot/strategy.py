"""What the worker does with each message: bundles become attempts, kill orders become ends.

Celery looks a task's ``Strategy`` up once and calls what it returns for each message. Nothing is
run in Python, nothing is acknowledged late (R3), and whatever is not one of ours, or is addressed
to another worker, is refused with :class:`InvalidTaskError`, which Celery logs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery, Task
from celery.exceptions import InvalidTaskError

from balsam_celery import keys
from balsam_celery.pilot.desk import Desk
from balsam_celery.wire import KillOrder, MalformedMessage, TaskSpec, from_plain

logger = logging.getLogger(__name__)

Handler = Callable[..., None]


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
    return spec
