"""Allocations as packing sees them: what each can still run."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection

from balsam_celery.lanes import Held, lanes
from balsam_celery.limits import Queue, policy_of, queues_of
from balsam_celery.nodefree import NodeFree
from balsam_celery.packing import Existing, Lane
from balsam_celery.resources import NodeCapacity, NodeShare
from balsam_celery.service.estimates import Estimates
from balsam_celery.settings import Settings
from balsam_celery.states import State
from balsam_celery.store import allocations, scans
from balsam_celery.store.rows import (
    AllocationRow,
    AllocationState,
    PilotRow,
    PilotState,
    TaskRow,
)
from balsam_celery.wire import from_plain

log = logging.getLogger(__name__)

#: An allocation that runs counts as room until so many seconds, and so many times the time that a
#: pilot needs to start, have gone without a word of one: then most likely none comes.
SILENCE, SILENT_MARGINS = 600.0, 5


def existing(
    conn: Connection,
    settings: Settings,
    rows: Sequence[AllocationRow],
    known: Estimates,
    now: float,
) -> list[Existing]:
    """``rows``, which have not ended, with what runs in them until when, and what idles."""
    by_name = {queue.name: queue for queue in queues_of(settings)}
    pilots: dict[str, list[PilotRow]] = defaultdict(list)
    for pilot in allocations.list_pilots(conn, allocations=[row.id for row in rows]):
        pilots[pilot.allocation].append(pilot)
    tasks: dict[str, list[TaskRow]] = defaultdict(list)
    for task in scans.on_pilots(conn):
        tasks[task.pilot or ""].append(task)
    return [
        _one(settings, row, by_name.get(row.queue), pilots[row.id], tasks, known, now)
        for row in rows
    ]


def _one(
    settings: Settings,
    row: AllocationRow,
    queue: Queue | None,
    pilots: Sequence[PilotRow],
    tasks: dict[str, list[TaskRow]],
    known: Estimates,
    now: float,
) -> Existing:
    node = queue.node if queue is not None else NodeCapacity("unknown", ())
    margins = policy_of(settings)
    live = [pilot for pilot in pilots if pilot.state is PilotState.LIVE]
    each: tuple[Lane, ...] = ()
    usable = 0.0
    width = row.nodes
    idle_for = None
    head = ""
    if row.cancel_requested is not None:
        pass  # it only takes up room until it is gone
    elif live:
        pilot = live[-1]
        every = _nodes(pilot)
        nodes = [one for one in every if not one.lost]
        node = nodes[0] if nodes else node
        width = len(nodes)
        usable = pilot.end_time - margins.drain_margin - now
        head = every[0].name if every else ""
        each = _lanes(
            nodes, tasks[pilot.id], known, margins.kill_grace, pilot.idle_nodes or {}, now
        )
        if not tasks[pilot.id]:
            idle_for = now - (now if pilot.idle_since is None else pilot.idle_since)
    elif not pilots and row.state is AllocationState.RUNNING:
        # it starts up: what is left once its workers consume
        age = max(0.0, now - (row.started or now))
        if age <= max(SILENCE, SILENT_MARGINS * margins.startup_margin):
            usable = row.wall_time - max(age, margins.startup_margin) - margins.drain_margin
    elif not pilots:
        usable = margins.usable(row.wall_time)
    runs = row.state is AllocationState.RUNNING or bool(pilots)
    return Existing(
        row.id,
        row.queue,
        "running" if runs else "queued",
        width,
        max(0.0, usable),
        node,
        each,
        0.0 if runs else now - row.created,
        idle_for,
        head,
    )


def _nodes(pilot: PilotRow) -> list[NodeCapacity]:
    """The nodes of a pilot; none where its row cannot be read, for nothing is placed there."""
    try:
        return [from_plain(NodeCapacity, plain) for plain in pilot.nodes]
    except ValueError as error:
        log.warning("pilot %s counts for nothing: its nodes cannot be read: %s", pilot.id, error)
        return []


def _lanes(
    nodes: Iterable[NodeCapacity],
    tasks: Iterable[TaskRow],
    known: Estimates,
    grace: int,
    idle_since: Mapping[str, float],
    now: float,
) -> tuple[Lane, ...]:
    free = {node.name: NodeFree.of(node) for node in nodes}
    held = []
    for task in tasks:
        shares = [from_plain(NodeShare, share) for share in task.shares or ()]
        for share in shares:
            # what is queued behind another task holds nothing yet
            if share.node in free and (task.state is State.RUNNING or not share.queued):
                free[share.node] = _less(free[share.node], share, task, gang=len(shares) > 1)
        held.append(
            Held(
                tuple(share.node for share in shares),
                max(0.0, task.changed + task.wall_time + grace - now),
                known.remaining(task, grace, now),
            )
        )
    busy = {name for one in held for name in one.nodes}
    idle = {name: now - idle_since.get(name, now) for name in free if name not in busy}
    # a batch system may give a job nodes that differ: the first stands for those like it only
    first = next(iter(free.values()), None)
    return lanes(free.values(), held, idle, None if first is None else first.capacity)


def _less(node: NodeFree, share: NodeShare, task: TaskRow, *, gang: bool) -> NodeFree:
    """``node`` without ``share``; with nothing left where rows contradict each other."""
    try:
        return node.with_taken(share, task.node_packing_count, gang)
    except ValueError as error:
        log.warning("%s is taken for full: its tasks' rows do not fit it: %s", share.node, error)
        return node._replace(cores=(), holders=node.holders + 1)
