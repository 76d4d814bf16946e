"""What is free in the pilots: a value, changed in steps.

A :class:`Ledger` is never changed in place: each step gives a new one that shares every pilot the
step did not touch, so a step costs what it changes and a plan that is dropped costs nothing.

GPUs are counted in millionths, so that ten tenths are one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from balsam_celery.resources import GpuShare, NodeCapacity, NodeShare, Resources

_GPU = 1_000_000
#: Room for the rounding of occupancies such as 1/3 + 1/3 + 1/3.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Holding:
    """What one attempt holds.

    Attributes:
        id, attempt: the task's id and the number of the attempt.
        shares: nodes and what it has on each, head node first.
        until: when it has ended at the latest, seconds since the epoch.
        packing: the task's ``node_packing_count``.
    """

    id: str
    attempt: int
    shares: tuple[NodeShare, ...]
    until: float
    packing: int | None = None

    @property
    def is_gang(self) -> bool:
        """It spans nodes, so it holds them whole."""
        return len(self.shares) > 1


@dataclass(frozen=True, slots=True)
class NodeFree:
    """One node and what is free on it.

    Attributes:
        capacity: what it has.
        cores: ids of free cores, ascending.
        gpus: millionths free of each of ``capacity.gpus``.
        occupancy: sum of 1/``node_packing_count`` of the tasks on it that gave one.
        holders: how many attempts hold something on it.
        gang: a task that spans nodes holds it.
        lost: its worker is gone; nothing may start on it.
    """

    capacity: NodeCapacity
    cores: tuple[int, ...]
    gpus: tuple[int, ...]
    occupancy: float = 0.0
    holders: int = 0
    gang: bool = False
    lost: bool = False

    @classmethod
    def of(cls, capacity: NodeCapacity) -> NodeFree:
        """A node on which nothing runs."""
        return cls(capacity, tuple(sorted(capacity.cores)), (_GPU,) * len(capacity.gpus))

    @property
    def is_free(self) -> bool:
        """Nothing runs on it, and something may."""
        return self.holders == 0 and not self.lost

    def share(self, wanted: Resources) -> NodeShare | None:
        """What a task of ``wanted`` would be given here now, ``None`` when it does not fit."""
        if self.lost or (wanted.is_gang and self.holders):
            return None
        total = len(self.capacity.cores)
        need = wanted.cores_on(total)
        if need > len(self.cores) or wanted.least_cores > total:
            return None
        packing = wanted.node_packing_count
        if packing is not None and self.occupancy + 1 / packing > 1 + _ROUNDING:
            return None
        gpus = _give_gpus(self.gpus, wanted)
        if gpus is None:
            return None
        shares = tuple(
            GpuShare(index, given / _GPU)
            for index, given in zip(self.capacity.gpus, gpus, strict=True)
            if given
        )
        return NodeShare(self.capacity.name, self.cores[:need], shares)

    def with_taken(self, share: NodeShare, packing: int | None, gang: bool) -> NodeFree:
        """This node without ``share``.

        Raises:
            ValueError: some of it is not free.
        """
        taken = set(share.cores)
        if not taken <= set(self.cores) or (gang and self.holders):
            raise ValueError(f"{share.node}: cores {sorted(taken - set(self.cores))} are not free")
        gpus = self._change_gpus(share.gpus, -1)
        if min(gpus, default=0) < 0:
            raise ValueError(f"{share.node}: GPUs {share.gpus} are not free")
        return replace(
            self,
            cores=tuple(core for core in self.cores if core not in taken),
            gpus=gpus,
            occupancy=self.occupancy + (1 / packing if packing else 0.0),
            holders=self.holders + 1,
            gang=gang,
        )

    def with_given_back(self, share: NodeShare, packing: int | None) -> NodeFree:
        """This node with ``share`` free again."""
        holders = self.holders - 1
        return replace(
            self,
            cores=tuple(sorted((*self.cores, *share.cores))),
            gpus=self._change_gpus(share.gpus, 1),
            # an empty node starts afresh, so that rounding never adds up
            occupancy=self.occupancy - (1 / packing if packing else 0.0) if holders else 0.0,
            holders=holders,
            gang=False,
        )

    def _change_gpus(self, shares: Iterable[GpuShare], sign: int) -> tuple[int, ...]:
        by_index = {share.index: round(share.fraction * _GPU) for share in shares}
        return tuple(
            free + sign * by_index.get(index, 0)
            for index, free in zip(self.capacity.gpus, self.gpus, strict=True)
        )


def _give_gpus(free: Sequence[int], wanted: Resources) -> tuple[int, ...] | None:
    """Millionths of each GPU for the ranks of ``wanted``: a rank's fraction is on one GPU."""
    given = [0] * len(free)
    if not wanted.gpus_per_rank:
        return tuple(given)
    whole, part = divmod(round(wanted.gpus_per_rank * _GPU), _GPU)
    ranks = wanted.ranks_per_node
    # whole GPUs first: fractions then fill what is begun already
    untouched = [place for place, left in enumerate(free) if left == _GPU]
    if len(untouched) < whole * ranks:
        return None
    for place in untouched[: whole * ranks]:
        given[place] = _GPU
    if part:
        for place in sorted(range(len(free)), key=lambda p: (free[p] - given[p], p)):
            fitting = min(ranks, (free[place] - given[place]) // part)
            given[place] += fitting * part
            ranks -= fitting
        if ranks:
            return None
    return tuple(given)


class PilotFree:
    """One pilot and what is free in it.

    Only this module and ``placement`` change one, and only a copy that nobody else has seen.

    Attributes:
        id: the pilot's id.
        deadline: when it begins to stop what runs, seconds since the epoch.
        draining: nothing may start in it.
        nodes: its nodes, in its order.
        holdings: what runs, by (task id, attempt).
        free_nodes: places of nodes on which nothing runs and something may, as a bit set.
    """

    __slots__ = (
        "_buckets",
        "_kinds",
        "_on_node",
        "_places",
        "deadline",
        "draining",
        "free_nodes",
        "holdings",
        "id",
        "nodes",
    )

    def __init__(
        self, pilot: str, nodes: Iterable[NodeCapacity], deadline: float, draining: bool = False
    ) -> None:
        self.id = pilot
        self.deadline = deadline
        self.draining = draining
        self.nodes = [NodeFree.of(capacity) for capacity in nodes]
        self.holdings: dict[tuple[str, int], Holding] = {}
        self._places = {node.capacity.name: place for place, node in enumerate(self.nodes)}
        #: places of nodes by their number of free cores, as bit sets: cheap to copy and to scan
        self._buckets: dict[int, int] = {}
        self.free_nodes = (1 << len(self.nodes)) - 1
        #: places of nodes by number of cores and GPUs, as bit sets
        self._kinds: dict[tuple[int, int], int] = {}
        #: keys of ``holdings`` by place
        self._on_node: dict[int, tuple[tuple[str, int], ...]] = {}
        for place, node in enumerate(self.nodes):
            count = len(node.cores)
            self._buckets[count] = self._buckets.get(count, 0) | 1 << place
            kind = (count, len(node.gpus))
            self._kinds[kind] = self._kinds.get(kind, 0) | 1 << place
            if node.capacity.lost:
                self.lose(node.capacity.name)

    def copy(self) -> PilotFree:
        """One that may be changed without changing this one."""
        other = PilotFree.__new__(PilotFree)
        other.id, other.deadline, other.draining = self.id, self.deadline, self.draining
        other.nodes = self.nodes.copy()
        other.holdings = self.holdings.copy()
        other._places = self._places
        other._buckets = self._buckets.copy()
        other.free_nodes, other._kinds = self.free_nodes, self._kinds
        other._on_node = self._on_node.copy()
        return other

    def has_node(self, name: str) -> bool:
        """It has a node of that name."""
        return name in self._places

    def on_node(self, place: int) -> list[Holding]:
        """What runs on the node at ``place``."""
        return [self.holdings[key] for key in self._on_node.get(place, ())]

    def best_fit(self, cores: int) -> Iterable[int]:
        """Places of nodes with ``cores`` free or more, those with the fewest free first."""
        for count in sorted(count for count in self._buckets if count >= cores):
            yield from members(self._buckets[count])

    def suiting(self, wanted: Resources) -> int:
        """Places of nodes that could hold a task of ``wanted`` if nothing ran, as a bit set."""
        found = 0
        for places in self._kinds.values():
            capacity = self.nodes[next(members(places))].capacity
            if NodeFree.of(capacity).share(wanted) is not None:
                found |= places
        return found

    def take(self, holding: Holding) -> None:
        """Give ``holding`` its shares.

        Raises:
            ValueError: some of it is not free, or the attempt holds something here already.
        """
        key = (holding.id, holding.attempt)
        if key in self.holdings:
            raise ValueError(f"attempt {holding.attempt} of {holding.id} is given slots twice")
        changed = {
            self._places[share.node]: self.nodes[self._places[share.node]].with_taken(
                share, holding.packing, holding.is_gang
            )
            for share in holding.shares
        }
        for place, node in changed.items():
            self._set(place, node)
            self._on_node[place] = (*self._on_node.get(place, ()), key)
        self.holdings[key] = holding

    def give_back(self, task: str, attempt: int) -> None:
        """Free what the attempt holds; nothing when it holds nothing here."""
        key = (task, attempt)
        holding = self.holdings.pop(key, None)
        for share in holding.shares if holding else ():
            place = self._places[share.node]
            self._set(place, self.nodes[place].with_given_back(share, holding.packing))  # type: ignore[union-attr]
            self._on_node[place] = tuple(k for k in self._on_node[place] if k != key)

    def lose(self, name: str) -> None:
        """Let nothing start on a node any more."""
        place = self._places[name]
        self._set(place, replace(self.nodes[place], lost=True))

    def _set(self, place: int, node: NodeFree) -> None:
        before, after, bit = len(self.nodes[place].cores), len(node.cores), 1 << place
        if before != after:
            self._buckets[before] &= ~bit
            self._buckets[after] = self._buckets.get(after, 0) | bit
        self.free_nodes = self.free_nodes | bit if node.is_free else self.free_nodes & ~bit
        self.nodes[place] = node


def members(places: int) -> Iterator[int]:
    """The places in a bit set, ascending."""
    while places:
        lowest = places & -places
        yield lowest.bit_length() - 1
        places ^= lowest


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is free in all pilots.  Equal steps from an equal ledger give an equal ledger."""

    pilots: Mapping[str, PilotFree]

    @classmethod
    def empty(cls) -> Ledger:
        """No pilot."""
        return cls({})

    def add_pilot(
        self, pilot: str, nodes: Iterable[NodeCapacity], deadline: float, *, draining: bool = False
    ) -> Ledger:
        """With a pilot on which nothing runs; one of that id is replaced.

        Args:
            pilot: its id.
            nodes: its nodes; tasks of several nodes are given neighbours in this order.
            deadline: its end less the drain margin, seconds since the epoch.
            draining: nothing may start in it.
        """
        return Ledger({**self.pilots, pilot: PilotFree(pilot, nodes, deadline, draining)})

    def remove_pilot(self, pilot: str) -> Ledger:
        """Without the pilot and all that it holds."""
        return Ledger({key: free for key, free in self.pilots.items() if key != pilot})

    def drain(self, pilot: str) -> Ledger:
        """Nothing may start in the pilot any more; what runs goes on."""
        if pilot not in self.pilots:
            return self
        changed = self.pilots[pilot].copy()
        changed.draining = True
        return Ledger({**self.pilots, pilot: changed})

    def lose_node(self, pilot: str, node: str) -> Ledger:
        """Nothing may start on that node any more."""
        if pilot not in self.pilots or not self.pilots[pilot].has_node(node):
            return self
        changed = self.pilots[pilot].copy()
        changed.lose(node)
        return Ledger({**self.pilots, pilot: changed})

    def take(self, pilot: str, holdings: Iterable[Holding]) -> Ledger:
        """With ``holdings`` given out in the pilot (used when it is built again from SQL).

        Raises:
            ValueError: some of it is not free, an attempt stands there twice, or the pilot has
                no such node.
        """
        changed = self.pilots[pilot].copy()
        for holding in holdings:
            for share in holding.shares:
                if not changed.has_node(share.node):
                    raise ValueError(f"pilot {pilot} has no node {share.node}")
            changed.take(holding)
        return Ledger({**self.pilots, pilot: changed})

    def give_back(self, pilot: str, attempts: Iterable[tuple[str, int]]) -> Ledger:
        """With all free that the (task id, attempt) pairs held in the pilot.

        Pairs that hold nothing are passed over, and so is a pilot that is gone: giving back twice
        is harmless, and an old attempt never frees what a newer one holds.
        """
        if pilot not in self.pilots:
            return self
        changed = self.pilots[pilot].copy()
        for task, attempt in attempts:
            changed.give_back(task, attempt)
        return Ledger({**self.pilots, pilot: changed})

    def is_idle(self, pilot: str) -> bool:
        """Nothing runs in the pilot."""
        return not self.pilots[pilot].holdings


def concurrency(pilot: PilotFree) -> tuple[dict[str, int], int]:
    """What each worker of a pilot may run at once (DESIGN section 6).

    Returns:
        By node name: its cores, 0 while a task of several nodes holds it; and, for the gang
        worker: the nodes that no single-node task holds.
    """
    nodes = {
        node.capacity.name: 0 if node.gang or node.lost else len(node.capacity.cores)
        for node in pilot.nodes
    }
    gang = sum(1 for node in pilot.nodes if not node.lost and (node.gang or not node.holders))
    return nodes, gang


def least_gpus(wanted: Resources) -> int:
    """GPUs that each node must have at the least for ``wanted``."""
    whole, part = divmod(round(wanted.gpus_per_rank * _GPU), _GPU)
    shared = math.ceil(wanted.ranks_per_node / (_GPU // part)) if part else 0
    return wanted.ranks_per_node * whole + shared
