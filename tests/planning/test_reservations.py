"""What a waiting task is promised, from one pass to the next."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from balsam_celery.ledger import Ledger
from balsam_celery.lookahead import LookAhead
from balsam_celery.pilotfree import Holding, PilotFree
from balsam_celery.placement import Candidate, Pass, place
from balsam_celery.resources import NodeShare, Resources
from tests.planning.values import NOW, candidates, ledgers, node, resources

SMALL = Candidate("small", 1, Resources(), 10, 0)
THREE = Candidate("three", 1, Resources(ranks_per_node=3), 100, 0, priority=9)


def held(name: str, on: str, cores: int, first: int, lasts: float) -> Holding:
    share = NodeShare(on, tuple(range(first, first + cores)))
    return Holding(name, 1, (share,), NOW + lasts)


def test_every_node_is_looked_at_for_a_part_of_one() -> None:
    """Nine nodes are free sooner as wholes, and nine have more that is free."""
    nodes = [node(f"n{number}", 4) for number in range(19)]
    whole = [held(f"w{n}", f"n{n}", 4, 0, 400) for n in range(9)]
    half = [held(f"h{n}", f"n{n}", 2, 0, 900) for n in range(9, 18)]
    parts = [held("short", "n18", 2, 0, 50), held("long", "n18", 1, 2, 1000)]
    ledger = Ledger.empty().add_pilot("p", nodes, NOW + 10_000).take("p", [*whole, *half, *parts])
    [kept] = place(ledger, [THREE], NOW).reservations
    assert (kept.nodes, kept.start) == (("n18",), NOW + 50)


def times_by_hand(pilot: PilotFree, wanted: Resources) -> list[float]:
    """When the task fits on each node where it ever does, trying each end."""
    found = []
    for place_ in range(len(pilot.nodes)):
        for until in sorted({0.0, *(pilot.lasts(one) for one in pilot.on_node(place_))}):
            then = pilot.copy()
            for one in pilot.on_node(place_):
                if pilot.lasts(one) <= until:
                    then.give_back(one.id, one.attempt)
            if then.node(place_).share(wanted) is not None:
                found.append(until)
                break
    return found


@given(ledgers(), candidates(), resources(), st.randoms(use_true_random=False))
def test_what_is_remembered_of_the_nodes_stays_right(
    ledger: Ledger, waiting: list[Candidate], wanted: Resources, rng: random.Random
) -> None:
    wanted = replace(wanted, num_nodes=1)
    started = list((decided := place(ledger, waiting, NOW)).placements)
    ledger = decided.ledger
    while True:
        for pilot in ledger.pilots.values():
            soonest = pilot.soonest(wanted)
            by_hand = times_by_hand(pilot, wanted)
            assert (None if soonest is None else soonest[0]) == min(by_hand, default=None)
        if not started:
            break
        done = started.pop(rng.randrange(len(started)))
        ledger = ledger.give_back(done.pilot, [(done.id, done.attempt)])
        if rng.random() < 0.1:
            ledger = ledger.lose_node(done.pilot, done.shares[0].node)


class Machine:
    """Tasks that run to their limits or not, small ones that arrive for ever, and look-ahead."""

    def __init__(self, rng: random.Random, nodes: int, ahead: LookAhead) -> None:
        self.rng, self.ahead, self.now, self.arrived = rng, ahead, NOW, 0
        every = [node(f"n{number}", 4) for number in range(nodes)]
        self.ledger = Ledger.empty().add_pilot("p", every, NOW + 1e6)
        self.waiting = [self.arrival() for _ in range(6 * nodes)]
        self.place([])

    def arrival(self) -> Candidate:
        self.arrived += 1
        return replace(
            SMALL,
            id=f"s{self.arrived:05}",
            resources=Resources(ranks_per_node=self.rng.choice([1, 1, 2])),
            wall_time=self.rng.choice([5, 20, 60, 300]),
            created=float(self.arrived),
            expected_time=self.rng.choice([None, 0.5]),
        )

    def place(self, first: list[Candidate]) -> Pass:
        decided = place(self.ledger, [*first, *self.waiting], self.now, ahead=self.ahead)
        self.ledger = decided.ledger
        started = {one.id for one in decided.placements}
        again = {id for _, id, _ in decided.recalled}
        for holding, behind in self.ledger.pilots["p"].queued():
            if behind[0][0] in again and self.rng.random() < 0.5:
                # it has just started: the order comes too late
                again.remove(behind[0][0])
                self.ledger = self.ledger.give_back("p", [holding.key])
        self.ledger = self.ledger.give_back("p", [(id, 1) for id in again])
        self.waiting = [one for one in self.waiting if one.id not in started]
        self.waiting += [self.arrival() for _ in again]
        return decided

    def step(self) -> None:
        """The next end, or the moment at which what is queued is taken back."""
        pilot = self.ledger.pilots["p"]
        queued = {key for _, behind in pilot.queued() for key in behind}
        running = [one for key, one in pilot.holdings.items() if key not in queued]
        ends = min(running, key=lambda one: (one.until, one.id))
        until = ends.until
        if self.rng.random() < 0.7:
            ends = self.rng.choice(running)
            until = self.now + self.rng.random() * (until - self.now)
        late = min(
            (pilot.holdings[key].since + self.ahead.patience + 1e-3 for key in queued),
            default=math.inf,
        )
        if late < until:
            self.now = late
            return
        self.now = until
        self.ledger = self.ledger.give_back("p", [ends.key])
        self.waiting += [self.arrival() for _ in range(3)]


@settings(max_examples=60)
@given(st.integers(0, 10**9), st.sampled_from([1, 3, 40]), st.booleans())
def test_a_promise_is_kept(seed: int, nodes: int, short: bool) -> None:
    """Whatever is backfilled, and sent ahead before: the task starts by the time first told."""
    machine = Machine(random.Random(seed), nodes, LookAhead(8) if short else LookAhead())
    machine.step()
    ahead, machine.ahead = machine.ahead, LookAhead()
    promised = math.inf
    while True:
        decided = machine.place([THREE])
        if any(one.id == THREE.id for one in decided.placements):
            break
        [kept] = [one for one in decided.reservations if one.id == THREE.id]
        assert kept.start <= promised + 1e-6
        promised = kept.start
        machine.ahead = ahead
        machine.step()
    assert machine.now <= promised + 1e-6
