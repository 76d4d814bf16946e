"""Draws a workload from a scenario: equal seeds give equal workloads."""

from __future__ import annotations

import math
import random

from balsam_celery.simulate.scenario import Arrival, Group, Runtime, Scenario
from balsam_celery.simulate.workload import Kind, Workload

#: Users round what they expect to this many steps a decade.
_STEPS = 8


def generate(scenario: Scenario, seed: int) -> Workload:
    """The workload of ``scenario`` for ``seed``."""
    draw = random.Random(f"workload {seed}")  # noqa: S311
    kinds: dict[Kind, int] = {}
    work = Workload([])
    numbers: dict[str, list[int]] = {}
    for group in scenario.groups:
        mine = numbers.setdefault(group.application, [])
        for place, time in enumerate(_arrivals(group.arrival, group.count, draw)):
            after: tuple[int, ...] = ()
            if group.after:
                parents = numbers[group.after]
                after = (parents[place % len(parents)],)
            mine.append(_add(work, kinds, group, draw, time, after))
        if group.spawn is not None:
            generation = list(mine)
            for _ in range(group.spawn.depth):
                generation = [
                    _add(work, kinds, group, draw, 0.0, (parent,))
                    for parent in generation
                    for _ in range(draw.randint(0, group.spawn.most))
                ]
    work.kinds = tuple(kinds)
    return work


def _add(
    work: Workload,
    kinds: dict[Kind, int],
    group: Group,
    draw: random.Random,
    time: float,
    after: tuple[int, ...],
) -> int:
    runtime = _runtime(group.runtime, draw)
    expected = None
    if group.expected == "given":
        factor = math.exp(draw.uniform(-1, 1) * math.log(group.wrong_by))
        expected = _rounded(runtime * factor)
    kind = Kind(
        group.application,
        group.resources,
        group.wall_time,
        expected,
        group.restartable,
        group.priority,
    )
    return work.add(kinds.setdefault(kind, len(kinds)), runtime, time, after)


def _runtime(model: Runtime, draw: random.Random) -> float:
    seconds = model.median * math.exp(draw.gauss(0, model.sigma))
    return float(round(min(max(seconds, model.least), model.most)))


def _rounded(seconds: float) -> float:
    return float(round(10 ** (round(math.log10(max(seconds, 1.0)) * _STEPS) / _STEPS)))


def _arrivals(model: Arrival, count: int, draw: random.Random) -> list[float]:
    if model.kind == "over":
        return sorted(float(round(model.at + draw.uniform(0, model.span))) for _ in range(count))
    if model.kind == "bursts":
        gaps = [draw.uniform(0.5, 1.5) * model.span for _ in range(model.bursts)]
        times = [model.at + sum(gaps[:n]) for n in range(model.bursts)]
        return [float(round(times[n * model.bursts // count])) for n in range(count)]
    return [model.at] * count
