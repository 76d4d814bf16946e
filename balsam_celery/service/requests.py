"""What users ask of tasks that exist, kill and retry: SQL and nothing else.

The command line, the API and the service call these; a message that wakes the service afterwards
is a hint (R1). Neither needs Redis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from balsam_celery.service import steps
from balsam_celery.service.cases import Batch, Case
from balsam_celery.service.outcome import outcome
from balsam_celery.service.release import count_down, make_ready, settle
from balsam_celery.service.transitions import awaited
from balsam_celery.states import FINAL, ON_PILOT, State
from balsam_celery.store import queries, schema
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import EffectKind
from balsam_celery.store.sql import any_of

_ENDED_BADLY = frozenset({State.FAILED, State.USER_KILLED})
_EDGE = schema.dependency.c


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request.

    Attributes:
        done: ids that changed state in the transaction (also descendants).
        requested: ids on a pilot or a worker, or whose staging or hook may run; they end
            USER_KILLED once every process is gone.
        refused: reason by id for those that could not be served.
    """

    done: tuple[str, ...] = ()
    requested: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)


def request_kill(
    store: Store,
    ids: Iterable[str],
    reason: str,
    *,
    who: str = "user",
    descendants: bool = True,
    only_waiting: bool = False,
) -> Answer:
    """Kill tasks: those that run nowhere at once, the others once every process is gone.

    Args:
        store: the site's.
        ids: full ids.
        reason: one line, kept in ``task.kill_reason`` and the event.
        who: who asks, for the event.
        descendants: also kill all tasks that depend on them; otherwise those follow their
            ``on_parent_failure``.
        only_waiting: leave tasks alone whose program runs (Celery's revoke without terminate).

    Raises:
        StoreError: the database did not answer.
    """
    wanted = list(ids)

    def ask(conn: Connection) -> Answer:
        batch = Batch(conn, store.clock(), who)
        return kill_batch(batch, wanted, reason, descendants=descendants, only_waiting=only_waiting)

    return store.run(ask)


def kill_batch(
    batch: Batch,
    ids: Collection[str],
    reason: str,
    *,
    descendants: bool = True,
    only_waiting: bool = False,
) -> Answer:
    """:func:`request_kill` inside a transaction, written and settled."""
    batch.load(ids)
    refused = {id: "no such task" for id in ids if id not in batch.cases}
    named: dict[str, Case] = {}
    for id in ids:
        case = batch.cases.get(id)
        if case is None:
            continue
        if case.state in FINAL:
            refused[id] = f"it is {case.state} already"
        elif only_waiting and case.state is State.RUNNING:
            refused[id] = "it runs already"
        else:
            named[id] = case
    doomed = dict(named)
    if descendants and named:
        below = queries.descendants(batch.conn, list(named))
        batch.load(below)
        doomed.update({id: batch.cases[id] for id in below if id not in doomed})
    living = [case for case in doomed.values() if case.state not in FINAL]
    on_worker = [case for case in living if _may_run(case)]
    at_once = [case for case in living if not _may_run(case)]
    _request(batch, on_worker, reason)
    attempts = queries.last_attempts(batch.conn, [c.row.id for c in at_once if c.attempt])
    for case in at_once:
        why = reason if case.row.id in named else f"{reason} (with a task before it)"
        result = outcome(case.row, attempts.get(case.row.id), state=State.USER_KILLED, reason=why)
        # named ones are told from those that fell with a parent: a parent's retry revives these
        asked = batch.now if case.row.id in named else None
        batch.go(
            case, State.USER_KILLED, message=why, result=result,
            kill_requested=asked, kill_reason=why,
        )  # fmt: skip
    settle(batch)
    return Answer(tuple(c.row.id for c in at_once), tuple(c.row.id for c in on_worker), refused)


def _may_run(case: Case) -> bool:
    if case.state in ON_PILOT:
        return True
    # of a step of the transitions worker only the service knows whether it was sent; one that the
    # task came to wait for in this transaction was not
    return case.row.state is case.state and awaited(case.row) is not None


def _request(batch: Batch, cases: Collection[Case], reason: str) -> None:
    new = [case for case in cases if case.row.kill_requested is None]
    if not new:
        return
    batch.conn.execute(
        update(schema.task)
        .where(schema.task.c.id == bindparam("b_id"))
        .values(kill_requested=batch.now, kill_reason=reason),
        [{"b_id": case.row.id} for case in new],
    )
    for case in new:
        case.row = dataclasses.replace(case.row, kill_requested=batch.now, kill_reason=reason)


def retry(store: Store, ids: Iterable[str], *, who: str = "user") -> Answer:
    """Give FAILED and USER_KILLED tasks another go, with fresh retries.

    Tasks after them that failed, or were killed, because of them wait for them again.

    Raises:
        StoreError: the database did not answer.
    """
    wanted = list(ids)

    def again(conn: Connection) -> Answer:
        return retry_batch(Batch(conn, store.clock(), who), wanted)

    return store.run(again)


def retry_batch(batch: Batch, ids: Collection[str], why: str = "retried") -> Answer:
    """:func:`retry` inside a transaction, written and settled; ``why`` is for the events."""
    batch.load(ids)
    refused: dict[str, str] = {}
    named: dict[str, Case] = {}
    for id in ids:
        case = batch.cases.get(id)
        if case is None:
            refused[id] = "no such task"
        elif case.state not in _ENDED_BADLY:
            refused[id] = f"it is {case.state}: only FAILED and USER_KILLED tasks can be retried"
        else:
            named[id] = case
    revived = dict(named)
    below = queries.descendants(batch.conn, list(named)) if named else []
    batch.load(below)
    for id in below:
        case = batch.cases[id]
        fell_with_parent = case.attempt == 0 and case.row.kill_requested is None
        if case.state in _ENDED_BADLY and fell_with_parent and id not in revived:
            revived[id] = case
    ignored, minded = _ended_badly_above(batch, revived, named)
    for id, parent in _dead_ends(minded, revived).items():
        del revived[id]
        if id in named:
            refused[id] = f"its parent {parent} did not finish: retry that one"
    # those that ended while their child was killed already will not tell it again
    met = [(id, parent) for id, parent in ignored if id in revived and parent not in revived]
    _revive(batch, list(revived.values()), met, why)
    settle(batch)
    return Answer(done=tuple(revived), refused=refused)


_Edges = Sequence[tuple[str, str]]


def _ended_badly_above(
    batch: Batch, revived: Collection[str], named: Collection[str]
) -> tuple[_Edges, _Edges]:
    """(child, parent) that ended badly and is waited for: those that the child ignores; others.

    A child that is not named is revived with its parent, or not at all.
    """
    if not revived:
        return [], []
    parent = schema.task
    edges = batch.conn.execute(
        select(_EDGE.child, _EDGE.parent)
        .join(parent, parent.c.id == _EDGE.parent)
        .where(
            any_of(batch.conn, _EDGE.child, list(revived)),
            _EDGE.met.is_(False),
            parent.c.state.in_([state.value for state in _ENDED_BADLY]),
        )
    ).all()
    ignored: list[tuple[str, str]] = []
    minded: list[tuple[str, str]] = []
    for child, above in edges:
        ignores = batch.cases[child].row.on_parent_failure == "ignore"
        goes_alone = child in named or above not in revived
        (ignored if ignores and goes_alone else minded).append((child, above))
    return ignored, minded


def _dead_ends(edges: _Edges, revived: dict[str, Case]) -> dict[str, str]:
    """Those that would wait for a parent which ended badly and is not revived; with the parent."""
    dead: dict[str, str] = {}
    while True:
        found = {
            child: above
            for child, above in edges
            if child not in dead and (above not in revived or above in dead)
        }
        if not found:
            return dead
        dead.update(found)


def _revive(batch: Batch, cases: Collection[Case], met: _Edges, why: str) -> None:
    fresh: dict[str, Any] = {
        "kill_requested": None, "kill_reason": "", "failures": 0, "result": None, "reason": "",
        "pilot": None, "shares": None, "ran": None, "cuts": 0,
    }  # fmt: skip
    for case in cases:
        batch.effect(case.row.id, EffectKind.FORGET, {})
        if case.attempt == 0:
            # it never ran: staging and the filling of its command come (again) before it may
            batch.go(case, State.AWAITING_PARENTS, message=why, **fresh)
            continue
        batch.go(case, State.RESTART_READY, message=why, **fresh)
        if case.row.kind == "celery":
            steps.dispatch(batch, case)
    # what waits for nobody goes on at once
    free = [c for c in cases if c.state is State.AWAITING_PARENTS and c.row.waiting_on == 0]
    make_ready(batch, [*free, *count_down(batch, met)])
