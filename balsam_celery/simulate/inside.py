"""One allocation that is there from the start and long enough: placement alone, without packing."""

from __future__ import annotations

from dataclasses import replace

from balsam_celery.packing import Plan, Request
from balsam_celery.placement import Pass
from balsam_celery.simulate.bound import lower_bound
from balsam_celery.simulate.engine import Simulation
from balsam_celery.simulate.generate import generate
from balsam_celery.simulate.scenario import Scenario
from balsam_celery.simulate.state import Planner, State

_SECONDS = 60 * 86400


class Inside:
    """Asks once for all nodes of the first queue; places as ``planner`` does."""

    interval: float | None = None

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self.name = planner.name
        self.idle_timeout = planner.idle_timeout

    def place(self, state: State, now: float) -> Pass:
        """As the planner."""
        return self._planner.place(state, now)

    def pack(self, state: State, now: float) -> Plan:
        """One allocation, once."""
        if now > 0 or state.allocations:
            return Plan()
        queue = state.machine.queues[0]
        return Plan((Request(queue.name, queue.max_nodes, queue.max_wall_time, "the only one"),))


def over_bound_inside(scenario: Scenario, planner: Planner, seed: int) -> float:
    """Makespan inside one allocation from when its workers consume, over the lower bound there."""
    first = scenario.machine.queues[0]
    queue = replace(first, max_wall_time=_SECONDS)
    machine = replace(
        scenario.machine,
        nodes=first.max_nodes,
        queues=(queue,),
        background=None,
        idle_timeout=float(_SECONDS),
    )
    workload = generate(scenario, seed)
    alone = Inside(planner)
    alone.idle_timeout = float(_SECONDS)
    simulation = Simulation(workload, machine, alone, seed)
    simulation.run(until_allocations_end=False)
    bound = lower_bound(workload, machine, first.max_nodes)
    return (max(simulation.record.finished) - machine.startup) / bound
