"""Our own planner: the very functions of the service, fed from a simulation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from balsam_celery.ledger import Ledger
from balsam_celery.packing import Demand, Existing, Lane, Plan, Window, pack
from balsam_celery.pilotfree import Holding, PilotFree
from balsam_celery.placement import Candidate, Pass, place
from balsam_celery.simulate.state import Allocation, State
from balsam_celery.simulate.workload import Kind


class Planning:
    """``packing.pack`` and ``placement.place`` as the service calls them."""

    name = "balsam_celery"
    idle_timeout: float | None = None
    interval: float | None = None

    def place(self, state: State, now: float) -> Pass:
        """One placement pass over the first of the backlog."""
        return place(state.ledger, candidates(state), now, tell_all=False)

    def pack(self, state: State, now: float) -> Plan:
        """One look at the backlog."""
        return pack(
            list(backlog(state, now)),
            state.machine.queues,
            [existing(state, one, now) for one in state.allocations.values()],
            state.machine.policy,
            windows=windows(state),
        )


def expected_time(state: State, kind: Kind, cut: bool) -> float | None:
    """What a task of ``kind`` is expected to run; one that was cut is not trusted again."""
    return None if cut else state.estimates.expected(kind)


def candidates(state: State) -> Iterator[Candidate]:
    """Of each kind the oldest tasks, as many as could start and one more (for a reservation)."""
    cores, nodes = free(state.ledger)
    total = len(state.machine.node.cores)
    for (number, cut), waiting in state.backlog.kinds.items():
        kind = state.workload.kinds[number]
        wanted = kind.resources
        if wanted.is_gang:
            most = nodes // wanted.num_nodes
        else:
            most = cores // max(1, wanted.cores_on(total))
        expected = expected_time(state, kind, cut)
        for task in islice(waiting.first(most + 1), most + 1):
            yield Candidate(
                f"{task:07d}",
                state.attempts[task] + 1,
                wanted,
                kind.wall_time,
                state.machine.policy.kill_grace,
                kind.priority,
                state.backlog.ready[task],
                kind.restartable,
                expected,
            )


def free(ledger: Ledger) -> tuple[int, int]:
    """Free cores, and nodes on which nothing runs, where something may start."""
    pilots = [pilot for pilot in ledger.pilots.values() if not pilot.draining]
    cores = sum(pilot.free_cores for pilot in pilots)
    return cores, sum(pilot.free_nodes.bit_count() for pilot in pilots)


def backlog(state: State, now: float) -> Iterator[Demand]:
    """What waits, by shape."""
    for (number, cut), waiting in state.backlog.kinds.items():
        kind = state.workload.kinds[number]
        yield Demand(
            kind.resources,
            kind.wall_time,
            len(waiting),
            kind.priority,
            expected_time(state, kind, cut),
            kind.restartable and not cut,
            now - state.backlog.ready[next(waiting.first(1))],
        )


def windows(state: State) -> list[Window]:
    """What the scheduler tells to be idle, in each queue."""
    return [
        Window(queue.name, idle.nodes, idle.seconds)
        for queue in state.machine.queues
        for idle in state.idle
    ]


def existing(state: State, allocation: Allocation, now: float) -> Existing:
    """An allocation as packing sees it (as ``service.existing`` builds it from SQL)."""
    policy = state.machine.policy
    lanes: tuple[Lane, ...] = ()
    if allocation.state == "queued":
        usable = float(policy.usable(allocation.wall_time))
    elif allocation.state == "starting":
        age = max(now - (allocation.started or now), policy.startup_margin)
        usable = allocation.wall_time - age - policy.drain_margin
    else:
        pilot = state.ledger.pilots[allocation.id]
        usable = 0.0 if allocation.draining else pilot.deadline - now
        lanes = _lanes(state, pilot, allocation.nodes, now)
    return Existing(
        allocation.id,
        allocation.queue,
        "queued" if allocation.state == "queued" else "running",
        allocation.nodes,
        max(0.0, usable),
        state.machine.node,
        lanes,
        now - allocation.submitted if allocation.state == "queued" else 0.0,
        None if allocation.idle_since is None else now - allocation.idle_since,
    )


def _lanes(state: State, pilot: PilotFree, nodes: int, now: float) -> tuple[Lane, ...]:
    cores = len(state.machine.node.cores)
    free: dict[str, int] = {}
    until: dict[str, float] = {}
    likely: dict[str, float] = {}
    for holding in pilot.holdings.values():
        expected = _likely_end(state, holding, now)
        for share in holding.shares:
            name = share.node
            free[name] = free.get(name, cores) - len(share.cores)
            until[name] = max(until.get(name, now), holding.until)
            likely[name] = max(likely.get(name, now), expected)
    busy = [Lane(left, until[name] - now, likely[name] - now) for name, left in free.items()]
    return (*busy, *[Lane(cores)] * (nodes - len(free)))


def _likely_end(state: State, holding: Holding, now: float) -> float:
    """When it is likely to end; what has outlived its time takes half as long again."""
    task = int(holding.id)
    kind = state.workload.kinds[state.workload.kind[task]]
    expected = state.estimates.expected(kind)
    if expected is None:
        return holding.until
    left = holding.since + expected - now
    return min(holding.until, now + (left if left > 0 else expected / 2))
