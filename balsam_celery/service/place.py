"""Gives slots to tasks: candidates from SQL → ``placement`` → moves, attempts and specs."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, select

from balsam_celery.decisions import PlacementDecision
from balsam_celery.errors import InvalidInput
from balsam_celery.ledger import Ledger
from balsam_celery.lookahead import NO_LOOK_AHEAD, LookAhead
from balsam_celery.pilotfree import Holding
from balsam_celery.placement import Placement
from balsam_celery.resources import NodeCapacity, NodeShare
from balsam_celery.service.cases import Batch, Change
from balsam_celery.service.largest import measured
from balsam_celery.service.release import fail, full_arguments, parent_results, settle
from balsam_celery.service.specs import make_spec, worker_of
from balsam_celery.service.window import Rules, decide
from balsam_celery.states import PLACEABLE, State
from balsam_celery.store import allocations, scans, schema
from balsam_celery.store.rows import PilotRow, PilotState, TaskRow
from balsam_celery.wire import TaskSpec, from_plain, to_plain

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What placement needs of the site's settings; seconds.

    Attributes:
        ageing: waiting that raises a task's priority by one.
        journal: passes are to be written down.
    """

    run_dir: Path
    kill_grace: int
    drain_margin: int
    ageing: float = math.inf
    journal: bool = False


@dataclass(frozen=True, slots=True)
class Sent:
    """An attempt to be published.

    Attributes:
        worker: in the pilot: node name or ``keys.GANG``.
        size: bytes that the spec takes in a message, about.
    """

    pilot: str
    worker: str
    spec: TaskSpec
    size: int


@dataclass(frozen=True, slots=True)
class Placed:
    """What a pass did: the ledger after it, what to publish, what changed, what there is more.

    Attributes:
        more: the window was full and cores are left, so another pass may find more to start.
        recalled: (pilot, worker, task id, attempt) of what is to be taken back if it has not
            started.
        decision: the pass, if it is to be written down.
    """

    ledger: Ledger
    sent: tuple[Sent, ...] = ()
    changes: tuple[Change, ...] = ()
    more: bool = False
    recalled: tuple[tuple[str, str, str, int], ...] = ()
    decision: PlacementDecision | None = None


def rebuild(conn: Connection, limits: Limits, *, lock: bool = True) -> Ledger:
    """The ledger as SQL has it; ``lock``: as of :func:`sync`.

    A pilot whose rows contradict each other (slots given twice), or cannot be read, takes no more
    tasks.
    """
    return sync(conn, Ledger.empty(), limits, lock=lock)


def sync(conn: Connection, ledger: Ledger, limits: Limits, *, lock: bool = True) -> Ledger:
    """``ledger`` with the pilots that SQL has now: new ones added, ended ones gone.

    With ``lock`` the pilots' rows stay locked, so that none begins to drain while tasks are placed
    on it; who only looks needs that not.
    """
    live = _live_pilots(conn, lock)
    for id, (state, giving_back) in live.items():
        draining = state == PilotState.DRAINING
        if id in ledger.pilots:
            if draining and not ledger.pilots[id].draining:
                ledger = ledger.drain(id)
            for name in giving_back:
                ledger = ledger.lose_node(id, name)
            continue
        row = allocations.get_pilot(conn, id)
        deadline = row.end_time - limits.drain_margin
        # known without nodes, so that what is wrong with it is told once for each ledger
        ledger = ledger.add_pilot(id, (), deadline, draining=draining)
        try:
            ledger = ledger.add_pilot(id, capacities(row), deadline, draining=draining)
            ledger = ledger.take(id, _holdings(conn, id, limits))
        except ValueError as error:
            log.error("pilot %s takes no more tasks: its rows do not fit it: %s", id, error)
            ledger = ledger.drain(id)
    for gone in ledger.pilots.keys() - live.keys():
        ledger = ledger.remove_pilot(gone)
    return ledger


def _live_pilots(conn: Connection, lock: bool) -> dict[str, tuple[str, Collection[str]]]:
    """State, and nodes that are given back, by id; with ``lock`` the rows stay as they are until
    the transaction ends."""
    rows = conn.execute(_live(lock))
    return {id: (state, giving_back or ()) for id, state, giving_back in rows}


@functools.cache
def _live(lock: bool) -> Select[str, str, Any]:
    pilot = schema.pilot
    query = (
        select(pilot.c.id, pilot.c.state, pilot.c.giving_back)
        .where(pilot.c.state.in_([state.value for state in allocations.LIVE_PILOTS]))
        .order_by(pilot.c.id)
    )
    return query.with_for_update(read=True) if lock else query


def capacities(row: PilotRow) -> list[NodeCapacity]:
    """The nodes of a pilot."""
    return [from_plain(NodeCapacity, node) for node in row.nodes]


def _holdings(conn: Connection, pilot: str, limits: Limits) -> list[Holding]:
    return [_holding(row, limits) for row in scans.on_pilots(conn, pilot)]


def _holding(row: TaskRow, limits: Limits) -> Holding:
    shares = tuple(from_plain(NodeShare, share) for share in row.shares or ())
    # ``changed`` is when it was dispatched, or when it started
    until = row.changed + row.wall_time + limits.kill_grace
    if row.state is State.RUNNING:
        # it waits behind nothing any more
        shares = tuple(replace(share, queued=False) for share in shares)
    elif any(share.queued for share in shares):
        until += NO_LOOK_AHEAD.patience
    return Holding(row.id, row.attempt, shares, until, row.node_packing_count, row.changed)


def start(
    conn: Connection,
    ledger: Ledger,
    limits: Limits,
    *,
    now: float,
    who: str,
    ahead: LookAhead = NO_LOOK_AHEAD,
) -> Placed:
    """One pass: start what fits now, and send short tasks ``ahead``.

    Raises:
        LostRace: see :meth:`Batch.flush`.
    """
    ledger = sync(conn, ledger, limits)
    if not ledger.free_cores and not ahead.tasks and not has_queued(ledger):
        return Placed(ledger)
    rules = Rules(limits.kill_grace, limits.ageing, ahead)
    looked = decide(conn, ledger, rules, now)
    decided = looked.decided
    decision = None
    if limits.journal:
        decision = PlacementDecision.of(
            ledger, looked.candidates, now, limits.ageing, looked.ahead, decided
        )
    recalled = tuple(
        (pilot, decided.ledger.pilots[pilot].holdings[task, attempt].shares[0].node, task, attempt)
        for pilot, task, attempt in decided.recalled
    )
    if not decided.placements:
        return Placed(decided.ledger, recalled=recalled, decision=decision)
    batch = Batch(conn, now, who)
    batch.load([one.id for one in decided.placements])
    kept: list[Placement] = []
    after = decided.ledger
    for one in decided.placements:
        case = batch.cases.get(one.id)
        if case is None or case.state not in PLACEABLE or case.attempt + 1 != one.attempt:
            # someone else (a kill) was faster
            after = after.give_back(one.pilot, [(one.id, one.attempt)])
        else:
            kept.append(one)
    sent = _dispatch(batch, ledger, limits, kept)
    for one in kept:
        if batch.cases[one.id].state is State.FAILED:
            after = after.give_back(one.pilot, [(one.id, one.attempt)])
    settle(batch)
    return Placed(after, tuple(sent), tuple(batch.changes), looked.more, recalled, decision)


def has_queued(ledger: Ledger) -> bool:
    """Something is queued behind what runs."""
    return any(any(pilot.queued()) for pilot in ledger.pilots.values())


def _dispatch(
    batch: Batch, ledger: Ledger, limits: Limits, kept: Sequence[Placement]
) -> list[Sent]:
    """Move tasks to DISPATCHED; those for which no message is large enough are FAILED."""
    results = parent_results(batch.conn, [batch.cases[one.id].row for one in kept])
    pilots = {one.pilot for one in kept}
    allocation = _allocations(batch.conn, pilots)
    pinned = {
        pilot: {n.capacity.name for n in ledger.pilots[pilot].nodes if n.capacity.pinned}
        for pilot in pilots
    }
    sent = []
    for one in kept:
        row = batch.cases[one.id].row
        arguments = full_arguments(row, results)
        has_inputs = not row.literal and bool(arguments["args"] or arguments["kwargs"])
        spec = make_spec(
            row,
            one.attempt,
            one.shares,
            run_dir=limits.run_dir,
            kill_grace=limits.kill_grace,
            inputs=arguments if has_inputs else None,
            pinned={share.node for share in one.shares} <= pinned[one.pilot],
        )
        try:
            size = measured(spec.argv, spec.inputs, spec.environment)
        except InvalidInput as error:
            fail(batch, batch.cases[row.id], str(error))
            continue
        shares = [to_plain(share) for share in one.shares]
        batch.go(
            batch.cases[row.id],
            State.DISPATCHED,
            message=f"pilot {one.pilot}: {', '.join(share.node for share in one.shares)}",
            attempt=one.attempt,
            pilot=one.pilot,
            shares=shares,
            work_dir=spec.work_dir,
        )
        batch.new_attempt(
            task=row.id,
            number=one.attempt,
            allocation=allocation[one.pilot],
            pilot=one.pilot,
            nodes=shares,
            argv=list(spec.argv),
            work_dir=spec.work_dir,
            reason="",
        )
        sent.append(Sent(one.pilot, worker_of(row.num_nodes, one.shares[0].node), spec, size))
    return sent


def _allocations(conn: Connection, pilots: set[str]) -> dict[str, str]:
    pilot = schema.pilot
    query = select(pilot.c.id, pilot.c.allocation).where(pilot.c.id.in_(pilots))
    return {row.id: row.allocation for row in conn.execute(query)}
