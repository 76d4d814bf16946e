"""Kill orders to workers: sent until the attempt's end is confirmed (R8)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery
from sqlalchemy import Connection

from balsam_celery import keys
from balsam_celery.service.publish import Publisher
from balsam_celery.service.specs import worker_of
from balsam_celery.states import ON_PILOT
from balsam_celery.store import scans
from balsam_celery.store.rows import TaskRow
from balsam_celery.wire import KillOrder, to_plain

#: Seconds until an order that was not answered is sent again.
REPEAT = 5.0
#: How many requests are looked at in one pass; of more, each pass looks at others.
_LIMIT = 2000
#: Control command of the tasks worker: Celery's own revoke (every other ``revoke`` is forwarded
#: to the service).
REVOKE = "revoke_ordinary"
#: Control command of the transitions worker: end steps, running ones too.
END_STEPS = "end_steps"
#: Host names of tasks workers and of transitions workers.
_TASKS_WORKERS = f"{keys.TASKS_QUEUE}@*"
_TRANSITIONS_WORKERS = f"{keys.TRANSITIONS_QUEUE}@*"


@dataclass(frozen=True, slots=True)
class Doomed:
    """Tasks that are to be killed.

    Attributes:
        programs: on pilots, and their order is due.
        steps: ordinary Celery tasks on the tasks worker, and their order is due.
        between: all those that are on no worker of these.
        due: of those the ids of which an order is due.
    """

    programs: list[TaskRow]
    steps: list[TaskRow]
    between: list[TaskRow]
    due: frozenset[str]


class Kills:
    """Remembers when each order was sent last; forgets with the leadership, which is harmless."""

    def __init__(self) -> None:
        self._sent: dict[tuple[str, int], float] = {}
        self._after: scans.Place = scans.BEGIN

    def due(self, conn: Connection, now: float) -> Doomed:
        """Tasks to be killed, and those whose order is due."""
        rows = scans.kills_requested(conn, limit=_LIMIT, after=self._after)
        # many that cannot be done yet keep none behind them waiting
        last = rows[-1] if len(rows) == _LIMIT else None
        self._after = (last.kill_requested or 0.0, last.id) if last else scans.BEGIN
        wanted = {(row.id, row.attempt): row for row in rows}
        self._sent = {key: time for key, time in self._sent.items() if now - time < REPEAT}
        due = [row for key, row in wanted.items() if now - self._sent.get(key, 0.0) >= REPEAT]
        on_worker = [row for row in due if row.state in ON_PILOT]
        return Doomed(
            [row for row in on_worker if row.kind == "program" and row.pilot and row.shares],
            [row for row in on_worker if row.kind == "celery"],
            [row for row in wanted.values() if row.state not in ON_PILOT],
            frozenset(row.id for row in due),
        )

    def sent(self, rows: Iterable[TaskRow], now: float) -> None:
        """The orders of ``rows`` went out."""
        self._sent.update({(row.id, row.attempt): now for row in rows})


def order(publisher: Publisher, rows: Iterable[TaskRow]) -> None:
    """Send the kill orders of tasks on pilots, one message a worker.

    Raises:
        kombu.exceptions.OperationalError: Redis did not take them; send them again later.
    """
    by_worker: dict[tuple[str, str], list[KillOrder]] = defaultdict(list)
    for row in rows:
        assert row.pilot and row.shares
        worker = worker_of(row.num_nodes, row.shares[0]["node"])
        by_worker[row.pilot, worker].append(KillOrder(row.id, row.attempt, row.kill_reason))
    for (pilot, worker), orders in by_worker.items():
        send(publisher, pilot, worker, orders)


def send(publisher: Publisher, pilot: str, worker: str, orders: Sequence[KillOrder]) -> None:
    """Send orders to a worker of a pilot (a node name or ``keys.GANG``).

    Raises:
        kombu.exceptions.OperationalError: Redis did not take them; send them again later.
    """
    queue = keys.pilot_queue(pilot, worker)
    publisher.task(queue, keys.KILL, [queue, [to_plain(one) for one in orders]])


def end_steps(app: Celery[Any], publisher: Publisher, ids: Sequence[str], now: float) -> None:
    """Let the transitions worker end steps, by the ids of their messages, or not begin them.

    Args:
        app: the Celery application.
        publisher: whose connection is used.
        ids: which.
        now: seconds since the epoch; messages that are sent later are not meant.

    Raises:
        kombu.exceptions.OperationalError: Redis did not take it; send it again later.
    """
    _broadcast(app, publisher, END_STEPS, _TRANSITIONS_WORKERS, {"ids": list(ids), "now": now})


def revoke_ordinary(
    app: Celery[Any],
    publisher: Publisher,
    ids: Sequence[str],
    *,
    terminate: bool,
    attempts: Mapping[str, int] | None = None,
) -> None:
    """Revoke ordinary Celery tasks and steps on the tasks workers, as stock Celery would.

    Args:
        app: the Celery application.
        publisher: whose connection is used.
        ids: Celery ids.
        terminate: also those that run.
        attempts: of those that are steps, the attempt not to be run, by id.

    Raises:
        kombu.exceptions.OperationalError: Redis did not take it; send it again later.
    """
    arguments = {
        "task_id": list(ids),
        "terminate": terminate,
        "attempts": dict(attempts or {}),
    }
    _broadcast(app, publisher, REVOKE, _TASKS_WORKERS, arguments)


def _broadcast(
    app: Celery[Any], publisher: Publisher, command: str, workers: str, arguments: dict[str, Any]
) -> None:
    matcher: Any = "glob"  # its name, whatever the stubs say
    app.control.broadcast(
        command,
        arguments=arguments,
        pattern=workers,
        matcher=matcher,
        connection=publisher.connection,
        reply=False,
    )
