"""Planners on the committed workloads: a table, and whether the figures are reached.

Usage: planning.py [--workloads NAME ...] [--planners NAME ...] [--tuning | --seeds N ...]
                   [--jobs N] [--json FILE]
       planning.py --million

The definitions are in docs/planning.md. `--tuning` takes the seeds on which constants may be
chosen, `--seeds` others than those of the workload. `--million` runs a million tasks on 4,000
nodes once, and prints how long that took.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from balsam_celery.errors import BalsamError
from balsam_celery.simulate.inside import over_bound_inside
from balsam_celery.simulate.runs import BASELINES, CLAIRVOYANT, OURS, PLANNERS, make, run
from balsam_celery.simulate.scenario import Scenario, load

WORKLOADS = Path(__file__).resolve().parent / "workloads"
#: Where the backlog of a single allocation lasts long enough for its makespan to be judged.
INSIDE = ("chemistry", "mixed", "restartable")
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """Means over the seeds of one workload and planner; ``late``: the worst."""

    efficiency: float
    saturated: float | None
    makespan: float
    over_bound: float
    wait_mean: float
    wait_median: float
    wait_p95: float
    lost: float
    node_hours: float
    allocations: float
    promised: float
    late: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Check:
    """A figure of the issue, what came of it, and whether that reaches it."""

    what: str
    got: str
    reached: bool


def one(name: str, planner: str, seed: int) -> dict[str, float | None]:
    """The figures of one run."""
    begin = time.process_time()
    done = run(load(WORKLOADS / f"{name}.toml"), planner, seed)
    return {**done.metrics.plain(), "cpu": time.process_time() - begin}


def inside(name: str, seed: int) -> float:
    """Makespan over the bound inside one allocation."""
    return over_bound_inside(load(WORKLOADS / f"{name}.toml"), make(OURS), seed)


def mean(runs: Sequence[dict[str, float | None]]) -> Row:
    """One row for the runs of all seeds."""
    values: dict[str, float | None] = {}
    for name in Row.__annotations__:
        known = [value for one in runs if (value := one[name]) is not None]
        join: Callable[[list[float]], float] = (
            max if name in ("late", "promised") else statistics.mean
        )
        values[name] = join(known) if known else None
    return Row(**values)  # type: ignore[arg-type]


def checks(
    scenarios: dict[str, Scenario], rows: dict[Key, Row], bounds: dict[str, float]
) -> list[Check]:
    """Every figure that these rows can tell."""
    found = []
    for name, scenario in scenarios.items():
        ours = rows.get((name, OURS))
        if ours is None:
            continue
        if scenario.saturated and ours.saturated is not None:
            found.append(
                Check(
                    f"{name}: at least 95 % used while the backlog lasts",
                    f"{ours.saturated:.1%}",
                    ours.saturated >= 0.95,
                )
            )
        best = rows.get((name, CLAIRVOYANT))
        if best is not None and not scenario.saturated:
            found.append(
                Check(
                    f"{name}: efficiency within 5 points of the clairvoyant",
                    f"{ours.efficiency:.1%} to {best.efficiency:.1%}",
                    ours.efficiency >= best.efficiency - 0.05,
                )
            )
        others = {key: rows[name, key] for key in BASELINES if (name, key) in rows}
        if others:
            first = max(others, key=lambda key: others[key].efficiency)
            found.append(
                Check(
                    f"{name}: more efficient than every baseline",
                    f"{ours.efficiency:.1%} to {others[first].efficiency:.1%} ({first})",
                    ours.efficiency > others[first].efficiency,
                )
            )
        if name == "bursts" and others:
            first = min(others, key=lambda key: others[key].wait_mean)
            found.append(
                Check(
                    f"{name}: shorter mean wait than every baseline",
                    f"{ours.wait_mean:.0f} s to {others[first].wait_mean:.0f} s ({first})",
                    ours.wait_mean < others[first].wait_mean,
                )
            )
        if name == "restartable":
            found.append(
                Check(
                    f"{name}: under 1 % of node-hours lost to ends of allocations",
                    f"{ours.lost:.2%}",
                    ours.lost < 0.01,
                )
            )
        found.append(
            Check(
                f"{name}: no task starts later than it was first promised",
                f"{ours.late:.1f} s, longest wait {ours.promised:.0f} s",
                ours.late <= scenario.machine.tick + scenario.machine.overhead,
            )
        )
    for name, worst in bounds.items():
        found.append(
            Check(
                f"{name}: makespan inside one allocation within 10 % of the bound",
                f"{worst:.3f}",
                worst <= 1.1,
            )
        )
    return found


def show(rows: dict[Key, Row]) -> None:
    """The table, as Markdown."""
    print(
        "| workload | planner | used/charged | saturated | makespan h | ×bound | mean wait s",
        end="",
    )
    print(" | median | p95 | lost | node-hours | allocations |")
    print("|" + " --- |" * 12)
    for (name, planner), row in rows.items():
        saturated = "" if row.saturated is None else f"{row.saturated:.1%}"
        print(
            f"| {name} | {planner} | {row.efficiency:.1%} | {saturated} | {row.makespan:.1f}"
            f" | {row.over_bound:.2f} | {row.wait_mean:,.0f} | {row.wait_median:,.0f}"
            f" | {row.wait_p95:,.0f} | {row.lost:.2%} | {row.node_hours:,.0f}"
            f" | {row.allocations:.1f} |"
        )


def million() -> None:
    """A million tasks on 4,000 nodes, once."""
    scenario = load(WORKLOADS / "million.toml")
    [seed] = scenario.seeds.held_out
    wall, cpu = time.perf_counter(), time.process_time()
    done = run(scenario, OURS, seed)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    figures = done.metrics
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"million, seed {seed}: {figures.done + figures.timeouts:,} tasks in {wall:.0f} s"
        f" ({cpu:.0f} s CPU, {memory:.1f} GB): {figures.passes:,} placement and"
        f" {figures.plans:,} packing passes over {figures.makespan:.1f} h"
    )
    print(
        f"used/charged {figures.efficiency:.1%}, saturated {figures.saturated or 0:.1%},"
        f" makespan {figures.over_bound:.2f} × the bound, {figures.allocations} allocations"
    )


def main() -> None:
    names = sorted(path.stem for path in WORKLOADS.glob("*.toml") if path.stem != "million")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=names, default=names)
    parser.add_argument("--planners", nargs="+", choices=PLANNERS, default=PLANNERS)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--tuning", action="store_true")
    which.add_argument("--seeds", type=int, nargs="+", metavar="N")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--million", action="store_true")
    options = parser.parse_args()
    if options.million:
        million()
        return
    scenarios = {name: load(WORKLOADS / f"{name}.toml") for name in options.workloads}
    seeds = {
        n: options.seeds or (s.seeds.tuning if options.tuning else s.seeds.held_out)
        for n, s in scenarios.items()
    }
    with ProcessPoolExecutor(options.jobs) as pool:
        running = {
            (name, planner): [pool.submit(one, name, planner, seed) for seed in seeds[name]]
            for name in scenarios
            for planner in options.planners
        }
        alone = {
            name: [pool.submit(inside, name, seed) for seed in seeds[name]]
            for name in scenarios
            if name in INSIDE and OURS in options.planners
        }
        rows = {key: mean([one.result() for one in runs]) for key, runs in running.items()}
        bounds = {name: max(one.result() for one in runs) for name, runs in alone.items()}
    kind = "given" if options.seeds else "tuning" if options.tuning else "held-out"
    print(f"Means over the {kind} seeds {sorted({seed for s in seeds.values() for seed in s})}\n")
    show(rows)
    found = checks(scenarios, rows, bounds)
    print()
    for check in found:
        print(f"{'reached    ' if check.reached else 'NOT REACHED'}  {check.what}: {check.got}")
    if options.json:
        plain = {f"{name} {planner}": vars_of(row) for (name, planner), row in rows.items()}
        options.json.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if all(check.reached for check in found) else 1)


def vars_of(row: Row) -> dict[str, float | None]:
    """A row as a dictionary."""
    return {name: getattr(row, name) for name in Row.__annotations__}


if __name__ == "__main__":
    try:
        main()
    except BalsamError as error:
        sys.exit(f"planning: {error}")
