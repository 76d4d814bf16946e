"""Sweeps under way, as the pilot's main process knows them: who has yet to confirm."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from balsam_celery.pilot.link import Sweep

#: Told that a sweep is over: "", or what nobody confirms.
Done = Callable[[str], None]


@dataclass(slots=True)
class _Open:
    order: Sweep
    waiting: set[str]
    done: Done


class Sweeping:
    """The book; it sends nothing itself."""

    def __init__(self) -> None:
        self._number = 0
        self._open: dict[int, _Open] = {}

    def begin(
        self,
        nodes: Collection[str],
        marks: tuple[str, ...],
        attempts: tuple[str, ...],
        grace: float,
        done: Done,
        signal: int = 0,
    ) -> Sweep:
        """Enter a sweep; the order is to be sent to ``nodes`` (none: it is over at once)."""
        self._number += 1
        order = Sweep(self._number, marks, attempts, grace, signal)
        if nodes:
            self._open[order.number] = _Open(order, set(nodes), done)
        else:
            done("")
        return order

    def orders(self, node: str) -> list[Sweep]:
        """What a node has yet to confirm: all of it is sent to a keeper that comes (again)."""
        return [one.order for one in self._open.values() if node in one.waiting]

    def confirmed(self, node: str, number: int) -> None:
        """A keeper says that nothing of the sweep lives on its node."""
        if number in self._open:
            self._cross_out(number, node)

    def gone(self, node: str) -> None:
        """The scheduler has given up the node, and nothing lives there any more."""
        for number in list(self._open):
            self._cross_out(number, node)

    def _cross_out(self, number: int, node: str) -> None:
        one = self._open[number]
        one.waiting.discard(node)
        if not one.waiting:
            del self._open[number]
            one.done("")

    def abandon(self, number: int, silent: Collection[str]) -> bool:
        """Forget a sweep for which only these nodes are waited for; tells whether it was so."""
        one = self._open.get(number)
        if one is None or not one.waiting <= set(silent):
            return False
        del self._open[number]
        return True

    def give_up(self, silent: Collection[str]) -> None:
        """End the sweeps for which only these nodes, which nobody can ask, are waited for."""
        for number, one in list(self._open.items()):
            if one.waiting <= set(silent):
                del self._open[number]
                one.done(f"not confirmed by {', '.join(sorted(one.waiting))}")
