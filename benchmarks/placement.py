"""What placement costs on 4,000 nodes, beside sorting a list: the machine cancels out.

Usage: placement.py [--nodes N] [--cores N] [--rounds N]

Prints, as medians of CPU milliseconds and as ratios to one sort of 100,000 numbers run beside it:
a full pass over 1,000 candidates of six shapes on an empty machine; and, on a full machine with a
wide task waiting before small ones, the step of the ledger for one completion and the pass after
it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from balsam_celery.ledger import Ledger
from balsam_celery.placement import Candidate, place
from balsam_celery.resources import NodeCapacity, Resources

NOW = 1_000_000.0
SHAPES = [
    *(Resources(ranks_per_node=ranks) for ranks in (1, 2, 4, 8)),
    Resources(num_nodes=2),
    Resources(num_nodes=16),
]
P, T = ParamSpec("P"), TypeVar("T")


def timed(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """What ``work`` returns, and the CPU milliseconds that it took."""
    begin = time.process_time()
    value = work(*args, **kwargs)
    return value, (time.process_time() - begin) * 1e3


def machine(nodes: int, cores: int) -> Ledger:
    """One pilot of alike nodes."""
    every = [NodeCapacity(f"n{n}", tuple(range(cores))) for n in range(nodes)]
    return Ledger.empty().add_pilot("p", every, NOW + 100_000)


def task(name: str, wanted: Resources, wall_time: int = 100) -> Candidate:
    """A task that waits."""
    return Candidate(name, 1, wanted, wall_time, 5)


def sort_time() -> float:
    """CPU milliseconds of sorting 100,000 numbers, the same each time."""
    draw = random.Random(1)  # noqa: S311
    numbers = [draw.random() for _ in range(100_000)]
    return timed(sorted, numbers)[1]


def full_pass(nodes: int, cores: int) -> float:
    """1,000 candidates on an empty machine."""
    ledger = machine(nodes, cores)
    waiting = [task(f"t{n}", SHAPES[n % len(SHAPES)], 100 + n % 7) for n in range(1000)]
    decided, took = timed(place, ledger, waiting, NOW, tell_all=False)
    assert len(decided.placements) > 900
    return took


def steps(nodes: int, cores: int, count: int) -> tuple[list[float], list[float]]:
    """One completion after the other on a full machine, each with its pass."""
    small = Resources()
    filling = [task(f"s{n}", small, 100 + n % 997) for n in range(nodes * cores)]
    decided = place(machine(nodes, cores), filling, NOW)
    ledger, completions, passes = decided.ledger, [], []
    waiting = [
        task("wide", Resources(num_nodes=max(2, nodes // 8))),
        *(task(f"q{n}", SHAPES[n % 4], 50) for n in range(200)),
    ]
    for done in random.Random(2).sample(decided.placements, count):  # noqa: S311
        ledger, took = timed(ledger.give_back, "p", [(done.id, 1)])
        completions.append(took)
        after, took = timed(place, ledger, waiting, NOW + 1, tell_all=False)
        passes.append(took)
        ledger = after.ledger
        started = {one.id for one in after.placements}
        waiting = [one for one in waiting if one.id not in started]
    return completions, passes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=4000)
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    beside, passes = [], []
    for _ in range(asked.rounds):
        beside.append(sort_time())
        passes.append(full_pass(asked.nodes, asked.cores))
    completions, following = steps(asked.nodes, asked.cores, 200)
    beside.append(sort_time())
    unit = statistics.median(beside)
    print(f"{asked.nodes} nodes of {asked.cores} cores; one sort: {unit:.1f} ms")
    for name, values, limit in (
        ("full pass over 1,000 candidates", passes, 50.0),
        ("step for one completion", completions, 0.5),
        ("pass after it", following, None),
    ):
        median = statistics.median(values)
        against = "" if limit is None else f"  (to be under {limit:g} ms)"
        print(f"{name:34} {median:8.3f} ms  {median / unit:7.3f} sorts{against}")


if __name__ == "__main__":
    main()
