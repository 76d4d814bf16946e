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


def share_of(wanted: Resources, node: NodeCapacity) -> float:
    """Nodes' worth that a task takes: whole nodes when it spans some, else its dominant share.

    The dominant share is the largest of its shares of cores, GPUs, memory, countable resources and
    1/``node_packing_count`` (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011).
    """
    if wanted.is_gang:
        return float(wanted.num_nodes)
    shares = [wanted.cores_on(len(node.cores)) / len(node.cores)]
    if wanted.node_packing_count is not None:
        shares.append(1 / wanted.node_packing_count)
    if wanted.gpus_per_rank and node.gpus:
        shares.append(wanted.gpus_per_node / len(node.gpus))
    if wanted.memory_per_node and node.memory:
        shares.append(wanted.memory_per_node / node.memory)
    there = dict(node.resources)
    shares += [amount / there[name] for name, amount in wanted.resources_per_node if name in there]
    return max(shares)
