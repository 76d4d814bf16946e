"""Nodes of living pilots that the scheduler has given up: their pilots take that up (R4)."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import redis

from balsam_celery import keys
from balsam_celery.errors import SchedulerUnavailable
from balsam_celery.schedulers.base import Job, Scheduler
from balsam_celery.service.orders import give_beside
from balsam_celery.store import allocations, scans
from balsam_celery.store.allocations import LIVE_PILOTS
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import PilotRow
from balsam_celery.wire import PilotOrder, Report, WorkerLost, encode

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LostNode:
    """A node of a pilot that the scheduler counts on no more."""

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


def give_up(store: Store, client: redis.Redis, prefix: str, lost: LostNode) -> None:
    """Let engine and pilot know that nothing may start on the node any more.

    Its attempts stay where they are until the pilot has confirmed their end: a node that was set
    down may work on. The pilot knows whether the node's keeper still answers, and has it end all;
    of one that does not it knows when that can be over (:mod:`balsam_celery.cutoff`).

    Harmless when done twice.

    Raises:
        redis.RedisError: Redis did not answer; the next poll does it.
    """
    pilot = lost.pilot
    give_beside(client, prefix, pilot.id, PilotOrder("lose", lost.reason, lost.node))
    word = WorkerLost(pilot.id, lost.node, lost.reason, False, store.clock(), confirmed=False)
    client.rpush(keys.inbox(prefix), encode(Report(records=((0, word),))))
