"""Tasks under change in one transaction: rows locked, moves gathered, then done in one call."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Select, insert, select

from balsam_celery import keys
from balsam_celery.runtimes import Run
from balsam_celery.settings import RetrySettings
from balsam_celery.states import FINAL, State
from balsam_celery.store import effects, schema
from balsam_celery.store.rows import EffectKind, TaskRow
from balsam_celery.store.sql import given, given_any, update_each
from balsam_celery.store.transitions import Move, move

#: An attempt row, and what it gets.
_Change = tuple[dict[str, Any], dict[str, Any]]


_NOT_STARTED = schema.attempt.c.started.is_(None)
_NOT_ENDED = schema.attempt.c.ended.is_(None)


class LostRace(RuntimeError):
    """A row changed under its lock: a bug of ours or of the database, never a matter of timing."""


@dataclass(slots=True)
class Case:
    """One task and what the batch makes of it.

    Attributes:
        row: as it was read.
        state, attempt, failures: as they are after the moves gathered so far.
        result: what ``task.result`` will hold once final.
        reason: why it is in its state.
    """

    row: TaskRow
    state: State
    attempt: int
    failures: int
    reason: str = ""
    result: Any = None


@dataclass(frozen=True, slots=True)
class Change:
    """A task that changed state: for the ledger and for Flower.

    Attributes:
        row: as it was before.
        state: as it is now; ``attempt`` likewise.
        worker: Celery host name of the worker that has, or had, the attempt; ``""``: none.
        started: it passed RUNNING (its start may have been told together with its end).
        time: when it happened, seconds since the epoch.
    """

    row: TaskRow
    state: State
    attempt: int
    worker: str
    started: bool
    time: float
    reason: str


@dataclass(slots=True)
class Batch:
    """Moves gathered in one transaction.

    Attributes:
        cases: by task id.
        final: cases that became final, in order; ``service.release`` settles them.
        runs: those that ended well, to learn from.
        retry: the site's say in what is tried again.
    """

    conn: Connection
    now: float
    who: str
    cases: dict[str, Case] = field(default_factory=dict)
    final: list[Case] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    retry: RetrySettings = field(default_factory=RetrySettings)
    _moves: list[Move] = field(default_factory=list)
    _effects: list[effects.NewEffect] = field(default_factory=list)
    _attempts: list[dict[str, Any]] = field(default_factory=list)
    _starts: list[_Change] = field(default_factory=list)
    _ends: dict[tuple[str, int], _Change] = field(default_factory=dict)

    def load(self, ids: Collection[str]) -> None:
        """Lock and read the tasks of ``ids`` that are not read yet; unknown ids are passed over."""
        missing = sorted({id for id in ids if id not in self.cases})
        for row in lock_tasks(self.conn, missing) if missing else ():
            self.cases[row.id] = Case(row, row.state, row.attempt, row.failures, row.reason)

    def go(
        self,
        case: Case,
        *targets: State,
        message: str = "",
        time: float | None = None,
        **values: Any,
    ) -> None:
        """Move a task along ``targets``; ``values`` are set with the last one.

        ``message`` is the event's and, where the last target is final, the task's ``reason``.
        """
        started = False
        for target in targets:
            last = target is targets[-1]
            own = values if last else {}
            if last and target in FINAL:
                case.reason = message
                case.result = values.get("result")
                own = {"reason": message, **values}
                self.final.append(case)
            self._moves.append(
                Move(case.row.id, case.state, target, message, case.attempt, values=own, time=time)
            )
            case.state = target
            case.attempt = own.get("attempt", case.attempt)
            case.failures = own.get("failures", case.failures)
            started = started or target is State.RUNNING
        if targets:
            row = case.row
            worker = worker_on(
                values.get("pilot") or row.pilot, values.get("shares") or row.shares, row.num_nodes
            )
            self.changes.append(
                Change(row, case.state, case.attempt, worker, started, time or self.now, message)
            )

    def effect(self, task: str, kind: EffectKind, payload: Any) -> None:
        """Ask for an effect of this transaction."""
        self._effects.append(effects.NewEffect(task, kind, payload))

    def new_attempt(self, **values: Any) -> None:
        """Insert an attempt row; columns of ``schema.attempt``."""
        self._attempts.append({"dispatched": self.now, **values})

    def attempt_started(self, task: str, number: int, time: float) -> None:
        """Note when an attempt's program started."""
        self._starts.append(({"task": task, "number": number}, {"started": time}))

    def attempt_ended(self, task: str, number: int, **values: Any) -> None:
        """Complete an attempt row, unless it is complete; columns of ``schema.attempt``."""
        # rows are written by their columns, not in order: of two ends the first must count here
        self._ends.setdefault((task, number), ({"task": task, "number": number}, values))

    def flush(self) -> None:
        """Write what was gathered.

        Raises:
            LostRace: a move was lost though the row was locked; roll back.
        """
        moves, self._moves = self._moves, []
        won = move(self.conn, moves, now=self.now, who=self.who) if moves else set()
        if len(won) != len(moves):
            lost = next(m for index, m in enumerate(moves) if index not in won)
            raise LostRace(f"task {lost.id} is not {lost.source} at attempt {lost.attempt}")
        rows, self._attempts = self._attempts, []
        if rows:
            self.conn.execute(insert(schema.attempt), rows)
        starts, self._starts = self._starts, []
        ends, self._ends = self._ends, {}
        attempt = schema.attempt
        update_each(self.conn, attempt, starts, _NOT_STARTED)
        update_each(self.conn, attempt, ends.values(), _NOT_ENDED)
        asked, self._effects = self._effects, []
        if asked:
            effects.add(self.conn, asked, now=self.now)


def worker_on(pilot: str | None, shares: Sequence[dict[str, Any]] | None, num_nodes: int) -> str:
    """Celery host name of the worker that runs a task with plain ``shares``; ``""``: none."""
    if not pilot or not shares:
        return ""
    return keys.worker_name(pilot, keys.GANG if num_nodes > 1 else shares[0]["node"])


def lock_tasks(conn: Connection, ids: Collection[str]) -> Iterator[TaskRow]:
    """Read the tasks of ``ids`` and keep them from changing until the transaction ends.

    In order of id, so that two transactions never wait for each other.
    """
    for row in conn.execute(_locked(conn.dialect.name), given(conn, ids)).mappings():
        yield TaskRow.of(row)


@functools.cache
def _locked(dialect: str) -> Select[Any]:
    task = schema.task
    query = select(task).where(given_any(dialect, task.c.id)).order_by(task.c.id)
    return query.with_for_update(key_share=True)
