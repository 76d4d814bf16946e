"""Our own planner: the very functions of the service, fed from a simulation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from balsam_celery.bitset import members
from balsam_celery.lanes import Held, lanes
from balsam_celery.ledger import Ledger
from balsam_celery.packing import Demand, Existing, Lane, Plan, Window, pack
from balsam_celery.pilotfree import Holding, PilotFree
from balsam_celery.placement import Candidate, Pass, place
from balsam_celery.plans import ENDLESS
from balsam_celery.runtimes import end_of
from balsam_celery.simulate.state import Allocation, State


class Planning:
    """``packing.pack`` and ``placement.place`` as the service calls them."""

    name = "balsam_celery"
    idle_timeout: float | None = None
    interval: float | None = None

    def place(self, state: State, now: float) -> Pass:
        """One placement pass over the first of the backlog."""
        return place(
            state.ledger,
            candidates(state, now),
            now,
            ageing=state.machine.ageing,
            tell_all=False,
        )

    def pack(self, state: State, now: float) -> Plan:
        """One look at the backlog."""
        machine = state.machine
        return pack(
            list(backlog(state, now)),
            machine.queues,
            [existing(state, one, now) for one in state.allocations.values()],
            replace(machine.policy, release_after=machine.release_after, budget=state.budget),
            windows=windows(state),
        )


def candidates(state: State, now: float) -> Iterator[Candidate]:
    """Of each kind the oldest tasks, as many as could start and one more (for a reservation)."""
    total = len(state.machine.node.cores)
    grace = state.machine.policy.kill_grace
    for (number, step), waiting in state.backlog.kinds.items():
        kind = state.workload.kinds[number]
        wanted = kind.resources
        expected = state.estimates.fits(kind, _ran(step))
        needed: float = kind.wall_time
        if kind.restartable and expected is not None:
            needed = min(needed, expected)
        cores, nodes = free(state.ledger, now + needed + grace)
        if wanted.is_gang:
            most = nodes // wanted.num_nodes
        else:
            most = cores // max(1, wanted.cores_on(total))
        for task in islice(waiting.first(most + 1), most + 1):
            yield Candidate(
                f"{task:07d}",
                state.attempts[task] + 1,
                wanted,
                kind.wall_time,
                grace,
                kind.priority,
                state.backlog.ready[task],
                kind.restartable,
                expected,
            )


def free(ledger: Ledger, until: float) -> tuple[int, int]:
    """Free cores, and nodes on which nothing runs, where something may start that ends then."""
    cores = nodes = 0
    for pilot in ledger.pilots.values():
        if not pilot.draining and until <= pilot.deadline:
            cores += pilot.free_cores
            nodes += pilot.free_nodes.bit_count()
    return cores, nodes


def backlog(state: State, now: float) -> Iterator[Demand]:
    """What waits, by shape."""
    for (number, step), waiting in state.backlog.kinds.items():
        kind = state.workload.kinds[number]
        yield Demand(
            kind.resources,
            kind.wall_time,
            len(waiting),
            kind.priority,
            state.estimates.mean(kind, _ran(step)),
            kind.restartable,
            now - state.backlog.ready[next(waiting.first(1))],
            state.estimates.fits(kind, _ran(step)),
        )


def _ran(step: int) -> float | None:
    return None if step < 0 else end_of(step)


def windows(state: State) -> list[Window]:
    """What the scheduler tells to be idle, in each queue."""
    return [
        Window(queue.name, idle.nodes, min(idle.seconds, ENDLESS))
        for queue in state.machine.queues
        for idle in state.idle
    ]


def existing(state: State, allocation: Allocation, now: float) -> Existing:
    """An allocation as packing sees it (as ``service.existing`` builds it from SQL)."""
    policy = state.machine.policy
    each: tuple[Lane, ...] = ()
    head = ""
    if allocation.state == "queued":
        usable = float(policy.usable(allocation.wall_time))
    elif allocation.state == "starting":
        age = max(now - (allocation.started or now), policy.startup_margin)
        usable = allocation.wall_time - age - policy.drain_margin
    else:
        pilot = state.ledger.pilots[allocation.id]
        usable = 0.0 if allocation.draining else pilot.deadline - now
        each = _lanes(state, allocation, pilot, now)
        head = pilot.node(0).capacity.name
    return Existing(
        allocation.id,
        allocation.queue,
        "queued" if allocation.state == "queued" else "running",
        allocation.nodes - allocation.given_back,
        max(0.0, usable),
        state.machine.node,
        each,
        now - allocation.submitted if allocation.state == "queued" else 0.0,
        None if allocation.idle_since is None else now - allocation.idle_since,
        head,
    )


def _lanes(state: State, allocation: Allocation, pilot: PilotFree, now: float) -> tuple[Lane, ...]:
    work, remaining = state.workload, state.estimates.remaining

    def held(holding: Holding) -> Held:
        left = holding.until - now
        kind, ran = state.backlog.key(int(holding.id))
        likely = remaining(work.kinds[kind], _ran(ran), now - holding.since, left)
        return Held(tuple(share.node for share in holding.shares), left, likely)

    idle = {
        pilot.node(place).capacity.name: now - since
        for since, places in allocation.idle_nodes.items()
        for place in members(places)
    }
    return lanes(pilot.nodes, map(held, pilot.holdings.values()), idle)
