"""Explains packing: why each allocation is there, and what the backlog still needs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from balsam_celery.packing import Demand, Request
from balsam_celery.service.backoff import Pause
from balsam_celery.service.decide import Decision
from balsam_celery.service.explain import ask_scheduler, foreseen, look_at_site
from balsam_celery.service.why_allocations import AllocationFacts, why_allocation
from balsam_celery.service.why_backlog import Need, why_need
from balsam_celery.service.why_facts import Job, SiteFacts, Why
from balsam_celery.site import Site
from balsam_celery.store import allocations, standing
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState


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


def explain_allocations(store: Store, site: Site) -> Explained:
    """Why each allocation is where it is, and what becomes of the backlog.

    Raises:
        StoreError: the database did not answer.
    """
    decision, now = foreseen(store, site), store.clock()
    with store.read() as conn:
        failed = allocations.came_to_nothing(conn, now - allocations.SHOWN_FOR)
        told_of = [row.id for row in (*decision.live, *failed)]
        # of several pilots of one allocation the latest stays
        found = allocations.list_pilots(conn, allocations=told_of)
        pilots = {one.allocation: one for one in found}
        running = standing.running_on(conn, [pilot.id for pilot in pilots.values()])
    queued = [row for row in decision.live if row.state is AllocationState.QUEUED]
    jobs = ask_scheduler(site, queued) if queued else {}
    planned: Counter[str] = Counter()
    for flow in decision.plan.flows:
        if flow.allocation is not None:
            planned[flow.allocation] += flow.count
    notes = {note.id: note for note in decision.plan.notes}
    told = []
    for row in (*decision.live, *failed):
        pilot = pilots.get(row.id)
        facts = AllocationFacts(
            row,
            now,
            replace(jobs.get(row.id, Job()), full=decision.full(row.queue)),
            pilot=pilot,
            running=running.get(pilot.id, 0) if pilot is not None else 0,
            planned=planned[row.id],
            note=notes.get(row.id),
        )
        told.append((facts, why_allocation(facts)))
    needs = tuple((need, why_need(need, now)) for need in needs_of(decision))
    return Explained(tuple(told), needs, look_at_site(store, site), now)


def needs_of(decision: Decision) -> list[Need]:
    """The backlog by shape, with what is planned for each; the first served first."""
    plan = decision.plan
    counts: Counter[Demand] = Counter()
    planned: dict[Demand, Counter[str]] = {}
    asked: dict[Demand, list[tuple[Request, int]]] = {}
    held: dict[Demand, tuple[str, str]] = {}
    paused: dict[Demand, dict[str, Pause]] = {}
    for flow in plan.flows:
        demand = _shape(flow.demand)
        counts[demand] += flow.count
        if flow.allocation is not None:
            planned.setdefault(demand, Counter())[flow.allocation] += flow.count
        elif flow.request is not None:
            request = plan.requests[flow.request]
            asked.setdefault(demand, []).append((request, flow.count))
    for one in plan.waiting:
        demand = _shape(one.demand)
        counts[demand] += one.demand.count
        held[demand] = (one.code, one.reason)
        paused[demand] = decision.paused_for(one)
    needs = [
        Need(
            demand.resources,
            demand.wall_time,
            demand.priority,
            counts[demand],
            tuple(planned.get(demand, {}).items()),
            tuple(asked.get(demand, ())),
            held.get(demand),
            paused.get(demand, {}),
        )
        for demand in sorted(counts, key=lambda one: -one.priority)
    ]
    needs += [
        Need(
            shape.resources,
            shape.wall_time,
            shape.priority,
            shape.count,
            held=("impossible", reason),
        )
        for shape, reason in decision.hopeless.items()
    ]
    return needs


def _shape(demand: Demand) -> Demand:
    return replace(demand, count=0, waited=0.0)
