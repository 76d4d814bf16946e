"""What planning was shown and what it decided, as plain values: to be written down and replayed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from balsam_celery.candidate import Candidate
from balsam_celery.ledger import Ledger
from balsam_celery.limits import Policy, Queue
from balsam_celery.lookahead import LookAhead
from balsam_celery.packing import pack
from balsam_celery.pilotfree import Holding
from balsam_celery.placement import Pass, Placement, place
from balsam_celery.plans import Demand, Existing, Note, Release, Request, Window
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

    @property
    def is_repeated(self) -> bool:
        """Placement decides the same of the same inputs now."""
        return self.replay() == self.placements


@dataclass(frozen=True, slots=True)
class PackingDecision:
    """One pass of packing: the arguments of :func:`packing.pack`, and what it decided."""

    now: float
    backlog: tuple[Demand, ...]
    queues: tuple[Queue, ...]
    allocations: tuple[Existing, ...]
    policy: Policy
    windows: tuple[Window, ...]
    requests: tuple[Request, ...]
    notes: tuple[Note, ...]
    release: tuple[Release, ...] = ()

    @property
    def is_repeated(self) -> bool:
        """Packing decides the same of the same inputs now."""
        plan = pack(self.backlog, self.queues, self.allocations, self.policy, windows=self.windows)
        now = plan.requests, plan.notes, plan.release
        return now == (self.requests, self.notes, self.release)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of ``decisions.jsonl``: either of them."""

    placement: PlacementDecision | None = None
    packing: PackingDecision | None = None

    @property
    def is_repeated(self) -> bool:
        """The same is decided of the same inputs now."""
        decisions = (self.placement, self.packing)
        return all(one.is_repeated for one in decisions if one is not None)
