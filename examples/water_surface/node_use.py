"""How busy the nodes were: a figure and a picture, from the attempts recorded in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

COLOURS = {1: "tab:blue", 2: "tab:green", 4: "tab:orange"}


@dataclass(frozen=True)
class Busy:
    """One attempt on one node; times in seconds since the epoch."""

    node: str
    cores: tuple[int, ...]
    start: float
    end: float
    name: str
    ranks: int


def node_use(busy: Sequence[Busy], cores_per_node: int) -> float:
    """Part of the slots in use from the first start to the last end (0 to 1)."""
    used = sum(len(b.cores) * (b.end - b.start) for b in busy)
    span = max(b.end for b in busy) - min(b.start for b in busy)
    return used / (span * cores_per_node * len({b.node for b in busy}))


def draw_node_use(busy: Sequence[Busy], cores_per_node: int, path: Path) -> None:
    """A row for each slot, a bar for each attempt, coloured by its number of ranks."""
    nodes = sorted({b.node for b in busy})
    origin = min(b.start for b in busy)
    first = {node: min(min(b.cores) for b in busy if b.node == node) for node in nodes}
    figure, axes = plt.subplots(figsize=(9, 3.5), layout="constrained")
    for b in busy:
        for core in b.cores:
            row = nodes.index(b.node) * cores_per_node + core - first[b.node]
            axes.barh(
                row, b.end - b.start, left=b.start - origin, height=0.9,
                color=COLOURS.get(b.ranks, "tab:gray"), edgecolor="white", linewidth=0.4,
            )  # fmt: skip
    labels = [f"{node} slot {slot}" for node in nodes for slot in range(cores_per_node)]
    axes.set(
        yticks=range(len(labels)), yticklabels=labels, xlabel="time / s",
        title=f"Node use: {node_use(busy, cores_per_node):.0%} of the slots",
    )  # fmt: skip
    axes.legend(
        handles=[
            Patch(color=colour, label="1 rank" if ranks == 1 else f"{ranks} ranks")
            for ranks, colour in COLOURS.items()
        ],
        loc="upper left", bbox_to_anchor=(1.01, 1),
    )  # fmt: skip
    figure.savefig(path, dpi=150)
