"""What the simulated users bring: kinds of tasks, and each task's times and parents.

Everything about a workload is known here, also what planning must not see (true runtimes, tasks
that others will create). Arrays, not objects, hold the tasks: there may be a million.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from balsam_celery.resources import NodeCapacity, Resources


@dataclass(frozen=True, slots=True)
class Kind:
    """Tasks that planning cannot tell apart but for their age.

    Attributes:
        application: name; runtimes are learned by application and resources.
        resources: what each asks for.
        wall_time: limit in seconds, enforced.
        expected_time: seconds, as the user gave it; ``None``: not given.
        restartable: may be cut by an allocation's end (it then starts from the beginning).
        priority: larger goes first.
    """

    application: str
    resources: Resources
    wall_time: int
    expected_time: float | None = None
    restartable: bool = False
    priority: int = 0


@dataclass(slots=True)
class Workload:
    """Tasks by number.

    Attributes:
        kinds: the kinds there are.
        kind: place in ``kinds`` of each task.
        runtime: true runtime of each in seconds, its overhead aside; it fails when that is longer
            than its limit.
        submitted: when each may start at the earliest in seconds, were its parents finished.
        parents: how many tasks each waits for.
        children: which tasks wait for one; whether they are there from the start or created by it
            is the same to planning, which sees only what is ready.
    """

    kinds: Sequence[Kind]
    kind: array[int] = field(default_factory=lambda: array("H"))
    runtime: array[float] = field(default_factory=lambda: array("d"))
    submitted: array[float] = field(default_factory=lambda: array("d"))
    parents: array[int] = field(default_factory=lambda: array("l"))
    children: dict[int, list[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.kind)

    def add(self, kind: int, runtime: float, submitted: float, after: Sequence[int] = ()) -> int:
        """Add a task; returns its number."""
        number = len(self.kind)
        self.kind.append(kind)
        self.runtime.append(runtime)
        self.submitted.append(submitted)
        self.parents.append(len(after))
        for parent in after:
            self.children.setdefault(parent, []).append(number)
        return number

    def runs(self, task: int) -> float:
        """Seconds that an attempt runs if nothing cuts it."""
        return min(self.runtime[task], float(self.kinds[self.kind[task]].wall_time))

    def succeeds(self, task: int) -> bool:
        """It ends before its limit."""
        return self.runtime[task] <= self.kinds[self.kind[task]].wall_time

    def widest(self) -> int:
        """Nodes of the widest kind."""
        return max(kind.resources.num_nodes for kind in self.kinds)


def shares_of(wanted: Resources, node: NodeCapacity) -> tuple[float, ...]:
    """Nodes' worth that a task takes of each thing that a node has: cores, places of
    ``node_packing_count``, GPUs, memory, countable resources; all of its nodes when it spans some.
    """
    there = dict(node.resources)
    if wanted.is_gang:
        return (float(wanted.num_nodes),) * (4 + len(there))
    packing, asked = wanted.node_packing_count, dict(wanted.resources_per_node)
    return (
        wanted.cores_on(len(node.cores)) / len(node.cores),
        0.0 if packing is None else 1 / packing,
        wanted.gpus_per_node / len(node.gpus) if node.gpus else 0.0,
        wanted.memory_per_node / node.memory if node.memory else 0.0,
        *(asked.get(name, 0) / amount for name, amount in there.items()),
    )


def share_of(wanted: Resources, node: NodeCapacity) -> float:
    """Nodes' worth that a task takes: its dominant share, the largest of those of each thing.

    (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011.) Those of unlike tasks do not add up:
    one that takes the GPUs of a node and one that takes its cores may share it.
    """
    return max(shares_of(wanted, node))
