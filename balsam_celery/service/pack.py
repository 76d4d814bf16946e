"""The body of ``balsam.pack``: backlog and allocations from SQL → plan → rows → jobs."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Connection, select, text

from balsam_celery.limits import Queue, fits_some_queue, policy_of, queues_of
from balsam_celery.packing import Demand, Existing, Lane, Plan
from balsam_celery.packing import pack as plan_allocations
from balsam_celery.resources import NodeCapacity, Resources
from balsam_celery.schedulers.base import Scheduler
from balsam_celery.service.alone import alone
from balsam_celery.service.cases import Batch, Change
from balsam_celery.service.release import fail, settle
from balsam_celery.service.submit import insert_requests, submit
from balsam_celery.service.window import SHAPE
from balsam_celery.settings import Settings
from balsam_celery.site import Site
from balsam_celery.states import PLACEABLE
from balsam_celery.store import allocations, scans, schema
from balsam_celery.store.allocations import LIVE_ALLOCATIONS
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import (
    AllocationRow,
    AllocationState,
    PilotRow,
    PilotState,
    TaskRow,
)
from balsam_celery.store.scans import BacklogShape
from balsam_celery.wire import from_plain

log = logging.getLogger(__name__)

#: Seconds until another may plan, should the process die in the middle of it.
_TURN = 15.0
#: Pause in seconds after allocations that came to nothing: doubled by each, up to the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 300.0


@dataclass(frozen=True, slots=True)
class Packed:
    """What a run did.

    Attributes:
        plan: what was asked for and given up.
        submitted: ids of the allocations that the scheduler took.
        changes: tasks that failed because no allocation could ever hold them.
    """

    plan: Plan = field(default_factory=Plan)
    submitted: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()


def pack(store: Store, scheduler: Scheduler, site: Site) -> Packed:
    """Ask for the allocations that the backlog needs and give up those that it needs no more.

    Harmless when run twice, also at once.

    Raises:
        StoreError: the database did not answer.
    """
    plan = Plan()
    changes: tuple[Change, ...] = ()
    with alone(store, "pack", _TURN) as turn:
        if turn is not None:
            plan, changes = store.run(lambda conn: _write_plan(conn, site, store.clock()))
    return Packed(plan, tuple(submit(store, scheduler, site)), changes)


def _write_plan(conn: Connection, site: Site, now: float) -> tuple[Plan, tuple[Change, ...]]:
    settings = site.settings
    shapes = scans.backlog(conn, now=now)
    hopeless = {
        shape: reason
        for shape in shapes
        if (reason := fits_some_queue(_resources(shape), shape.wall_time, settings)) is not None
    }
    changes = _fail_hopeless(conn, hopeless, now) if hopeless else ()
    backlog = [
        Demand(_resources(shape), shape.wall_time, shape.count)
        for shape in shapes
        if shape not in hopeless
    ]
    live = allocations.list_allocations(conn, LIVE_ALLOCATIONS)
    if not backlog and not live:
        return Plan(), changes
    plan = plan_allocations(
        backlog, queues_of(settings), _existing(conn, settings, live, now), policy_of(settings)
    )
    wanted = {row.id: row for row in live if row.cancel_requested is None}
    cancel = tuple(id for id in plan.cancel if id in wanted)
    for id in cancel:
        log.info("allocation %s is not needed any more", id)
        reason = "not needed any more"
        states = (AllocationState.REQUESTED, AllocationState.QUEUED)
        allocations.update_allocation(conn, id, states, cancel_requested=now, reason=reason)
    requests = plan.requests if now >= _not_before(conn) else ()
    for request in requests:
        log.info(
            "asking for %d nodes for %d s in %s: %s",
            request.nodes, request.wall_time, request.queue, request.reason,
        )  # fmt: skip
    insert_requests(conn, site, requests, now=now)
    return Plan(requests, cancel, plan.waiting), changes


def _resources(shape: BacklogShape) -> Resources:
    return Resources(
        num_nodes=shape.num_nodes,
        ranks_per_node=shape.ranks_per_node,
        threads_per_rank=shape.threads_per_rank,
        threads_per_core=shape.threads_per_core,
        gpus_per_rank=shape.gpus_per_rank,
        node_packing_count=shape.node_packing_count,
    )


def _fail_hopeless(
    conn: Connection, hopeless: dict[BacklogShape, str], now: float
) -> tuple[Change, ...]:
    """End tasks FAILED that no allocation could ever hold, such as after a change of settings."""
    batch = Batch(conn, now, "pack")
    for shape, reason in hopeless.items():
        ids = list(conn.scalars(select(schema.task.c.id).where(*_is_of(shape))))
        batch.load(ids)
        for id in ids:
            case = batch.cases[id]
            if case.state in PLACEABLE:
                fail(batch, case, f"no allocation can hold it: {reason}")
    settle(batch)
    return tuple(batch.changes)


def _is_of(shape: BacklogShape) -> list[ColumnElement[bool]]:
    column = schema.task.c
    return [
        text(schema.PLACEABLE_SQL),  # type: ignore[list-item]
        *(column[name].is_not_distinct_from(getattr(shape, name)) for name in SHAPE),
    ]


def _existing(
    conn: Connection, settings: Settings, rows: Sequence[AllocationRow], now: float
) -> list[Existing]:
    by_name = {queue.name: queue for queue in queues_of(settings)}
    pilots: dict[str, list[PilotRow]] = defaultdict(list)
    for pilot in allocations.list_pilots(conn):
        pilots[pilot.allocation].append(pilot)
    tasks: dict[str, list[TaskRow]] = defaultdict(list)
    for task in scans.on_pilots(conn):
        tasks[task.pilot or ""].append(task)
    return [_one(settings, row, by_name.get(row.queue), pilots[row.id], tasks, now) for row in rows]


def _one(
    settings: Settings,
    row: AllocationRow,
    queue: Queue | None,
    pilots: Sequence[PilotRow],
    tasks: dict[str, list[TaskRow]],
    now: float,
) -> Existing:
    """An allocation as packing sees it: what it can still run."""
    node = queue.node if queue is not None else NodeCapacity("unknown", ())
    margins = policy_of(settings)
    live = [pilot for pilot in pilots if pilot.state is PilotState.LIVE]
    lanes: tuple[Lane, ...] = ()
    usable = 0.0
    if row.cancel_requested is not None:
        pass  # it only takes up room until it is gone
    elif live:
        pilot = live[-1]
        every = [from_plain(NodeCapacity, plain) for plain in pilot.nodes]
        nodes = [one for one in every if not one.lost]
        node = nodes[0] if nodes else node
        usable = pilot.end_time - margins.drain_margin - now
        lanes = _lanes(nodes, tasks[pilot.id], margins.kill_grace, now)
    elif not pilots and row.state is AllocationState.RUNNING:
        # it starts up: what is left once its workers consume
        age = max(0.0, now - (row.started or now))
        usable = row.wall_time - max(age, margins.startup_margin) - margins.drain_margin
    elif not pilots:
        usable = margins.usable(row.wall_time)
    runs = row.state is AllocationState.RUNNING or bool(pilots)
    return Existing(
        row.id,
        row.queue,
        "running" if runs else "queued",
        row.nodes,
        max(0.0, usable),
        node,
        lanes,
    )


def _lanes(
    nodes: Iterable[NodeCapacity], tasks: Iterable[TaskRow], grace: int, now: float
) -> tuple[Lane, ...]:
    taken: dict[str, int] = defaultdict(int)
    until: dict[str, float] = defaultdict(float)
    for task in tasks:
        for share in task.shares or ():
            taken[share["node"]] += len(share["cores"])
            until[share["node"]] = max(
                until[share["node"]], task.changed + task.wall_time + grace - now
            )
    return tuple(
        Lane(len(node.cores) - taken[node.name], max(0.0, until[node.name])) for node in nodes
    )


def _not_before(conn: Connection) -> float:
    """When to ask again after allocations that came to nothing: refused, or ended unused.

    Without it an allocation that cannot start its pilot would be asked for again for ever.
    """
    pilot = schema.pilot.c
    newest = schema.allocation.select().order_by(schema.allocation.c.created.desc()).limit(16)
    rows = [AllocationRow.of(row) for row in conn.execute(newest).mappings()]
    ids = [row.id for row in rows]
    used = set(conn.scalars(select(pilot.allocation).where(pilot.allocation.in_(ids))))
    failures, last = 0, 0.0
    for row in rows:
        over = row.state in (AllocationState.FAILED, AllocationState.ENDED)
        if row.id in used or not over or row.cancel_requested is not None:
            break
        failures += 1
        last = max(last, row.ended if row.ended is not None else row.created)
    if not failures:
        return 0.0
    return last + min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (failures - 1))
