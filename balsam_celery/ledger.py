"""What is free in the pilots: a value, changed in steps.

A :class:`Ledger` is never changed in place: each step gives a new one that shares what the step did
not touch, so a step costs what it changes and a plan that is dropped costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from balsam_celery.pilotfree import Holding, PilotFree
from balsam_celery.resources import NodeCapacity


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is free in all pilots.  Equal steps from an equal ledger give an equal ledger."""

    pilots: Mapping[str, PilotFree]

    @classmethod
    def empty(cls) -> Ledger:
        """No pilot."""
        return cls({})

    @property
    def free_cores(self) -> int:
        """Cores on which something may start, in all pilots."""
        return sum(pilot.free_cores for pilot in self.pilots.values() if not pilot.draining)

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
        known = self.pilots.get(pilot)
        if known is None or not known.has_node(node) or known.node(known.place(node)).lost:
            return self
        changed = known.copy()
        changed.lose(node)
        return Ledger({**self.pilots, pilot: changed})

    def take(self, pilot: str, holdings: Iterable[Holding]) -> Ledger:
        """With ``holdings`` given out in the pilot (used when it is built again from SQL).

        Raises:
            ValueError: some of it is not free, an attempt stands there twice, or the pilot has
                no such node.
        """
        changed = self.pilots[pilot].copy()
        # what others are queued behind goes first
        for holding in sorted(holdings, key=lambda h: (h.is_queued, h.until, h.id)):
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
