"""Placement: nothing given twice, nothing that cannot end in time, nobody starves."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_celery.bitset import compact
from balsam_celery.ledger import Ledger
from balsam_celery.pilotfree import Holding
from balsam_celery.placement import Candidate, Pass, fits_ever, place
from balsam_celery.resources import GpuShare, NodeShare, Resources
from balsam_celery.service.dispatch import concurrency
from tests.planning.values import NOW, candidates, ledgers, node


def task(name: str, wall_time: int = 10, **fields: object) -> Candidate:
    own = {"priority", "created", "restartable", "expected_time"}
    asked = Resources(**{k: v for k, v in fields.items() if k not in own})  # type: ignore[arg-type]
    rest = {k: v for k, v in fields.items() if k in own}
    return Candidate(name, 1, asked, wall_time, 5, **rest)  # type: ignore[arg-type]


def one_pilot(*cores: int, gpus: int = 0, ends_in: float = 1000) -> Ledger:
    nodes = [node(f"n{number}", count, gpus) for number, count in enumerate(cores)]
    return Ledger.empty().add_pilot("p", nodes, NOW + ends_in)


def nodes_of(decided: Pass) -> dict[str, tuple[str, ...]]:
    return {p.id: tuple(share.node for share in p.shares) for p in decided.placements}


def check_free(ledger: Ledger) -> None:
    """What is held and what is free make up each node, once."""
    for pilot in ledger.pilots.values():
        for there in pilot.nodes:
            shares = [
                share
                for holding in pilot.holdings.values()
                for share in holding.shares
                if share.node == there.capacity.name and not share.queued
            ]
            cores = Counter(core for share in shares for core in share.cores)
            cores.update(there.cores)
            assert cores == Counter(there.capacity.cores)
            for place_, index in enumerate(there.capacity.gpus):
                held = sum(g.fraction for share in shares for g in share.gpus if g.index == index)
                assert held + there.gpus[place_] / 1e6 == pytest.approx(1)
                assert held <= 1 + 1e-9
            assert there.holders == len(shares)
            memory = sum(share.memory for share in shares)
            assert memory + there.memory == there.capacity.memory
            assert there.memory >= 0 or not there.capacity.memory
            for place_, (name, amount) in enumerate(there.capacity.resources):
                held = sum(dict(share.resources).get(name, 0) for share in shares)
                assert held + there.counts[place_] == amount
                assert held <= amount


@given(ledgers(), candidates())
def test_nothing_is_given_twice_and_all_end_in_time(
    ledger: Ledger, waiting: list[Candidate]
) -> None:
    decided = place(ledger, waiting, NOW)
    check_free(decided.ledger)
    by_id = {candidate.id: candidate for candidate in waiting}
    assert len({p.id for p in decided.placements}) == len(decided.placements)
    for placement in decided.placements:
        candidate, pilot = by_id[placement.id], ledger.pilots[placement.pilot]
        wanted = candidate.resources
        assert not pilot.draining
        assert NOW + candidate.least_time <= pilot.deadline
        assert placement.until <= pilot.deadline
        assert placement.attempt == candidate.attempt
        assert len({share.node for share in placement.shares}) == wanted.num_nodes
        for share in placement.shares:
            total = next(n for n in pilot.nodes if n.capacity.name == share.node).capacity
            assert len(share.cores) == wanted.cores_on(len(total.cores))
            given_gpus = sum(gpu.fraction for gpu in share.gpus)
            assert given_gpus == pytest.approx(wanted.gpus_per_node, abs=1e-5)
            assert share.memory == wanted.memory_per_node
            assert share.resources == wanted.resources_per_node
            assert dict(total.resources).keys() >= dict(wanted.resources_per_node).keys()


@given(ledgers(), candidates(), st.randoms(use_true_random=False))
def test_equal_inputs_give_equal_plans(
    ledger: Ledger, waiting: list[Candidate], rng: random.Random
) -> None:
    first = place(ledger, waiting, NOW)
    shuffled = waiting.copy()
    rng.shuffle(shuffled)
    second = place(ledger, shuffled, NOW)
    assert (first.placements, first.reservations) == (second.placements, second.reservations)


@given(ledgers(), candidates())
def test_a_pass_leaves_its_input_alone_and_a_second_finds_nothing_more(
    ledger: Ledger, waiting: list[Candidate]
) -> None:
    before = place(ledger, waiting, NOW)
    started = {p.id for p in before.placements}
    again = place(before.ledger, [c for c in waiting if c.id not in started], NOW)
    assert not again.placements
    assert place(ledger, waiting, NOW).placements == before.placements


@given(ledgers(), candidates())
def test_giving_all_back_makes_the_ledger_empty(ledger: Ledger, waiting: list[Candidate]) -> None:
    after = place(ledger, waiting, NOW)
    given_back = after.ledger
    for placement in after.placements:
        pair = (placement.id, placement.attempt)
        older = given_back.give_back(placement.pilot, [(placement.id, placement.attempt + 1)])
        assert pair in older.pilots[placement.pilot].holdings
        given_back = given_back.give_back(placement.pilot, [pair, pair])
    check_free(given_back)
    assert not any(pilot.holdings for pilot in given_back.pilots.values())
    assert place(given_back, waiting, NOW).placements == after.placements


@given(ledgers(), candidates())
def test_a_ledger_built_again_from_rows_decides_the_same(
    ledger: Ledger, waiting: list[Candidate]
) -> None:
    half = place(ledger, waiting[::2], NOW)
    rebuilt = ledger
    for name, pilot in half.ledger.pilots.items():
        rebuilt = rebuilt.take(name, pilot.holdings.values())
    rest = [c for c in waiting if c.id not in {p.id for p in half.placements}]
    one, other = place(half.ledger, rest, NOW), place(rebuilt, rest, NOW)
    assert (one.placements, one.reservations) == (other.placements, other.reservations)


@given(ledgers(), candidates())
def test_backfill_never_delays_a_reservation(ledger: Ledger, waiting: list[Candidate]) -> None:
    """When all take their limits, the reserved task fits its nodes at the reserved time."""
    decided = place(ledger, waiting, NOW)
    by_id = {candidate.id: candidate for candidate in waiting}
    for reservation in decided.reservations:
        pilot = decided.ledger.pilots[reservation.pilot].copy()
        for holding in list(pilot.holdings.values()):
            if holding.until <= reservation.start:
                pilot.give_back(holding.id, holding.attempt)
        wanted = by_id[reservation.id].resources
        there = [n for n in pilot.nodes if n.capacity.name in reservation.nodes]
        assert len(there) == wanted.num_nodes
        assert all(n.share(wanted) is not None for n in there)
        assert reservation.start + by_id[reservation.id].least_time <= pilot.deadline


@given(candidates(most=40), st.data())
def test_a_task_over_all_nodes_waits_no_longer_than_what_runs(
    others: list[Candidate], data: st.DataObject
) -> None:
    """Small tasks arrive for ever; the wide one starts by the limits of what ran at first.

    Neither a node more nor a shorter estimate, right or wrong, changes that.
    """
    cores = [4] * data.draw(st.sampled_from([3, 3, 4, 5]))
    ledger = one_pilot(*cores, ends_in=100_000)
    shorter = data.draw(st.sampled_from([1.0, 0.1]))
    others = [
        replace(
            c,
            resources=replace(c.resources, num_nodes=1, gpus_per_rank=0.0),
            priority=0,
            expected_time=None if c.expected_time is None else shorter * c.expected_time,
        )
        for c in others
    ]
    half = place(ledger, others[::2], NOW)
    ledger = half.ledger
    running = {(p.id, p.attempt): p.until for p in half.placements}
    bound = max(running.values(), default=NOW)
    waiting = [c for c in others if c.id not in {p.id for p in half.placements}]
    wide = task("wide", 100, num_nodes=3)
    now, arrived = NOW, 0
    while True:
        decided = place(ledger, [*waiting, wide], now)
        ledger = decided.ledger
        started = {p.id for p in decided.placements}
        if "wide" in started:
            break
        running |= {(p.id, p.attempt): p.until for p in decided.placements}
        waiting = [c for c in waiting if c.id not in started]
        assert running, "nothing runs, yet the wide task waits"
        # the next to end does so at its limit or, drawn, before it
        pair = min(running, key=lambda key: (running[key], key))
        until = running.pop(pair)
        if data.draw(st.booleans()):
            until = now + data.draw(st.floats(0, 1)) * (until - now)
        now = max(now, until)
        assert now <= bound + 1e-6
        ledger = ledger.give_back("p", [pair])
        arrived += 1
        waiting += [replace(c, id=f"{c.id}-{arrived}") for c in others[:3]]
    assert now <= bound + 1e-6


def test_widest_first_and_whole_nodes_stay_whole() -> None:
    decided = place(
        one_pilot(4, 4, 4),
        [task("small-a"), task("small-b"), task("wide", num_nodes=2)],
        NOW,
    )
    assert [p.id for p in decided.placements] == ["wide", "small-a", "small-b"]
    # both small ones share the node that the wide one left
    assert nodes_of(decided) == {"wide": ("n0", "n1"), "small-a": ("n2",), "small-b": ("n2",)}
    assert {p.id: p.shares[0].cores for p in decided.placements}["small-b"] == (1,)


def test_priority_goes_before_width() -> None:
    decided = place(one_pilot(2), [task("whole", ranks_per_node=2), task("first", priority=1)], NOW)
    assert [p.id for p in decided.placements] == ["first"]
    assert [r.id for r in decided.reservations] == ["whole"]


def test_the_longest_of_tasks_that_came_together_goes_first() -> None:
    waiting = [replace(task("brief"), lasts=10.0), replace(task("long"), lasts=60.0)]
    assert [p.id for p in place(one_pilot(1), waiting, NOW).placements] == ["long"]
    # but passes none that is older by more than it runs
    older = replace(task("older"), created=-51.0, lasts=10.0)
    decided = place(one_pilot(1), [older, *waiting], NOW)
    assert [p.id for p in decided.placements] == ["older"]
    unknown = replace(task("unknown"), created=-60.5)
    assert [p.id for p in place(one_pilot(1), [*waiting, unknown], NOW).placements] == ["unknown"]


def test_backfill_only_what_ends_before_the_reservation() -> None:
    ledger = place(one_pilot(1, 1), [task("running", 100)], NOW).ledger
    decided = place(
        ledger,
        [task("wide", 50, num_nodes=2), task("short", 100), task("long", 101), task("late", 20)],
        NOW,
    )
    assert decided.reservations[0].start == NOW + 105
    assert decided.reservations[0].nodes == ("n0", "n1")
    assert [p.id for p in decided.placements] == ["late"]
    alone = place(ledger, [task("wide", 50, num_nodes=2), task("short", 100)], NOW)
    assert [p.id for p in alone.placements] == ["short"]


def test_cores_that_the_reserved_task_leaves_may_be_kept() -> None:
    ledger = place(one_pilot(4), [task("running", 100, ranks_per_node=2)], NOW).ledger
    waiting = [
        task("three", 50, ranks_per_node=3),
        task("one-a", 800, created=1),
        task("one-b", 800, created=2),
    ]
    decided = place(ledger, waiting, NOW)
    assert [p.id for p in decided.placements] == ["one-a"]


def test_each_of_equal_tasks_has_a_pilot_kept_for_it() -> None:
    ledger = Ledger.empty()
    for pilot in ("a", "b"):
        nodes = [node(f"n{number}", 1) for number in range(2)]
        ledger = ledger.add_pilot(pilot, nodes, NOW + 10_000)
    ledger = place(ledger, [task("r1", 100), task("r2", 100, created=1)], NOW).ledger
    wide = [task(f"w{n}", 50, num_nodes=2, priority=5, created=n) for n in range(3)]
    ledger = ledger.take("b", [Holding("held", 1, (NodeShare("n0", (0,)),), NOW + 90)])
    decided = place(ledger, [*wide, task("long", 1000), task("short", 20)], NOW)
    assert [(r.id, r.pilot) for r in decided.reservations] == [("w0", "b"), ("w1", "a")]
    assert [p.id for p in decided.placements] == ["short"]


def test_a_task_that_no_pilot_can_hold_in_time_blocks_nobody() -> None:
    decided = place(one_pilot(1, 1, ends_in=60), [task("wide", 100, num_nodes=2), task("s")], NOW)
    assert [p.id for p in decided.placements] == ["s"]
    assert not decided.reservations


def test_restartable_tasks_start_where_their_expected_time_fits() -> None:
    ledger = one_pilot(1, ends_in=60)
    held = task("held", 100, expected_time=20.0)
    assert not place(ledger, [held], NOW).placements
    [placed] = place(ledger, [replace(held, restartable=True)], NOW).placements
    assert placed.until == NOW + 60
    assert fits_ever(ledger.pilots["p"], replace(held, restartable=True), NOW)
    assert not fits_ever(ledger.pilots["p"], held, NOW)


def test_the_pilot_that_ends_first_is_filled_first() -> None:
    ledger = one_pilot(2, ends_in=1000).add_pilot("early", [node("n0", 2)], NOW + 100)
    decided = place(ledger, [task("short"), task("long", 500)], NOW)
    assert {p.id: p.pilot for p in decided.placements} == {"short": "early", "long": "p"}


def test_gpu_fractions_share_one_gpu_and_whole_ones_take_others() -> None:
    ledger = one_pilot(8, gpus=2)
    waiting = [task(f"tenth-{n}", gpus_per_rank=0.1) for n in range(10)]
    decided = place(ledger, [*waiting, task("whole", gpus_per_rank=1)], NOW)
    assert len(decided.placements) == 8  # cores are the limit
    shares = {p.id: p.shares[0].gpus for p in decided.placements}
    used = {gpu.index for name, gpus in shares.items() if name != "whole" for gpu in gpus}
    assert len(used) == 1
    if "whole" in shares:
        assert shares["whole"] == (GpuShare(({0, 1} - used).pop(), 1.0),)


def test_node_packing_count_is_kept() -> None:
    decided = place(one_pilot(8), [task(f"third-{n}", node_packing_count=3) for n in range(5)], NOW)
    assert len(decided.placements) == 3
    whole = place(one_pilot(8), [task("whole", node_packing_count=1), task("other")], NOW)
    assert nodes_of(whole) == {"whole": ("n0",)}
    assert len(whole.placements[0].shares[0].cores) == 8


def test_draining_and_lost_nodes_take_nothing() -> None:
    ledger = one_pilot(1, 1)
    assert not place(ledger.drain("p"), [task("a")], NOW).placements
    lost = ledger.lose_node("p", "n0")
    assert nodes_of(place(lost, [task("a"), task("b")], NOW)) == {"a": ("n1",)}
    assert not place(lost, [task("wide", num_nodes=2)], NOW).reservations
    assert lost.drain("gone") is lost
    assert lost.give_back("gone", [("a", 1)]) is lost
    assert not lost.remove_pilot("p").pilots


def test_concurrency_follows_gang_and_single_tasks() -> None:
    ledger = one_pilot(4, 4, 4, 4)
    assert concurrency(ledger.pilots["p"]) == ({f"n{n}": 4 for n in range(4)}, 4)
    decided = place(ledger, [task("gang", num_nodes=2), task("single")], NOW)
    assert concurrency(decided.ledger.pilots["p"]) == ({"n0": 0, "n1": 0, "n2": 4, "n3": 4}, 3)
    lost = decided.ledger.lose_node("p", "n3")
    assert concurrency(lost.pilots["p"]) == ({"n0": 0, "n1": 0, "n2": 4, "n3": 0}, 2)


def test_taking_what_is_not_free_is_refused() -> None:
    ledger = one_pilot(2)
    share = NodeShare("n0", (0,))
    taken = ledger.take("p", [Holding("a", 1, (share,), NOW)])
    with pytest.raises(ValueError, match="not free"):
        taken.take("p", [Holding("b", 1, (share,), NOW)])
    with pytest.raises(ValueError, match="no node"):
        taken.take("p", [Holding("b", 1, (NodeShare("other", (0,)),), NOW)])
    assert not ledger.pilots["p"].holdings


@pytest.mark.parametrize(
    ("free", "count", "chosen"),
    [
        ([0, 1, 2, 5, 6], 2, [5, 6]),
        ([0, 1, 2, 5, 6], 3, [0, 1, 2]),
        ([0, 4, 5, 9], 3, [0, 4, 5]),
        ([3], 1, [3]),
        ([], 1, None),
        ([0, 1], 3, None),
    ],
)
def test_compact(free: list[int], count: int, chosen: list[int] | None) -> None:
    assert compact(sum(1 << place_ for place_ in free), count) == chosen
