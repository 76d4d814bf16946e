"""Planners by name, and one run of a scenario."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from balsam_celery.errors import InvalidInput
from balsam_celery.simulate.baselines.balsam07 import Balsam07
from balsam_celery.simulate.baselines.clairvoyant import clairvoyant
from balsam_celery.simulate.baselines.hyperqueue import HyperQueue
from balsam_celery.simulate.baselines.original import Original
from balsam_celery.simulate.engine import Simulation
from balsam_celery.simulate.generate import generate
from balsam_celery.simulate.machine import Machine
from balsam_celery.simulate.metrics import Metrics, measure
from balsam_celery.simulate.planning import Planning
from balsam_celery.simulate.scenario import Scenario
from balsam_celery.simulate.state import Planner
from balsam_celery.simulate.workload import Workload

OURS = "balsam_celery"
CLAIRVOYANT = "clairvoyant"
BASELINES: dict[str, Callable[[], Planner]] = {
    "original": Original,
    "balsam-0.7": Balsam07,
    "balsam-0.7-queue": lambda: Balsam07(backfill=False),
    "hyperqueue": HyperQueue,
}
PLANNERS = (OURS, *BASELINES, CLAIRVOYANT)


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run."""

    scenario: Scenario
    planner: str
    seed: int
    simulation: Simulation
    metrics: Metrics


def run(scenario: Scenario, planner: str, seed: int, *, trace: bool = False) -> Run:
    """Run a scenario with a planner of ``PLANNERS``.

    Raises:
        InvalidInput: no such planner.
        Stuck: it lets tasks wait for ever.
    """
    workload, machine = generate(scenario, seed), scenario.machine
    if planner == CLAIRVOYANT:
        simulation = clairvoyant(workload, machine, seed, trace=trace)
    else:
        simulation = Simulation(workload, machine, make(planner), seed, trace=trace)
        simulation.run()
    return Run(scenario, planner, seed, simulation, figures(simulation, workload, machine))


def make(planner: str) -> Planner:
    """A planner by its name.

    Raises:
        InvalidInput: there is none.
    """
    if planner == OURS:
        return Planning()
    if planner not in BASELINES:
        raise InvalidInput(f"planner is {planner!r}: give one of {', '.join(PLANNERS)}")
    return BASELINES[planner]()


def figures(simulation: Simulation, workload: Workload, machine: Machine) -> Metrics:
    """The metrics of a simulation that has run, against the workload as it is."""
    return measure(simulation.record, simulation.state.backlog.ready, workload, machine)
