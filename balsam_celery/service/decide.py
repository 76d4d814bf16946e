"""What packing decides from the rows as they are; nothing is written here.

The service carries it out (:mod:`.pack`), ``balsam pack --dry-run`` prints it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection

from balsam_celery.decisions import PackingDecision
from balsam_celery.errors import SchedulerError
from balsam_celery.limits import (
    Policy,
    Queue,
    could_hold,
    fits_some_queue,
    policy_of,
    queues_of,
)
from balsam_celery.packing import Demand, Existing, Plan, Waiting, Window, pack
from balsam_celery.plans import ENDLESS
from balsam_celery.schedulers.base import Scheduler
from balsam_celery.service import givingback
from balsam_celery.service.backoff import Pause, pauses
from balsam_celery.service.estimates import estimates
from balsam_celery.service.existing import existing
from balsam_celery.settings import Settings
from balsam_celery.store import allocations, scans
from balsam_celery.store.allocations import LIVE_ALLOCATIONS
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationRow, AllocationState
from balsam_celery.store.scans import BacklogShape

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Decision:
    """What packing decides now.

    Attributes:
        plan: allocations to ask for, to give up, to drain.
        hopeless: shapes that no allocation could ever hold, with the reason.
        paused: queues that were wanted and are asked for nothing now, by name.
        live: allocations that wait or run.
        budget: node-seconds left for new allocations, ``None``: no limit.
        windows: idle nodes that were counted on.
        told: all that packing was told, and what it answered.
        queues: of the site.
    """

    plan: Plan = field(default_factory=Plan)
    hopeless: dict[BacklogShape, str] = field(default_factory=dict)
    paused: dict[str, Pause] = field(default_factory=dict)
    live: tuple[AllocationRow, ...] = ()
    budget: float | None = None
    windows: tuple[Window, ...] = ()
    told: PackingDecision | None = None
    queues: tuple[Queue, ...] = ()

    def full(self, queue: str) -> int:
        """``max_running`` of a queue where as many run; 0: it may run more."""
        most = next((one.max_running for one in self.queues if one.name == queue), 0)
        running = sum(
            row.queue == queue and row.state is AllocationState.RUNNING for row in self.live
        )
        return most if running >= most else 0

    def paused_for(self, waits: Waiting) -> dict[str, Pause]:
        """The pauses that are why nothing is asked for tasks that wait; none where a limit is."""
        if waits.code != "no-queue" or self.told is None:
            return {}
        policy, demand = self.told.policy, waits.demand
        needed = demand.needs(policy.kill_grace)
        return {
            queue.name: self.paused[queue.name]
            for queue in self.queues
            if queue.name in self.paused and could_hold(queue, demand.resources, needed, policy)
        }


def decide(
    conn: Connection,
    settings: Settings,
    now: float,
    windows: Sequence[Window] = (),
    *,
    releases: bool = False,
) -> Decision:
    """Decide by what ``conn`` shows at ``now``.

    ``windows``: idle nodes, where the scheduler told them; ``releases``: it takes nodes out of
    running jobs.
    """
    known = estimates(conn, now)
    shapes = scans.backlog(conn, now=now, applications=known.learned.applications)
    reasons = {
        shape: fits_some_queue(shape.resources, shape.wall_time, settings) for shape in shapes
    }
    hopeless = {shape: reason for shape, reason in reasons.items() if reason is not None}
    backlog = [
        Demand(
            shape.resources,
            shape.wall_time,
            shape.count,
            shape.priority,
            known.mean(shape),
            shape.restartable,
            max(0.0, now - shape.oldest),
            # as many of them as there are must fit, hence also the longest
            known.fits(replace(shape, expected_time=shape.longest)),
        )
        for shape in shapes
        if shape not in hopeless
    ]
    live = allocations.list_allocations(conn, LIVE_ALLOCATIONS)
    policy = _with_budget(conn, settings, releases and not givingback.refuses(conn, now))
    empty = Decision(
        hopeless=hopeless, live=tuple(live), budget=policy.budget, windows=tuple(windows)
    )
    if not backlog and not live:
        return empty
    queues = queues_of(settings)
    there = existing(conn, settings, live, known, now)
    plan, paused = _plan(conn, backlog, queues, there, policy, windows, now)
    asked = tuple(queue for queue in queues if queue.name not in paused)
    told = PackingDecision(
        now,
        tuple(backlog),
        asked,
        tuple(there),
        policy,
        tuple(windows),
        plan.requests,
        plan.notes,
        plan.release,
    )
    return replace(empty, plan=plan, paused=paused, told=told, queues=queues)


def _plan(
    conn: Connection,
    backlog: Sequence[Demand],
    queues: Sequence[Queue],
    there: Sequence[Existing],
    policy: Policy,
    windows: Sequence[Window],
    now: float,
) -> tuple[Plan, dict[str, Pause]]:
    paused: dict[str, Pause] = {}
    while True:
        plan = pack(backlog, queues, there, policy, windows=windows)
        asked = {request.queue for request in plan.requests}
        later = {queue: pause for queue in asked if (pause := pauses(conn, queue, now))}
        if not later:
            return plan, paused
        paused |= later
        # what a queue that pauses was to serve, another one may
        queues = tuple(queue for queue in queues if queue.name not in later)


def _with_budget(conn: Connection, settings: Settings, releases: bool) -> Policy:
    policy = policy_of(settings, releases=releases)
    if not settings.packing.budget:
        return policy
    left = settings.packing.budget * 3600 - allocations.charged(conn)
    return replace(policy, budget=left)


def wants_windows(decision: Decision, scheduler: Scheduler, *, queued: bool = True) -> bool:
    """Something is asked for, and the scheduler can tell what would start at once.

    ``queued``: also where tasks wait for allocations that are queued.
    """
    waits = {row.id for row in decision.live if row.state is AllocationState.QUEUED}
    wanted = bool(decision.plan.requests) or (
        queued and any(flow.allocation in waits for flow in decision.plan.flows)
    )
    return wanted and scheduler.capabilities.tells_idle


def idle_windows(scheduler: Scheduler) -> tuple[Window, ...]:
    """Idle nodes by queue; none when the scheduler does not say.  Never in a transaction."""
    try:
        told = scheduler.idle()
    except SchedulerError as error:
        log.warning("idle nodes are not known: %s", error)
        return ()
    return tuple(
        Window(one.queue, one.nodes, ENDLESS if one.seconds is None else float(one.seconds))
        for one in told
    )


def foresee(store: Store, scheduler: Scheduler, settings: Settings) -> Decision:
    """What the service would decide now.

    Raises:
        StoreError: the database did not answer.
    """
    releases = scheduler.capabilities.releases_nodes
    with store.read() as conn:
        decision = decide(conn, settings, store.clock(), releases=releases)
    if not wants_windows(decision, scheduler):
        return decision
    windows = idle_windows(scheduler)
    with store.read() as conn:
        return decide(conn, settings, store.clock(), windows, releases=releases)
