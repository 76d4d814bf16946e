"""Nodes of living pilots that the scheduler has given up: their attempts are taken back (R4)."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import redis

from balsam_celery import keys
from balsam_celery.errors import SchedulerUnavailable
from balsam_celery.schedulers.base import Job, Scheduler
from balsam_celery.service import outboxes
from balsam_celery.service.reap import Read, record_outboxes
from balsam_celery.store import allocations, scans
from balsam_celery.store.allocations import LIVE_PILOTS
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import PilotRow
from balsam_celery.wire import Ended, PilotOrder, Report, WorkerLost, encode

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LostNode:
    """A node of a pilot on which, by the scheduler's word, nothing runs any more."""

    pilot: PilotRow
    node: str
    reason: str


def find(store: Store, scheduler: Scheduler, running: Mapping[str, Job]) -> list[LostNode]:
    """Nodes that the scheduler has given up and for which a living pilot still counts or waits.

    Those that are lost already, by the pilot's word, are told again for as long as attempts hold
    them, or tasks over several nodes are there: the pilot sweeps a node until somebody who knows
    says that nothing lives there.

    Args:
        store: the site's database.
        scheduler: asked only for nodes that are lost by their pilot's word and still hold attempts.
        running: jobs of RUNNING allocations, by allocation.

    Raises:
        StoreError: the database did not answer.
    """
    with store.read() as conn:
        pilots = [p for p in allocations.list_pilots(conn, LIVE_PILOTS) if p.allocation in running]
        used: defaultdict[str, set[str]] = defaultdict(set)
        # a gang worker that is given up is over once every node was swept, used by it or not
        spanned: set[str] = set()
        for row in scans.on_pilots(conn) if pilots else ():
            used[row.pilot or ""] |= {share["node"] for share in row.shares or ()}
            if row.num_nodes > 1:
                spanned.add(row.pilot or "")
    found: list[LostNode] = []
    silent: list[tuple[PilotRow, str]] = []
    for pilot in pilots:
        holds = _held(pilot, running[pilot.allocation])
        for node in pilot.nodes:
            name, is_lost = node["name"], node.get("lost", False)
            if is_lost and name not in used[pilot.id] and pilot.id not in spanned:
                continue
            if name in (pilot.giving_back or {}):
                continue  # nothing ran there
            if name not in holds:
                found.append(LostNode(pilot, name, "the scheduler took it out of the job"))
            elif is_lost:
                silent.append((pilot, name))
    if silent:
        try:
            down = scheduler.down_nodes({name for _, name in silent})
        except SchedulerUnavailable as error:
            log.warning("states of nodes are not known: %s", error)
        else:
            reason = "the scheduler has given it up"
            found += [LostNode(pilot, name, reason) for pilot, name in silent if name in down]
    return found


def _held(pilot: PilotRow, job: Job) -> set[str]:
    """Names of the pilot's nodes that the job has.

    Where the scheduler names no nodes, or not the one on which the pilot lives, it tells nothing.
    """
    names = {node["name"] for node in pilot.nodes}
    if not pilot.nodes or pilot.nodes[0]["name"] not in job.nodes:
        return names
    return names & set(job.nodes)


def give_up(
    store: Store,
    client: redis.Redis,
    prefix: str,
    lost: LostNode,
    *,
    record: Callable[[Sequence[Ended]], object],
    read: Read = outboxes.read,
) -> None:
    """Record what the node's worker has left, then let engine and pilot know that it is lost.

    Harmless when done twice.

    Args:
        store: the site's database.
        client: Redis.
        prefix: of the site's keys.
        lost: the node.
        record: records outcomes in committed transactions.
        read: reads the outboxes in a directory.

    Raises:
        Hangs: a file system does not answer yet; the next poll does it.
        redis.RedisError: Redis did not answer; the next poll does it.
        StoreError: the database did not answer.
        NotFound: the pilot's allocation is not there.
    """
    pilot, reason = lost.pilot, lost.reason
    with store.read() as conn:
        allocation = allocations.get_allocation(conn, pilot.allocation)
    unread = record_outboxes(store, allocation, [pilot.id], record, node=lost.node, read=read)
    if unread:
        reason += f" (outcomes could not be read: {'; '.join(unread)})"
    word = WorkerLost(pilot.id, lost.node, reason, False, store.clock())
    control = keys.control(prefix, pilot.id)
    order = encode(PilotOrder("lose", reason, lost.node))
    waiting = {
        one if isinstance(one, bytes) else one.encode() for one in client.lrange(control, 0, -1)
    }
    with client.pipeline() as pipe:
        if order.encode() not in waiting:
            pipe.rpush(control, order)
        pipe.rpush(keys.inbox(prefix), encode(Report(records=((0, word),))))
        pipe.execute()
