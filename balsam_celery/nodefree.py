"""One node and what is free on it: a value; each step gives a new one.

GPUs are counted in millionths, so that ten tenths are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from balsam_celery.resources import Counts, GpuShare, NodeCapacity, NodeShare, Resources

_GPU = 1_000_000
#: Room for the rounding of occupancies such as 1/3 + 1/3 + 1/3.
_ROUNDING = 1e-9


class NodeFree(NamedTuple):
    """One node and what is free on it.  A tuple: a pass of placement makes thousands.

    Attributes:
        capacity: what it has.
        cores: ids of free cores, ascending.
        gpus: millionths free of each of ``capacity.gpus``.
        memory: bytes free; of a node whose memory is not known, what was taken is negative.
        counts: how much is free of each of ``capacity.resources``.
        occupancy: sum of 1/``node_packing_count`` of the tasks on it that gave one.
        holders: how many attempts hold something on it.
        gang: a task that spans nodes holds it.
        lost: its worker is gone; nothing may start on it.
    """

    capacity: NodeCapacity
    cores: tuple[int, ...]
    gpus: tuple[int, ...]
    memory: int = 0
    counts: tuple[int, ...] = ()
    occupancy: float = 0.0
    holders: int = 0
    gang: bool = False
    lost: bool = False

    @classmethod
    def of(cls, capacity: NodeCapacity) -> NodeFree:
        """A node on which nothing runs."""
        return cls(
            capacity,
            tuple(sorted(capacity.cores)),
            (_GPU,) * len(capacity.gpus),
            capacity.memory,
            tuple(amount for _, amount in capacity.resources),
        )

    @property
    def is_free(self) -> bool:
        """Nothing runs on it, and something may."""
        return self.holders == 0 and not self.lost

    def share(self, wanted: Resources) -> NodeShare | None:
        """What a task of ``wanted`` would be given here now, ``None`` when it does not fit."""
        if self.lost or (self.holders and wanted.is_gang):
            return None
        capacity = self.capacity
        total = len(capacity.cores)
        need = wanted.cores_on(total)
        if need > len(self.cores) or wanted.least_cores > total:
            return None
        packing = wanted.node_packing_count
        if packing is not None and self.occupancy + 1 / packing > 1 + _ROUNDING:
            return None
        if capacity.memory and wanted.memory_per_node > self.memory:
            return None
        if wanted.resources_per_node and not self._has(wanted.resources_per_node):
            return None
        shares: tuple[GpuShare, ...] = ()
        if wanted.gpus_per_rank:
            gpus = _give_gpus(self.gpus, wanted)
            if gpus is None:
                return None
            shares = tuple(
                GpuShare(index, given / _GPU)
                for index, given in zip(capacity.gpus, gpus, strict=True)
                if given
            )
        return NodeShare(
            capacity.name,
            self.cores[:need],
            shares,
            wanted.memory_per_node,
            wanted.resources_per_node,
        )

    def used_of(self, wanted: Resources) -> float:
        """The largest part (0 to 1) that is taken of anything that ``wanted`` asks for."""
        capacity = self.capacity
        total = len(capacity.cores)
        used = [1 - len(self.cores) / total] if total else [1.0]
        if wanted.gpus_per_rank and capacity.gpus:
            used.append(1 - sum(self.gpus) / (_GPU * len(capacity.gpus)))
        if wanted.memory_per_node and capacity.memory:
            used.append(1 - self.memory / capacity.memory)
        if wanted.node_packing_count is not None:
            used.append(min(1.0, self.occupancy))
        free = dict(zip((name for name, _ in capacity.resources), self.counts, strict=True))
        asked = dict(wanted.resources_per_node)
        used += [1 - free[name] / n for name, n in capacity.resources if n and asked.get(name)]
        return max(used)

    def _has(self, wanted: Counts) -> bool:
        free = dict(zip((name for name, _ in self.capacity.resources), self.counts, strict=True))
        return all(free.get(name, 0) >= amount for name, amount in wanted)

    def with_taken(self, share: NodeShare, packing: int | None, gang: bool) -> NodeFree:
        """This node without ``share``.

        Raises:
            ValueError: some of it is not free.
        """
        taken = len(share.cores)
        if share.cores == self.cores[:taken]:
            cores = self.cores[taken:]
        else:
            gone = set(share.cores)
            cores = tuple(core for core in self.cores if core not in gone)
        if len(cores) + taken != len(self.cores) or (gang and self.holders):
            missing = sorted(set(share.cores) - set(self.cores))
            raise ValueError(f"{share.node}: cores {missing} are not free")
        gpus = self._change_gpus(share.gpus, -1) if share.gpus else self.gpus
        if share.gpus and min(gpus, default=0) < 0:
            raise ValueError(f"{share.node}: GPUs {share.gpus} are not free")
        memory = self.memory - share.memory
        if memory < 0 and self.capacity.memory:
            raise ValueError(f"{share.node}: {share.memory} bytes of memory are not free")
        counts = self._change_counts(share.resources, -1) if share.resources else self.counts
        if share.resources and min(counts, default=0) < 0:
            raise ValueError(f"{share.node}: {share.resources} are not free")
        return NodeFree(
            self.capacity,
            cores,
            gpus,
            memory,
            counts,
            self.occupancy + (1 / packing if packing else 0.0),
            self.holders + 1,
            gang,
            self.lost,
        )

    def with_given_back(self, share: NodeShare, packing: int | None) -> NodeFree:
        """This node with ``share`` free again."""
        holders = self.holders - 1
        return NodeFree(
            self.capacity,
            tuple(sorted((*self.cores, *share.cores))),
            self._change_gpus(share.gpus, 1) if share.gpus else self.gpus,
            self.memory + share.memory,
            self._change_counts(share.resources, 1) if share.resources else self.counts,
            # an empty node starts afresh, so that rounding never adds up
            self.occupancy - (1 / packing if packing else 0.0) if holders else 0.0,
            holders,
            False,
            self.lost,
        )

    def with_lost(self) -> NodeFree:
        """This node, on which nothing may start any more."""
        return self._replace(lost=True)

    def _change_gpus(self, shares: Iterable[GpuShare], sign: int) -> tuple[int, ...]:
        by_index = {share.index: round(share.fraction * _GPU) for share in shares}
        return tuple(
            free + sign * by_index.get(index, 0)
            for index, free in zip(self.capacity.gpus, self.gpus, strict=True)
        )

    def _change_counts(self, amounts: Counts, sign: int) -> tuple[int, ...]:
        by_name = dict(amounts)
        return tuple(
            free + sign * by_name.get(name, 0)
            for (name, _), free in zip(self.capacity.resources, self.counts, strict=True)
        )


def _give_gpus(free: Sequence[int], wanted: Resources) -> tuple[int, ...] | None:
    """Millionths of each GPU for the ranks of ``wanted``: a rank's fraction is on one GPU."""
    given = [0] * len(free)
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
