"""What the end of a task means for others: dependents, errbacks, its result."""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Select, bindparam, select, update

from balsam_celery.commands import render
from balsam_celery.errors import InvalidInput
from balsam_celery.service import steps
from balsam_celery.service.cases import Batch, Case
from balsam_celery.service.largest import measured
from balsam_celery.service.outcome import outcome
from balsam_celery.states import FINAL, State
from balsam_celery.store import queries, schema
from balsam_celery.store.rows import EffectKind, TaskRow
from balsam_celery.store.sql import any_of, given, given_any

log = logging.getLogger(__name__)

_EDGE = schema.dependency.c
#: What a row may raise that holds something that nobody has thought of.
_OF_ITS_VALUES = (
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)


def settle(batch: Batch) -> None:
    """Write the batch, and all that follows from the tasks in it that became final.

    Their effects are added, their children released, or failed when their policy says so, and so
    on with the children's children.
    """
    batch.flush()
    while batch.final:
        ended, batch.final = batch.final, []
        for case in ended:
            batch.effect(case.row.id, EffectKind.RESULT, {})
            if case.state is State.FAILED:
                for errback in case.row.errbacks:
                    batch.effect(case.row.id, EffectKind.ERRBACK, errback)
        _tell_children(batch, {case.row.id: case for case in ended})
        batch.flush()


def _tell_children(batch: Batch, ended: dict[str, Case]) -> None:
    conn = batch.conn
    edges = conn.execute(_edges(conn.dialect.name), given(conn, ended)).all()
    if not edges:
        return
    batch.load({child for child, _ in edges})
    met: list[tuple[str, str]] = []
    failed: dict[str, Case] = {}
    for child, parent in edges:
        case = batch.cases[child]
        ignores = case.row.on_parent_failure == "ignore" and case.state not in FINAL
        if ended[parent].state is State.JOB_FINISHED or ignores:
            met.append((child, parent))
        else:
            failed.setdefault(child, ended[parent])
    ready = count_down(batch, met)
    for child, cause in failed.items():
        case = batch.cases[child]
        if case.state is State.AWAITING_PARENTS:
            fail(batch, case, f"parent {cause.row.name} ({cause.row.id}) {cause.state}")
    make_ready(batch, [case for case in ready if case.row.id not in failed])


@functools.cache
def _edges(dialect: str) -> Select[str, str]:
    below = given_any(dialect, _EDGE.parent)
    return select(_EDGE.child, _EDGE.parent).where(below, _EDGE.met.is_(False))


def count_down(batch: Batch, met: Sequence[tuple[str, str]]) -> list[Case]:
    """Mark edges met; returns the children that wait for nobody any more."""
    if not met:
        return []
    batch.conn.execute(
        update(schema.dependency)
        .where(_EDGE.child == bindparam("b_child"), _EDGE.parent == bindparam("b_parent"))
        .values(met=True),
        [{"b_child": child, "b_parent": parent} for child, parent in met],
    )
    counts: dict[str, int] = defaultdict(int)
    for child, _ in met:
        counts[child] += 1
    batch.conn.execute(
        update(schema.task)
        .where(schema.task.c.id == bindparam("b_id"))
        .values(waiting_on=schema.task.c.waiting_on - bindparam("b_count")),
        [{"b_id": child, "b_count": count} for child, count in counts.items()],
    )
    zero = set(
        batch.conn.scalars(
            select(schema.task.c.id).where(
                any_of(batch.conn, schema.task.c.id, list(counts)), schema.task.c.waiting_on <= 0
            )
        )
    )
    return [batch.cases[child] for child in counts if child in zero]


def fail(batch: Batch, case: Case, reason: str) -> None:
    """End a task FAILED because of a parent, a hook, its arguments, or what it asks for."""
    id = case.row.id
    attempt = queries.last_attempts(batch.conn, [id]).get(id) if case.attempt else None
    result = outcome(case.row, attempt, state=State.FAILED, reason=reason)
    batch.go(case, State.FAILED, message=reason, result=result)


def make_ready(batch: Batch, cases: Sequence[Case]) -> None:
    """Let tasks go on that wait for nobody: AWAITING_PARENTS, or READY and not yet rendered.

    Programs get their argv; steps are sent. A command that cannot be filled, or is given too much,
    fails its task.
    """
    waiting = [c for c in cases if c.state in (State.AWAITING_PARENTS, State.READY)]
    results = parent_results(batch.conn, [c.row for c in waiting])
    for case in waiting:
        try:
            _let_go_on(batch, case, results)
        except InvalidInput as error:
            fail(batch, case, str(error))
        except _OF_ITS_VALUES as error:
            # the parent whose end this is written with is not to blame, and must not run again
            log.exception("task %s cannot go on", case.row.id)
            fail(batch, case, f"cannot go on: {type(error).__name__}: {error}")


def _let_go_on(batch: Batch, case: Case, results: dict[str, list[Any]]) -> None:
    row = case.row
    values: dict[str, Any] = {}
    not_before = row.not_before
    if case.state is State.AWAITING_PARENTS and "countdown" in row.celery:
        # a countdown runs from the end of the last parent
        values["not_before"] = not_before = batch.now + row.celery["countdown"]
    if row.kind == "celery":
        if case.state is State.AWAITING_PARENTS:
            batch.go(case, State.READY, **values)
        if not_before <= batch.now:
            steps.dispatch(batch, case)
        return
    arguments = full_arguments(row, results)
    argv = render(row.command, arguments["args"], arguments["kwargs"], row.literal)
    measured(argv, None if row.literal else arguments)
    targets = [State.READY] if case.state is State.AWAITING_PARENTS else []
    if not (row.hooks.get("stage_in") or row.hooks.get("preprocess")):
        targets.append(State.PREPROCESSED)
    if targets:
        batch.go(case, *targets, argv=list(argv), **values)
    else:
        # it stays READY for staging; the row is locked
        batch.conn.execute(
            update(schema.task).where(schema.task.c.id == row.id).values(argv=list(argv))
        )


def parent_results(conn: Connection, rows: Collection[TaskRow]) -> dict[str, list[Any]]:
    """Results of the parents of those of ``rows`` that take them, by child, in their order."""
    takers = [row.id for row in rows if row.inputs != "none"]
    found: dict[str, list[Any]] = {id: [] for id in takers}
    if takers:
        query = (
            select(_EDGE.child, schema.task.c.result)
            .join(schema.task, schema.task.c.id == _EDGE.parent)
            .where(any_of(conn, _EDGE.child, takers))
            .order_by(_EDGE.child, _EDGE.position)
        )
        for child, result in conn.execute(query):
            found[child].append(result)
    return found


def full_arguments(row: TaskRow, results: dict[str, list[Any]]) -> dict[str, Any]:
    """Positional and keyword values of a task, its parents' results first.

    Args:
        row: the task.
        results: from :func:`parent_results`.
    """
    args = list(row.arguments.get("args", ()))
    kwargs = dict(row.arguments.get("kwargs", {}))
    if row.inputs == "single":
        args = [*results[row.id][:1], *args]
    elif row.inputs == "list":
        args = [results[row.id], *args]
    return {"args": args, "kwargs": kwargs}
