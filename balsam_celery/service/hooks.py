"""Messages to the transitions worker, for tasks that wait for staging or a hook."""

from __future__ import annotations

import functools
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Select,
    TextClause,
    and_,
    bindparam,
    select,
    text,
)

from balsam_celery import keys
from balsam_celery.service import transitions
from balsam_celery.service.cases import Batch
from balsam_celery.service.publish import Publisher
from balsam_celery.service.release import make_ready, settle
from balsam_celery.service.specs import staged_dir, task_dir
from balsam_celery.service.transitions import WAITING, awaited
from balsam_celery.states import State
from balsam_celery.store import queries, schema
from balsam_celery.store.rows import TaskRow

#: How many tasks between states are looked at in one pass; about so many steps are out at once.
WINDOW = 1000

#: Which step of which attempt.
StepKey = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class Pending:
    """A task that waits for a step of the transitions worker.

    Attributes:
        row: the task.
        step: the step, as in ``wire.TransitionEnded``.
    """

    row: TaskRow
    step: str

    @property
    def key(self) -> StepKey:
        """Which step of which attempt."""
        return (self.row.id, self.row.attempt, self.step)

    @property
    def since(self) -> float:
        """When the wait began, which tells it from an earlier one for the same step."""
        return transitions.waits_since(self.row)

    @property
    def message_id(self) -> str:
        """Celery id of its message."""
        return message_id(self.key)


def message_id(key: StepKey) -> str:
    """Celery id of a step's message, the same each time that it is sent."""
    return ".".join(map(str, key))


@dataclass(slots=True)
class Outstanding:
    """Steps whose message was sent; in memory, for what is lost with it is found by asking.

    The engine asks and sends, ``checks`` finds what was lost, each in a thread of its own.

    Attributes:
        sent: when, by step.
        copies: steps of which a message may have been sent at any time: somebody may run them.
            With the time that it carries, the same however often it takes to send it, and never
            before the wait began; ``None``: an earlier life of the service sent it.
        given_up: why a step, when it is sent next, is not to run any more but to be ended.
    """

    sent: dict[StepKey, float] = field(default_factory=dict)
    copies: dict[StepKey, float | None] = field(default_factory=dict)
    given_up: dict[StepKey, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def adopt(self, pending: Collection[Pending], now: float) -> None:
        """Take it that an earlier life has sent ``pending``; ``checks`` finds what it has not."""
        with self._lock:
            self.sent = {one.key: now for one in pending}
            self.copies = dict.fromkeys(self.sent)
            self.given_up = {}

    def unsent(self, pending: Collection[Pending], now: float) -> list[Pending]:
        """Those of ``pending`` to be sent; steps that nobody waits for any more are forgotten.

        So is a step that was put off since it was sent: its message is used up.
        """
        with self._lock:
            waiting = {
                one.key for one in pending if one.row.not_before <= self.sent.get(one.key, now)
            }
            self.sent = {key: time for key, time in self.sent.items() if key in waiting}
            self.copies = {key: time for key, time in self.copies.items() if key in waiting}
            self.given_up = {key: why for key, why in self.given_up.items() if key in waiting}
            unsent = [
                one for one in pending if one.key not in self.sent and one.row.not_before <= now
            ]
            for one in unsent:
                self.copies.setdefault(one.key, max(now, one.since))
        return unsent

    def lose(self, key: StepKey, sent: float, given_up: str) -> None:
        """Have a step sent anew, with the time ``sent``: what was begun of it counts no more."""
        with self._lock:
            self.copies[key] = sent
            if given_up:
                self.given_up[key] = given_up
            self.sent.pop(key, None)


def end_killed(
    batch: Batch, doomed: Collection[TaskRow], outstanding: Outstanding
) -> list[Pending]:
    """End tasks that are to be killed and whose step nobody runs.

    Returns:
        The others that wait for a step: the transitions worker has to end it first (R8).
    """
    waiting = _awaiting(doomed)
    over = [one for one in waiting if one.key not in outstanding.copies]
    if over:
        batch.load([one.row.id for one in over])
        for one in over:
            case = batch.cases.get(one.row.id)
            if case is not None and case.row.state is one.row.state is case.state:
                transitions.end_killed(batch, case)
        settle(batch)
    return [one for one in waiting if one.key in outstanding.copies]


def advance(batch: Batch, out: Collection[StepKey] = ()) -> list[Pending]:
    """Move on what needs no step (READY rows that nobody rendered or sent yet); the others wait.

    Args:
        batch: takes the moves.
        out: steps of which a message may be out.

    Returns:
        The tasks that wait for the transitions worker: the oldest, and all those of ``out``.
    """
    rows = _between_states(batch.conn, batch.now, out)
    plain = [r for r in rows if r.state is State.READY and awaited(r) is None]
    # a command is filled before anything is staged for it, so that a bad one fails at once
    unrendered = [
        r for r in rows if r.state is State.READY and r.argv is None and r.kind == "program"
    ]
    again = [r for r in rows if r.kind == "celery" and r.state is State.READY]
    todo = {row.id for row in (*plain, *unrendered, *again)}
    if todo:
        batch.load(todo)
        make_ready(batch, [batch.cases[id] for id in sorted(todo) if id in batch.cases])
        settle(batch)
    return [one for one in _awaiting(rows) if one.row.id not in todo]


def pending(conn: Connection, now: float) -> list[Pending]:
    """The tasks of which an earlier life of the service may have sent a step.

    The oldest of those that waited from the first, and of those that were put off or delayed: what
    is due only now must not hide, for its age, what was sent meanwhile.
    """
    rows = {row.id: row for row in _between_states(conn, now, ())}
    rows |= _oldest(conn, _AT_ONCE, now)
    rows |= _oldest(conn, _LATE, now, schema.task.c.not_before)
    return _awaiting(list(rows.values()))


def _awaiting(rows: Collection[TaskRow]) -> list[Pending]:
    return [Pending(row, step) for row in rows if (step := awaited(row)) is not None]


def _between_states(conn: Connection, now: float, out: Collection[StepKey]) -> list[TaskRow]:
    found = _oldest(conn, _PENDING, now)
    if len(found) == WINDOW:
        # what needs no transitions worker never waits behind what does
        found |= _oldest(conn, _PENDING_STEPS, now)
        found |= _oldest(conn, _UNRENDERED, now)
    found |= _oldest(conn, _POSTPROCESSED, now)
    # older ones that come later, with the clock of another host, do not push out what was sent: it
    # would be sent anew while it runs, and a kill would not wait for its end
    if unseen := {key for key in out if key[0] not in found}:
        rows = queries.find_tasks(conn, sorted({id for id, _, _ in unseen})).values()
        found |= {one.row.id: one.row for one in _awaiting(rows) if one.key in unseen}
    return [row for row in found.values() if row.state in WAITING]


_Condition = ColumnElement[bool] | TextClause
_PENDING = text(schema.PENDING_STEP_SQL)
_PENDING_STEPS = and_(_PENDING, schema.task.c.kind == "celery")
_AT_ONCE = and_(_PENDING, schema.task.c.not_before <= schema.task.c.changed)
_LATE = and_(_PENDING, schema.task.c.not_before > schema.task.c.changed)
_UNRENDERED = and_(_PENDING, schema.task.c.argv.is_(None))
_POSTPROCESSED = schema.task.c.state == State.POSTPROCESSED.value


def _oldest(
    conn: Connection, condition: _Condition, now: float, by: _Condition = schema.task.c.changed
) -> dict[str, TaskRow]:
    rows = conn.execute(_oldest_of(condition, by, WINDOW), {"now": now}).mappings()
    return {row["id"]: TaskRow.of(row) for row in rows}


@functools.cache
def _oldest_of(condition: _Condition, by: _Condition, most: int) -> Select[Any]:
    task = schema.task
    query = select(task).where(condition, task.c.not_before <= bindparam("now", type_=Double))
    return query.order_by(by).limit(most)


def send(
    publisher: Publisher,
    pending: Collection[Pending],
    run_dir: Path,
    outstanding: Outstanding,
    now: float,
) -> None:
    """Send the messages of steps, each with all that the transitions worker needs.

    Args:
        publisher: sends.
        pending: which, from ``outstanding.unsent``.
        run_dir: the site's.
        outstanding: notes each that Redis has taken.
        now: seconds since the epoch.

    Raises:
        kombu.exceptions.OperationalError: Redis did not take them; send them again later.
    """
    for one in pending:
        # of another life's message nothing is known: this one is later
        sent = outstanding.copies.get(one.key) or max(now, one.since)
        what = order(one, run_dir, sent, outstanding.given_up.get(one.key, ""))
        publisher.task(keys.TRANSITIONS_QUEUE, keys.TRANSITION, [what], id=one.message_id)
        outstanding.sent[one.key] = now
        outstanding.given_up.pop(one.key, None)


def order(one: Pending, run_dir: Path, sent: float, given_up: str = "") -> dict[str, Any]:
    """What the transitions worker is told, as JSON values.

    Args:
        one: the step.
        run_dir: the site's.
        sent: seconds since the epoch; the same in all copies of a message (``copies``).
        given_up: why it is to be ended instead, if it is.
    """
    row = one.row
    staged = staged_dir(run_dir, row)
    return {
        "id": row.id,
        "attempt": row.attempt,
        "name": row.name,
        "step": one.step,
        "hook": row.hooks[one.step],
        "state": str(row.state),
        "reason": row.reason,
        "task_dir": str(task_dir(run_dir, row)),
        "staged": str(staged) if staged else None,
        "work_dir": row.work_dir,
        "environment": row.environment,
        "sent": sent,
        "since": one.since,
        # a step that was lost with its worker may have left something
        "killed": row.kill_requested is not None,
        "given_up": given_up,
    }
