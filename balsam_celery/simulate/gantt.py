"""A picture of a run: nodes of the allocations over time, and what ran on them."""

from __future__ import annotations

from pathlib import Path

from balsam_celery.errors import InvalidInput
from balsam_celery.simulate.runs import Run

try:
    import matplotlib as mpl
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
except ImportError:
    mpl = None  # type: ignore[assignment]

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


def require_matplotlib() -> None:
    """Check that pictures can be drawn.

    Raises:
        InvalidInput: matplotlib is missing.
    """
    if mpl is None:
        raise InvalidInput(
            "--gantt needs matplotlib, which is missing: pip install 'balsam_celery[demo]'"
        )


def draw(run: Run, path: Path) -> None:
    """Draw a run that was traced; the kind of file is that of the suffix of ``path``.

    Raises:
        InvalidInput: matplotlib is missing, cannot write such files, or ``path`` is not writable.
    """
    require_matplotlib()
    record, work = run.simulation.record, run.simulation.state.workload
    cores = len(run.scenario.machine.node.cores)
    bottom: dict[str, int] = {}
    top = 0
    frames = []
    for one in sorted(record.allocations, key=lambda a: (a.started or 0.0, a.id)):
        bottom[one.id] = top
        frames.append(_box((one.started or 0.0), (one.ended or 0.0), top, top + one.nodes))
        top += one.nodes
    names = sorted({kind.application for kind in work.kinds})
    boxes: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in [*names, "cut"]}
    for attempt in record.attempts:
        name = work.kinds[work.kind[attempt.task]].application
        name = "cut" if attempt.outcome == "cut" else name
        for share in attempt.shares:
            place = bottom[attempt.allocation] + int(share.node.rpartition(".")[2])
            low = place + min(share.cores) / cores
            high = low + len(share.cores) / cores
            boxes[name].append(_box(attempt.start, attempt.end, low, high))
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.add_subplot()
    axes.add_collection(PolyCollection(frames, facecolors="#eeeeee", edgecolors="#888888", lw=0.5))
    handles = []
    for n, (name, drawn) in enumerate(boxes.items()):
        colour = "black" if name == "cut" else _COLOURS[n % len(_COLOURS)]
        if drawn:
            axes.add_collection(PolyCollection(drawn, facecolors=colour, edgecolors="none"))
            handles.append(Patch(color=colour, label=name))
    axes.set_xlim(0, max(one.ended or 0.0 for one in record.allocations) / 3600)
    axes.set_ylim(0, top)
    axes.set_xlabel("hours")
    axes.set_ylabel("nodes of the allocations, in order of their start")
    axes.set_title(
        f"{run.scenario.name}, seed {run.seed}, {run.planner}: efficiency"
        f" {run.metrics.efficiency:.1%}, makespan {run.metrics.makespan:.1f} h"
    )
    axes.legend(handles=handles, loc="upper right")
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot draw {path}: {error}") from None


def _box(start: float, end: float, low: float, high: float) -> list[tuple[float, float]]:
    left, right = start / 3600, end / 3600
    return [(left, low), (right, low), (right, high), (left, high)]
