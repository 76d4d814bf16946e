"""Standard Celery task events of our tasks, so that Flower and ``celery events`` show them.

Workers on pilots send none (they halve throughput): the service knows all there is to tell, and
sends it in batches. A new attempt is announced by ``task-retried``, for Celery's state machine
puts FAILURE above STARTED and only RETRY starts it afresh.
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from celery import Celery
from celery.events.event import get_exchange
from celery.utils.time import utcoffset

from balsam_celery import keys
from balsam_celery.service.cases import Change, worker_on
from balsam_celery.service.publish import Publisher
from balsam_celery.states import State
from balsam_celery.store.rows import AttemptRow, TaskRow

Event = dict[str, Any]
#: Characters of arguments and results that Flower is given.
_SHOWN = 1024
#: Host name for what no worker has: the service itself.
_SERVICE = f"{keys.SERVICE_QUEUE}@{socket.gethostname()}"


def of_change(change: Change) -> list[Event]:
    """Events that a change of state stands for; final states come with their effect."""
    row, worker = change.row, change.worker
    if row.kind == "celery":
        # the tasks worker tells of its tasks itself
        return []
    events = []
    if change.state is State.DISPATCHED:
        events.append(received(row, worker, change.time, change.attempt))
    if change.started:
        events.append(_event("task-started", row.id, worker, change.time))
    if change.state is State.RESTART_READY and change.attempt > 0:
        events.append(retried(row.id, worker, change.time, change.reason))
    return events


def received(row: TaskRow, worker: str, when: float, attempt: int) -> Event:
    """``task-received``: what Flower knows a task by."""
    args, kwargs = row.arguments.get("args", []), row.arguments.get("kwargs", {})
    if row.kind == "program" and not args and not kwargs:
        shown = shlex.join(row.argv or row.command)
    else:
        shown = repr(tuple(args))
    return _event(
        "task-received",
        row.id,
        worker,
        when,
        name=row.name,
        args=_cut(shown),
        kwargs=_cut(repr(kwargs)),
        retries=max(attempt - 1, 0),
        eta=None,
        expires=None,
        root_id=row.id,
        parent_id=None,
    )


def retried(id: str, worker: str, when: float, reason: str) -> Event:
    """``task-retried``: another attempt will come."""
    return _event("task-retried", id, worker, when, exception=_cut(reason), traceback="")


def of_final(row: TaskRow, attempt: AttemptRow | None) -> list[Event]:
    """Events that tell how a task ended.

    Args:
        row: of a task in a final state.
        attempt: its latest attempt.
    """
    when = row.finished or row.changed
    worker = _SERVICE
    events = []
    if attempt is not None:
        worker = worker_on(attempt.pilot, attempt.nodes, row.num_nodes) or _SERVICE
    by_worker = attempt is not None and attempt.outcome not in ("lost", "cannot-start")
    if row.kind == "celery" and by_worker:
        return []
    # the name and the arguments, also for one that never ran or for a Flower that started late
    events.append(received(row, worker, when, row.attempt))
    if row.state is State.JOB_FINISHED:
        where = f" in {attempt.work_dir}" if attempt and attempt.work_dir else ""
        result = _cut(f"finished{where}")
        events.append(
            _event("task-succeeded", row.id, worker, when, result=result, runtime=_seconds(attempt))
        )
    elif row.state is State.FAILED:
        tail = (attempt.stderr_tail or "") if attempt else ""
        events.append(
            _event(
                "task-failed", row.id, worker, when,
                exception=_cut(f"TaskFailed({row.reason!r})"), traceback=tail[-_SHOWN:],
            )
        )  # fmt: skip
    elif row.state is State.USER_KILLED:
        events.append(
            _event(
                "task-revoked", row.id, worker, when,
                terminated=row.attempt > 0, signum=None, expired=False,
            )
        )  # fmt: skip
    return events


def _seconds(attempt: AttemptRow | None) -> float:
    if attempt is None or attempt.started is None or attempt.ended is None:
        return 0.0
    return attempt.ended - attempt.started


def _event(type: str, id: str, worker: str, when: float, **fields: Any) -> Event:
    return {
        "type": type,
        "uuid": id,
        "hostname": worker,
        "timestamp": when,
        "utcoffset": utcoffset(),
        "pid": os.getpid(),
        **fields,
    }


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def publish(app: Celery[Any], publisher: Publisher, events: Iterable[Event]) -> None:
    """Send events as one message, like a worker's buffered ones.

    Raises:
        kombu.exceptions.OperationalError: Redis did not take them.
    """
    clock: Any = app.clock  # type: ignore[attr-defined]  # the stubs lack it
    batch: Sequence[Event] = [{**event, "clock": clock.forward()} for event in events]
    if not batch:
        return
    exchange = get_exchange(publisher.connection, name=app.conf.event_exchange)
    publisher.raw(
        batch,
        exchange=exchange.name,
        routing_key="task.multi",
        declare=[exchange],
        headers={"hostname": _SERVICE},
        delivery_mode=1,
    )
