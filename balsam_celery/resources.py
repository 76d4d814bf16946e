"""What a task asks of nodes, and what nodes have.  Pure values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from balsam_celery.errors import InvalidInput

#: Amounts of countable resources by name, in order of the names: ``(("licence", 2), ("nvme", 1))``.
Counts = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Resources:
    """What one task asks for.

    Attributes:
        num_nodes: nodes; more than one means whole nodes.
        ranks_per_node: MPI ranks on each node (1 and ``num_nodes`` 1: a serial program).
        threads_per_rank: threads of each rank.
        threads_per_core: hardware threads used of each core.
        gpus_per_rank: GPUs for each rank; a fraction lets ranks and tasks share one.
        node_packing_count: how many such tasks at most share a node (1: the whole node);
            ``None``: as many as its cores and GPUs allow.
        cpu_affinity: ``"none"`` or ``"depth"`` (pin to the cores given, where they are real).
        memory_per_node: bytes on each node; 0: not accounted.
        resources_per_node: how much it takes on each node of what the site counts by itself.
    """

    num_nodes: int = 1
    ranks_per_node: int = 1
    threads_per_rank: int = 1
    threads_per_core: int = 1
    gpus_per_rank: float = 0.0
    node_packing_count: int | None = None
    cpu_affinity: str = "depth"
    memory_per_node: int = 0
    resources_per_node: Counts = ()

    def __post_init__(self) -> None:
        for name in ("num_nodes", "ranks_per_node", "threads_per_rank", "threads_per_core"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidInput(f"{name} is {value!r}: give a whole number of 1 or more")
        packing = self.node_packing_count
        if packing is not None and (
            not isinstance(packing, int) or isinstance(packing, bool) or packing < 1
        ):
            raise InvalidInput(
                f"node_packing_count is {packing!r}: give a whole number of 1 or more"
            )
        gpus = self.gpus_per_rank
        if isinstance(gpus, bool) or not isinstance(gpus, (int, float)) or not 0 <= gpus < 1e6:
            raise InvalidInput(f"gpus_per_rank is {gpus!r}: give 0 or more, such as 1 or 0.5")
        if self.cpu_affinity not in ("none", "depth"):
            raise InvalidInput(f"cpu_affinity is {self.cpu_affinity!r}: give 'none' or 'depth'")
        memory = self.memory_per_node
        if not isinstance(memory, int) or isinstance(memory, bool) or memory < 0:
            raise InvalidInput(f"memory_per_node is {memory!r}: give bytes, 0 or more")
        for name, amount in self.resources_per_node:
            if not isinstance(amount, int) or isinstance(amount, bool) or amount < 1:
                raise InvalidInput(
                    f"resources_per_node.{name} is {amount!r}: give a whole number of 1 or more"
                )
        if list(self.resources_per_node) != sorted(set(self.resources_per_node)):
            raise ValueError(f"resources_per_node is not in order: {self.resources_per_node}")

    @property
    def is_gang(self) -> bool:
        """Spans nodes, so the gang worker runs it on whole nodes."""
        return self.num_nodes > 1

    @property
    def ranks(self) -> int:
        """MPI ranks in all."""
        return self.num_nodes * self.ranks_per_node

    @property
    def gpus_per_node(self) -> float:
        """GPUs on each node."""
        return self.ranks_per_node * self.gpus_per_rank

    def cores_on(self, node_cores: int) -> int:
        """Cores taken on a node of ``node_cores`` cores (all of them for a gang task)."""
        if self.is_gang:
            return node_cores
        asked = self.ranks_per_node * math.ceil(self.threads_per_rank / self.threads_per_core)
        if self.node_packing_count is None:
            return asked
        return max(asked, node_cores // self.node_packing_count)

    @property
    def least_cores(self) -> int:
        """Cores that each node must have at the least."""
        return self.ranks_per_node * math.ceil(self.threads_per_rank / self.threads_per_core)


@dataclass(frozen=True, slots=True)
class NodeCapacity:
    """One node of a pilot or of a queue.

    Attributes:
        name: host name, or the name of a virtual node.
        cores: ids of its usable cores.
        gpus: ids of its GPUs.
        memory: bytes, 0 when not known.
        pinned: the core ids are real and this node's alone, so programs may be bound to them.
        lost: its worker does not stay alive, it was put aside, or it was given back; nothing may
            start on it any more.
        lost_reason: why.
        resources: what it has of what the site counts by itself (``resources_per_node``).
    """

    name: str
    cores: tuple[int, ...]
    gpus: tuple[int, ...] = ()
    memory: int = 0
    pinned: bool = False
    lost: bool = False
    lost_reason: str = ""
    resources: Counts = ()


@dataclass(frozen=True, slots=True)
class GpuShare:
    """A share (0 < ``fraction`` <= 1) of the GPU ``index``."""

    index: int
    fraction: float


@dataclass(frozen=True, slots=True)
class NodeShare:
    """What a task was given on one node.

    Attributes:
        memory: bytes.
        resources: of what the site counts by itself.
        queued: look-ahead: when it was given, another attempt still held exactly this; the worker
            starts the task once those cores are free.
    """

    node: str
    cores: tuple[int, ...]
    gpus: tuple[GpuShare, ...] = ()
    memory: int = 0
    resources: Counts = ()
    queued: bool = False
