"""What planning was shown and what it decided, as plain values: to be written down and replayed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from balsam_celery.candidate import Candidate
from balsam_celery.ledger import Ledger
from balsam_celery.lookahead import LookAhead
from balsam_celery.pilotfree import Holding
from balsam_celery.placement import Pass, Placement, place
from balsam_celery.resources import NodeCapacity


@dataclass(frozen=True, slots=True)
class PilotState:
    """A pilot of a ledger; ``lost``: names of its lost nodes."""

    id: str
    deadline: float
    draining: bool
    nodes: tuple[NodeCapacity, ...]
    lost: tuple[str, ...]
    holdings: tuple[Holding, ...]


@dataclass(frozen=True, slots=True)
class PlacementDecision:
    """One pass of placement: the arguments of :func:`placement.place`, and what it placed.

    ``ageing`` is ``None`` where priorities do not age.
    """

    now: float
    ageing: float | None
    ahead: LookAhead
    pilots: tuple[PilotState, ...]
    candidates: tuple[Candidate, ...]
    placements: tuple[Placement, ...]

    @classmethod
    def of(
        cls,
        ledger: Ledger,
        candidates: Iterable[Candidate],
        now: float,
        ageing: float,
        ahead: LookAhead,
        decided: Pass,
    ) -> PlacementDecision:
        """The decision that a pass was."""
        pilots = tuple(
            PilotState(
                pilot.id,
                pilot.deadline,
                pilot.draining,
                tuple(node.capacity for node in pilot.nodes),
                tuple(node.capacity.name for node in pilot.nodes if node.lost),
                tuple(pilot.holdings.values()),
            )
            for pilot in ledger.pilots.values()
        )
        return cls(
            now,
            ageing if ageing < math.inf else None,
            ahead,
            pilots,
            tuple(candidates),
            decided.placements,
        )

    def replay(self) -> tuple[Placement, ...]:
        """What placement says of the same inputs now."""
        ledger = Ledger.empty()
        for pilot in self.pilots:
            ledger = ledger.add_pilot(
                pilot.id, pilot.nodes, pilot.deadline, draining=pilot.draining
            ).take(pilot.id, pilot.holdings)
            for name in pilot.lost:
                ledger = ledger.lose_node(pilot.id, name)
        ageing = math.inf if self.ageing is None else self.ageing
        return place(ledger, self.candidates, self.now, ageing=ageing, ahead=self.ahead).placements
