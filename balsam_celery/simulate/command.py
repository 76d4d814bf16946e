"""``balsam simulate``, the same as ``python -m balsam_celery.simulate``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import click

from balsam_celery.errors import InvalidInput
from balsam_celery.simulate.gantt import draw, require_matplotlib
from balsam_celery.simulate.runs import OURS, PLANNERS, Run, run
from balsam_celery.simulate.scenario import load

_COLUMNS = (
    "planner", "seed", "efficiency", "saturated", "makespan", "/bound", "wait mean", "median",
    "p95", "lost", "node-hours", "allocations", "late", "CPU s",
)  # fmt: skip


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option(
    "--planner",
    "planners",
    multiple=True,
    type=click.Choice([*PLANNERS, "all"]),
    help=f"Who plans; may be given several times.  [default: {OURS}]",
)
@click.option(
    "--seed",
    "seeds",
    multiple=True,
    type=int,
    help="May be repeated.  [default: the first for tuning]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys may change.")
@click.option("--gantt", type=click.Path(path_type=Path), help="Draw the run into a file (PNG, …).")
def simulate(
    scenario: Path, planners: Sequence[str], seeds: Sequence[int], as_json: bool, gantt: Path | None
) -> None:
    """Run a workload on a simulated machine: placement and packing over virtual time.

    SCENARIO is a TOML file such as those in benchmarks/workloads; docs/planning.md describes both
    the model and what the figures mean.
    """
    what = load(scenario)
    names = PLANNERS if "all" in planners else tuple(planners) or (OURS,)
    numbers = tuple(seeds) or what.seeds.tuning[:1]
    if gantt is not None:
        require_matplotlib()
        if len(names) * len(numbers) > 1:
            raise InvalidInput("--gantt draws one run: give one --planner and one --seed")
    runs = []
    for name in names:
        for seed in numbers:
            begin = time.process_time()
            done = run(what, name, seed, trace=gantt is not None)
            runs.append((done, time.process_time() - begin))
            if gantt is not None:
                draw(done, gantt)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "scenario": what.name,
                    "runs": [
                        {"planner": one.planner, "seed": one.seed, "cpu_seconds": round(cpu, 2)}
                        | one.metrics.plain()
                        for one, cpu in runs
                    ],
                },
                indent=2,
            )
        )
        return
    click.echo(f"{what.name}: {what.about}")
    rows = [_COLUMNS, *(_row(one, cpu) for one, cpu in runs)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(_COLUMNS))]
    for row in rows:
        cells = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        click.echo("  ".join([row[0].ljust(widths[0]), *cells]))


def _row(one: Run, cpu: float) -> tuple[str, ...]:
    m = one.metrics
    return (
        one.planner,
        str(one.seed),
        f"{m.efficiency:.1%}",
        "-" if m.saturated is None else f"{m.saturated:.1%}",
        f"{m.makespan:.2f} h",
        f"{m.over_bound:.2f}",
        f"{m.wait_mean:.0f} s",
        f"{m.wait_median:.0f} s",
        f"{m.wait_p95:.0f} s",
        f"{m.lost:.2%}",
        f"{m.node_hours:.0f}",
        str(m.allocations),
        f"{m.late:.0f} s",
        f"{cpu:.1f}",
    )
