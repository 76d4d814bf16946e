"""Strategies for backlogs, queues, policies and allocations; plans carried out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from balsam_celery.limits import Policy, Queue
from balsam_celery.packing import Demand, Existing, Lane, Plan, Window, pack
from tests.planning.values import node, resources

POLICY = Policy(
    max_allocations=10,
    startup_margin=30,
    drain_margin=15,
    kill_grace=5,
    efficiency=0.9,
    haste=0.0,
)


@dataclass(frozen=True)
class Case:
    """All that packing is told."""

    backlog: list[Demand]
    queues: list[Queue]
    existing: list[Existing]
    policy: Policy
    windows: list[Window]

    def pack(self) -> Plan:
        return pack(self.backlog, self.queues, self.existing, self.policy, windows=self.windows)

    @property
    def by_name(self) -> dict[str, Queue]:
        return {queue.name: queue for queue in self.queues}

    def carried_out(self, plan: Plan) -> Case:
        """As it is right afterwards: the requests are queued, what was given up is ending."""
        made = [
            Existing(
                f"new{number}",
                request.queue,
                "queued",
                request.nodes,
                self.policy.usable(request.wall_time),
                self.by_name[request.queue].node,
            )
            for number, request in enumerate(plan.requests)
        ]
        over = {*plan.cancel, *plan.drain}
        there = [replace(a, usable=0.0) if a.id in over else a for a in self.existing]
        charged = sum(request.nodes * request.wall_time for request in plan.requests)
        budget = self.policy.budget
        policy = replace(self.policy, budget=None if budget is None else budget - charged)
        return replace(self, existing=there + made, policy=policy)


@st.composite
def demands(draw: st.DrawFn) -> list[Demand]:
    least = draw(st.sampled_from([1, 1, 1, 1, 1, 1, 1, 0]))
    demand = st.builds(
        Demand,
        resources=resources(),
        wall_time=st.sampled_from([5, 60, 300, 2000, 9000]),
        count=st.sampled_from([1, 2, 3, 7, 20, 100, 500, 0]),
        priority=st.sampled_from([0, 0, 1]),
        expected_time=st.sampled_from([None, None, 0.1, 50.0, 700.0]),
        restartable=st.booleans(),
        waited=st.sampled_from([0.0, 100.0]),
        fits=st.sampled_from([None, 0.1, 120.0, 1500.0]),
    )
    return draw(st.lists(demand, min_size=least, max_size=6))


@st.composite
def queues(draw: st.DrawFn) -> list[Queue]:
    made = []
    for number in range(draw(st.integers(1, 3))):
        least, least_time = draw(st.integers(1, 3)), draw(st.sampled_from([1, 60, 300]))
        # mostly what tasks ask for, or no queue could take them
        cores, gpus = draw(st.sampled_from([8, 8, 4, 1])), draw(st.sampled_from([4, 4, 2, 0]))
        memory, licences = draw(st.sampled_from([10, 10, 0])), draw(st.sampled_from([3, 3, 0]))
        made.append(
            Queue(
                f"q{number}",
                least,
                least + draw(st.integers(0, 30)),
                least_time,
                least_time + draw(st.sampled_from([0, 200, 3000, 10_000])),
                draw(st.sampled_from([4, 3, 2, 1, 0])),
                draw(st.sampled_from([4, 3, 2, 1, 0])),
                node("n", cores, gpus, memory, licences),
            )
        )
    return made


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    return replace(
        POLICY,
        max_allocations=draw(st.sampled_from([6, 10, 3, 2, 0])),
        idle_timeout=draw(st.sampled_from([0, 60])),
        efficiency=draw(st.sampled_from([0.0, 0.5, 0.9, 0.95])),
        budget=draw(st.sampled_from([None, None, -5.0, 100.0, 3000.0, 100_000.0])),
        machine_nodes=draw(st.sampled_from([None, None, 4])),
        release_after=draw(st.sampled_from([None, 30.0])),
    )


@st.composite
def allocations(draw: st.DrawFn, asked_of: Sequence[Queue]) -> list[Existing]:
    made = []
    for number in range(draw(st.integers(0, 4))):
        queue = draw(st.sampled_from(asked_of))
        nodes = draw(st.integers(queue.min_nodes, queue.max_nodes))
        usable = draw(st.sampled_from([0.0, 50.0, 400.0, 3000.0]))
        running = draw(st.booleans())
        lanes: tuple[Lane, ...] = ()
        idle_for = None
        if running and draw(st.booleans()):
            cores = len(queue.node.cores)
            some = st.lists(st.integers(0, cores), min_size=nodes, max_size=nodes)
            free = draw(st.one_of(st.just([cores] * nodes), some))
            until = draw(st.sampled_from([10.0, 300.0]))
            lanes = tuple(Lane(f, 0.0 if f == cores else until) for f in free)
            if all(f == cores for f in free):
                idle_for = draw(st.sampled_from([61.0, 59.0, 0.0]))
        state = "running" if running else "queued"
        waited = 0.0 if running else draw(st.sampled_from([0.0, 500.0]))
        made.append(
            Existing(
                f"a{number}", queue.name, state, nodes, usable, queue.node, lanes, waited, idle_for
            )
        )
    return made


@st.composite
def cases(draw: st.DrawFn) -> Case:
    asked_of = draw(queues())
    windows = draw(
        st.lists(
            st.builds(
                Window,
                queue=st.sampled_from([queue.name for queue in asked_of]),
                nodes=st.integers(0, 12),
                seconds=st.sampled_from([100.0, 2000.0, float("inf")]),
            ),
            max_size=3,
        )
    )
    there = draw(allocations(asked_of))
    return Case(draw(demands()), asked_of, there, draw(policies()), windows)


def asking() -> st.SearchStrategy[Case]:
    """Those in which nothing stands in the way of requests: most have some."""

    def opened(case: Case) -> Case:
        asked_of = [replace(queue, max_queued=4, max_running=4) for queue in case.queues]
        policy = replace(case.policy, budget=None, max_allocations=10)
        return replace(case, queues=asked_of, existing=[], policy=policy)

    return cases().map(opened)
