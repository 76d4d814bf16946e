"""Explains a task from what is in SQL and what the scheduler says.

Nothing is written. SQL is read first, in one transaction; the scheduler and Redis are asked after
it, with their time-outs, and what they do not answer is told as not known.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import redis
from sqlalchemy import Connection

from balsam_celery.celeryapp import redis_client
from balsam_celery.errors import BalsamError
from balsam_celery.limits import fits_some_queue
from balsam_celery.packing import Demand, Flow
from balsam_celery.placement import fits_ever
from balsam_celery.redisserver import answers
from balsam_celery.schedulers import make_scheduler
from balsam_celery.schedulers.base import Scheduler
from balsam_celery.service import leading, place, window
from balsam_celery.service.decide import Decision, decide, foresee
from balsam_celery.service.estimates import estimates
from balsam_celery.service.why import why
from balsam_celery.service.why_facts import Job, SiteFacts, Standing, TaskFacts, Why
from balsam_celery.site import Site, check_runs_here
from balsam_celery.states import PLACEABLE
from balsam_celery.store import allocations, lease, queries, standing
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationRow, AllocationState, PilotRow, PilotState, TaskRow
from balsam_celery.store.scans import Waiting

#: Seconds that Redis is given to answer.
_REDIS_TIMEOUT = 2.0
#: Parents that are looked at; the others are counted.
_PARENTS = 3


def explain_task(store: Store, site: Site, id: str) -> tuple[TaskRow, Why]:
    """The task of that id, or the only one whose id starts so, and why it is where it is.

    Raises:
        NotFound: there is none.
        InvalidInput: several ids start so.
        StoreError: the database did not answer.
    """
    with store.read() as conn:
        facts = _task_facts(conn, site, queries.get_task(conn, id), store.clock())
    row, found = facts.row, facts.standing
    is_due = row.state in PLACEABLE and row.kind == "program" and row.not_before <= facts.now
    if is_due and not found.hopeless:
        decision = foreseen(store, site)
        found = _planned(found, row, decision)
        if found.planned is not None:
            found = replace(found, pilot=_pilot_in(store, found.planned.id))
        if found.planned is not None and found.planned.state is AllocationState.QUEUED:
            job = ask_scheduler(site, [found.planned])[found.planned.id]
            found = replace(found, job=replace(job, full=decision.full(found.planned.queue)))
    return row, why(replace(facts, standing=found, site=look_at_site(store, site)))


def _pilot_in(store: Store, allocation: str) -> PilotRow | None:
    """The pilot that runs in it; the latest, if there are several."""
    with store.read() as conn:
        live = allocations.list_pilots(conn, [PilotState.LIVE], allocation=allocation)
    return live[-1] if live else None


def foreseen(store: Store, site: Site) -> Decision:
    """What packing would decide now.

    Raises:
        StoreError: the database did not answer.
    """
    try:
        scheduler = _scheduler(site)
    except BalsamError:
        # which nodes are idle is not known here; all else is
        with store.read() as conn:
            return decide(conn, site.settings, store.clock())
    return foresee(store, scheduler, site.settings)


def look_at_site(store: Store, site: Site) -> SiteFacts:
    """Whether service, beat and Redis are there.

    Raises:
        StoreError: the database did not answer.
    """
    try:
        with redis_client(site, timeout=_REDIS_TIMEOUT) as client:
            trouble = answers(client)
    except (BalsamError, redis.RedisError) as error:
        trouble = str(error)
    return SiteFacts(
        service=lease.holder(store, leading.NAME) is not None,
        beat=lease.holder(store, "beat") is not None,
        redis=trouble,
    )


def ask_scheduler(site: Site, rows: Collection[AllocationRow]) -> dict[str, Job]:
    """What the scheduler says of the jobs of ``rows``, by the allocation's id."""
    try:
        jobs = _scheduler(site).jobs([row.native_id for row in rows if row.native_id])
    except BalsamError as error:
        return {row.id: Job(trouble=str(error)) for row in rows}
    told = {row.id: jobs.get(row.native_id or "") for row in rows}
    return {id: Job(job.expected_start if job else None) for id, job in told.items()}


def _scheduler(site: Site) -> Scheduler:
    settings = site.settings
    if settings.scheduler.kind == "local":
        check_runs_here(site)  # its files are on that host's disk
    return make_scheduler(settings.scheduler.kind, settings=settings, local_dir=site.local_dir)


def _task_facts(conn: Connection, site: Site, row: TaskRow, now: float) -> TaskFacts:
    pilot = standing.pilot_of(conn, row.pilot) if row.pilot else None
    facts = TaskFacts(
        row,
        now,
        site.settings.site.kill_grace,
        site.settings.retry.retry_on,
        attempt=queries.last_attempts(conn, [row.id]).get(row.id) if row.attempt else None,
        parents=tuple(standing.unmet_parents(conn, row.id, limit=_PARENTS)),
        pilot=pilot,
        allocation=allocations.get_allocation(conn, pilot.allocation) if pilot else None,
    )
    if row.state in PLACEABLE and row.kind == "program" and row.not_before <= now:
        return replace(facts, standing=_standing(conn, site, row, now))
    return facts


def _standing(conn: Connection, site: Site, row: TaskRow, now: float) -> Standing:
    """What placement, asked now, makes of a program that waits for slots."""
    settings = site.settings
    before = standing.ahead(conn, row, window.SHAPE, now=now, ageing=settings.placement.ageing)
    hopeless = fits_some_queue(row.resources, row.wall_time, settings)
    if hopeless is not None:
        return Standing(hopeless, before)
    starts, found = _placed(conn, site, row, now)
    return replace(found, ahead=before, starts=starts)


def _planned(found: Standing, row: TaskRow, decision: Decision) -> Standing:
    """``found`` with what packing makes of the task."""
    plan = decision.plan
    flow = flow_of(plan.flows, row, found.ahead.of_shape)
    if flow is None:
        waits = next((one for one in plan.waiting if is_of(one.demand, row)), None)
        if waits is None:
            return found
        return replace(found, held=(waits.code, waits.reason), paused=decision.paused_for(waits))
    if flow.request is not None:
        request = plan.requests[flow.request]
        full = decision.full(request.queue) if request.code != "window" else 0
        return replace(found, request=request, job=Job(full=full))
    by_id = {one.id: one for one in decision.live}
    return replace(found, planned=by_id.get(flow.allocation or ""))


def _placed(conn: Connection, site: Site, row: TaskRow, now: float) -> tuple[str, Standing]:
    """The pilot in which the task would start, and what placement keeps for it."""
    settings = site.settings
    grace = settings.site.kill_grace
    limits = place.Limits(site.run_dir, grace, settings.pilot.drain_margin)
    ledger = place.rebuild(conn, limits, lock=False)
    rules = window.Rules(grace, settings.placement.ageing, tell_all=True)
    decided = window.decide(conn, ledger, rules, now).decided
    starts = [one.pilot for one in decided.placements if one.id == row.id]
    kept = [one for one in decided.reservations if one.id == row.id]
    known = estimates(conn, now)
    [candidate] = window.candidates_of([_waiting(row)], grace, 1, known).values()
    fitting = [id for id, free in ledger.pilots.items() if fits_ever(free, candidate, now)]
    pilots: list[PilotRow] = [allocations.get_pilot(conn, id) for id in fitting]
    return (starts[0] if starts else ""), Standing(
        reservation=kept[0] if kept else None, fits=tuple(pilots)
    )


def _waiting(row: TaskRow) -> Waiting:
    return Waiting._make(getattr(row, name) for name in Waiting._fields)


def flow_of(flows: Collection[Flow], row: TaskRow, position: int) -> Flow | None:
    """The flow in which a task is, before which ``position`` tasks of its shape go."""
    own = sorted((f for f in flows if is_of(f.demand, row)), key=lambda f: -f.demand.priority)
    for flow in own:
        position -= flow.count
        if position < 0:
            return flow
    return None


def is_of(demand: Demand, row: TaskRow) -> bool:
    """The task is one of the demand's, as far as its shape tells."""
    # packing does not tell tasks apart by how they are pinned
    wanted = replace(row.resources, cpu_affinity=demand.resources.cpu_affinity)
    return (wanted, row.wall_time) == (demand.resources, demand.wall_time)
