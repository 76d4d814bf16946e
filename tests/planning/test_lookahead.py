"""Look-ahead: short tasks queued behind others, never more than the backlog can spare."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from balsam_celery.ledger import Ledger
from balsam_celery.lookahead import LookAhead, tasks_ahead
from balsam_celery.placement import Candidate, Pass, place
from balsam_celery.resources import Resources
from tests.planning.test_placement import check_free
from tests.planning.values import NOW, candidates, ledgers, node

AHEAD = LookAhead(tasks=6)
SHORT = Candidate("", 1, Resources(), 10, 5, expected_time=0.1)


def short(count: int, first: int = 0) -> list[Candidate]:
    return [replace(SHORT, id=f"t{n:03}") for n in range(first, first + count)]


def two_pilots() -> Ledger:
    ledger = Ledger.empty().add_pilot("p0", [node("n0", 2)], NOW + 1000)
    return ledger.add_pilot("p1", [node("n0", 2)], NOW + 2000)


def sent_ahead(decided: Pass) -> list[tuple[str, str]]:
    return [(p.id, p.pilot) for p in decided.placements if p.shares[0].queued]


def test_what_is_sent_ahead_is_shared_between_pilots() -> None:
    decided = place(two_pilots(), short(14), NOW, ahead=AHEAD)
    assert len(decided.placements) == 10
    ahead = sent_ahead(decided)
    assert [id for id, _ in ahead] == [f"t{n:03}" for n in range(4, 10)]
    assert Counter(pilot for _, pilot in ahead) == {"p0": 4, "p1": 2}
    check_free(decided.ledger)


def test_near_its_end_nothing_of_the_backlog_is_sent_ahead() -> None:
    """Of what is left, one task for each core stays behind for whoever is done first."""
    assert len(sent_ahead(place(two_pilots(), short(9), NOW, ahead=AHEAD))) == 1
    assert not sent_ahead(place(two_pilots(), short(8), NOW, ahead=AHEAD))


def test_where_more_wait_than_are_shown_all_that_are_may_be_sent() -> None:
    few = short(8)
    assert not sent_ahead(place(two_pilots(), few, NOW, ahead=AHEAD))
    assert len(sent_ahead(place(two_pilots(), few, NOW, ahead=replace(AHEAD, many=4)))) == 4


def test_what_is_queued_counts_in_the_next_pass() -> None:
    first = place(two_pilots(), short(20), NOW, ahead=AHEAD)
    rest = short(20, 10)
    assert not place(first.ledger, rest, NOW, ahead=AHEAD).placements
    # its end lets the one behind it run; room for one more behind
    after = first.ledger.give_back("p0", [("t000", 1)])
    again = place(after, rest, NOW, ahead=AHEAD)
    assert len(sent_ahead(again)) == len(again.placements) == 1


def test_the_heir_has_the_cores_of_the_one_before_it() -> None:
    ledger = Ledger.empty().add_pilot("p", [node("n0", 1)], NOW + 1000)
    decided = place(ledger, short(5), NOW, ahead=LookAhead(tasks=2))
    assert [p.id for p in decided.placements] == ["t000", "t001", "t002"]
    free = decided.ledger
    for id in ("t000", "t001", "t002"):
        assert free.free_cores == 0
        free = free.give_back("p", [(id, 1)])
    assert free.free_cores == 1
    check_free(free)
    # one that never came to run leaves the others in their order
    left = decided.ledger.give_back("p", [("t001", 1)]).give_back("p", [("t000", 1)])
    assert left.free_cores == 0
    assert left.give_back("p", [("t002", 1)]).free_cores == 1


def test_long_and_wide_tasks_are_not_sent_ahead() -> None:
    ledger = two_pilots()
    for other in (
        replace(SHORT, expected_time=None),
        replace(SHORT, expected_time=1.0),
        replace(SHORT, resources=Resources(num_nodes=2)),
    ):
        many = [replace(other, id=f"t{n:03}") for n in range(20)]
        assert not sent_ahead(place(ledger, many, NOW, ahead=AHEAD))
    assert not sent_ahead(place(ledger, short(20), NOW))


def test_nothing_waits_behind_what_outlives_its_estimate() -> None:
    decided = place(two_pilots(), short(14), NOW, ahead=AHEAD)
    queued = {(pilot, id, 1) for id, pilot in sent_ahead(decided)}
    assert not place(decided.ledger, [], NOW + 4, ahead=AHEAD).recalled
    assert set(place(decided.ledger, [], NOW + 6, ahead=AHEAD).recalled) == queued
    # also once nothing is sent ahead any more
    assert set(place(decided.ledger, [], NOW + 6).recalled) == queued


def test_nothing_waits_on_nodes_that_are_kept_for_a_wide_task() -> None:
    ledger = Ledger.empty().add_pilot("p", [node("n0", 1), node("n1", 1)], NOW + 1000)
    first = place(ledger, short(14), NOW, ahead=AHEAD)
    queued = {("p", id, 1) for id, _ in sent_ahead(first)}
    assert len(queued) == 6
    wide = replace(SHORT, id="wide", resources=Resources(num_nodes=2), priority=1)
    decided = place(first.ledger, [wide, *short(14, 20)], NOW, ahead=AHEAD)
    assert not decided.placements
    assert set(decided.recalled) == queued


def test_the_number_follows_the_rate() -> None:
    assert tasks_ahead(1500, 0.027, 64) == 41
    assert tasks_ahead(0, 0.027, 64) == 0
    assert tasks_ahead(1e6, 0.027, 64) == 64


@given(ledgers(), candidates(40), st.sampled_from([60, 200, 0]), st.integers(1, 12))
def test_look_ahead_changes_nothing_of_what_starts_now(
    ledger: Ledger, waiting: list[Candidate], more: int, tasks: int
) -> None:
    # so many of one kind that some are left when all cores are taken
    waiting = waiting + short(more)
    ahead = LookAhead(tasks, longest=30.0)
    without, with_it = place(ledger, waiting, NOW), place(ledger, waiting, NOW, ahead=ahead)
    starts = tuple(p for p in with_it.placements if not p.shares[0].queued)
    assert starts == without.placements
    assert with_it.reservations == without.reservations
    queued = [p for p in with_it.placements if p.shares[0].queued]
    assert len(queued) <= tasks
    check_free(with_it.ledger)
    by_id = {one.id: one for one in waiting}
    kept = {
        (r.pilot, name)
        for r in with_it.reservations
        for name in r.nodes
        if ahead.lane(by_id[r.id]) is None
    }
    for one in queued:
        pilot = ledger.pilots[one.pilot]
        assert NOW + ahead.patience + by_id[one.id].limit <= pilot.deadline
        assert (one.pilot, one.shares[0].node) not in kept
    # whatever the order in which they end, all is free in the end
    left = with_it.ledger
    for one in sorted(with_it.placements, key=lambda p: hash((p.id, tasks))):
        left = left.give_back(one.pilot, [(one.id, one.attempt)])
        check_free_cores(left)
    assert not any(pilot.holdings for pilot in left.pilots.values())
    assert not any(list(pilot.queued()) for pilot in left.pilots.values())


def check_free_cores(ledger: Ledger) -> None:
    for pilot in ledger.pilots.values():
        assert pilot.free_cores == sum(len(n.cores) for n in pilot.nodes if not n.lost)
        running = [h for place_ in range(len(pilot.nodes)) for h in pilot.on_node(place_)]
        behind = [key for _, keys in pilot.queued() for key in keys]
        assert {h.key for h in running} | set(behind) == set(pilot.holdings.keys())
