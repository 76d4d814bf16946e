"""Explains packing: why each allocation is there, and what the backlog still needs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import Connection

from balsam_celery.packing import Demand, Request
from balsam_celery.service import pack
from balsam_celery.service.explain import ask_scheduler, look_at_site
from balsam_celery.service.pack import Outlook
from balsam_celery.service.why_allocations import AllocationFacts, why_allocation
from balsam_celery.service.why_backlog import Need, why_need
from balsam_celery.service.why_facts import Job, SiteFacts, Why
from balsam_celery.site import Site
from balsam_celery.store import allocations, standing
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationRow, AllocationState, PilotRow


@dataclass(frozen=True, slots=True)
class Explained:
    """What packing does now.

    Attributes:
        allocations: those that have not ended, oldest first, then those that came to nothing
            within the last hour; each with why it is where it is.
        backlog: what waits for slots, by shape, and why it is, or is not, asked for.
        site: who moves things on.
        now: seconds since the epoch.
    """

    allocations: tuple[tuple[AllocationFacts, Why], ...]
    backlog: tuple[tuple[Need, Why], ...]
    site: SiteFacts
    now: float


@dataclass(frozen=True, slots=True)
class _Read:
    """What is in SQL."""

    look: Outlook
    failed: list[AllocationRow]
    pilots: dict[str, PilotRow]
    running: dict[str, int]


def explain_allocations(store: Store, site: Site) -> Explained:
    """Why each allocation is where it is, and what becomes of the backlog.

    Raises:
        StoreError: the database did not answer.
    """
    now = store.clock()
    with store.read() as conn:
        read = _read(conn, site, now)
    queued = [row for row in read.look.live if row.state is AllocationState.QUEUED]
    jobs = ask_scheduler(site, queued) if queued else {}
    planned: Counter[str] = Counter()
    for flow in read.look.plan.flows:
        if flow.allocation is not None:
            planned[flow.allocation] += flow.count
    told = []
    for row in (*read.look.live, *read.failed):
        pilot = read.pilots.get(row.id)
        facts = AllocationFacts(
            row,
            now,
            jobs.get(row.id, Job()),
            pilot=pilot,
            running=read.running.get(pilot.id, 0) if pilot is not None else 0,
            planned=planned[row.id],
            unneeded=row.id in read.look.plan.cancel,
        )
        told.append((facts, why_allocation(facts)))
    needs = tuple((need, why_need(need, read.look.paused, now)) for need in needs_of(read.look))
    return Explained(tuple(told), needs, look_at_site(store, site), now)


def _read(conn: Connection, site: Site, now: float) -> _Read:
    # of several pilots of one allocation the latest stays
    pilots = {one.allocation: one for one in allocations.list_pilots(conn)}
    return _Read(
        pack.look(conn, site.settings, now),
        allocations.came_to_nothing(conn, now - allocations.SHOWN_FOR),
        pilots,
        standing.running_on(conn, [pilot.id for pilot in pilots.values()]),
    )


def needs_of(look: Outlook) -> list[Need]:
    """The backlog by shape, with what is planned for each; the first served first."""
    plan = look.plan
    counts: dict[Demand, int] = {}
    planned: dict[Demand, Counter[str]] = {}
    asked: dict[Demand, list[tuple[Request, int]]] = {}
    for flow in plan.flows:
        demand = flow.demand
        counts[demand] = counts.get(demand, 0) + flow.count
        if flow.allocation is not None:
            planned.setdefault(demand, Counter())[flow.allocation] += flow.count
        elif flow.request is not None:
            request = plan.requests[flow.request]
            asked.setdefault(demand, []).append((request, flow.count))
    held = {demand: ("held", reason) for demand, reason in plan.waiting}
    needs = [
        Need(
            demand.resources,
            demand.wall_time,
            demand.priority,
            max(demand.count, counts.get(demand, 0)),
            tuple(planned.get(demand, {}).items()),
            tuple(asked.get(demand, ())),
            held.get(demand),
        )
        for demand in dict.fromkeys((*counts, *held))
    ]
    needs += [
        Need(shape.resources, shape.wall_time, 0, shape.count, held=("impossible", reason))
        for shape, reason in look.hopeless.items()
    ]
    return needs
