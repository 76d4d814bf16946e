"""The window of a placement pass: what is left out of it could not have started."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from balsam_celery.amounts import counts_text
from balsam_celery.ledger import Ledger
from balsam_celery.lookahead import LookAhead
from balsam_celery.pilotfree import Holding
from balsam_celery.placement import Candidate, place
from balsam_celery.resources import NodeShare, Resources
from balsam_celery.service.estimates import Estimates
from balsam_celery.service.window import candidates_of, most_of
from balsam_celery.store.scans import Waiting
from tests.planning.values import NOW, candidates, ledgers, node

GRACE = 5


def waiting(one: Candidate) -> Waiting:
    """The row of a candidate."""
    wanted = one.resources
    return Waiting(
        id=one.id,
        kind="program",
        attempt=one.attempt - 1,
        priority=one.priority,
        created=one.created,
        num_nodes=wanted.num_nodes,
        ranks_per_node=wanted.ranks_per_node,
        threads_per_rank=wanted.threads_per_rank,
        threads_per_core=wanted.threads_per_core,
        gpus_per_rank=wanted.gpus_per_rank,
        node_packing_count=wanted.node_packing_count,
        cpu_affinity=wanted.cpu_affinity,
        memory_per_node=wanted.memory_per_node,
        resources_per_node=counts_text(wanted.resources_per_node),
        wall_time=one.wall_time,
        restartable=one.restartable,
        expected_time=one.expected_time,
        ran=None,
        checkpoint_grace=0,
        application="",
    )


def in_line(row: Waiting) -> tuple[float | str, ...]:
    """As SQL orders them."""
    return -row.priority, -row.num_nodes, row.created - (row.expected_time or 0.0), row.id


@given(ledgers(), candidates(60), st.integers(0, 60), st.sampled_from([math.inf, 3600.0, 60.0]))
def test_equal_ones_beyond_the_free_cores_change_nothing(
    ledger: Ledger, tasks: list[Candidate], first: int, ageing: float
) -> None:
    """As SQL gives them: by priority, then widest, then oldest; some run already."""
    ledger = place(ledger, tasks[:first], NOW).ledger
    tasks, now = tasks[first:], NOW + 1
    rows = sorted(map(waiting, tasks), key=in_line)
    some = candidates_of(rows, GRACE, most_of(ledger), Estimates())
    whole = place(ledger, tasks, now, ageing=ageing)
    part = place(ledger, some.values(), now, ageing=ageing)
    assert part.placements == whole.placements
    assert part.reservations == whole.reservations


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.lists(st.integers(0, 40), min_size=4, max_size=4),
    st.integers(0, 20),
    st.integers(0, 6),
    st.integers(0, 9),
)
def test_equal_ones_that_look_ahead_has_no_use_for_change_nothing(
    cores: list[int], counts: list[int], first: int, queued: int, tasks: int
) -> None:
    """Of short ones; some run already, others are queued behind them."""
    ledger = Ledger.empty()
    for number, count in enumerate(cores):
        nodes = [node("n0", count), node("n1", count)]
        ledger = ledger.add_pilot(f"p{number}", nodes, NOW + 80 + 30 * number)
    kinds = [(0, 60), (1, 60), (0, 90), (1, 90)]
    each = zip(kinds, counts, strict=True)
    in_turns = sorted((n, kind) for kind, count in each for n in range(count))
    every = [
        Candidate(f"t{n:03}", 1, Resources(), wall_time, GRACE, priority, NOW + n, False, 0.1, 0.1)
        for n, (_, (priority, wall_time)) in enumerate(in_turns)
    ]
    ledger = place(ledger, every[:first], NOW, ahead=LookAhead(queued)).ledger
    held = {id for pilot in ledger.pilots.values() for id, _ in pilot.holdings}
    left, ahead, now = [one for one in every if one.id not in held], LookAhead(tasks), NOW + 1
    rows = sorted(map(waiting, left), key=in_line)
    known = Estimates()
    all_of_them = candidates_of(rows, GRACE, len(rows), known)
    some = candidates_of(rows, GRACE, most_of(ledger, ahead), known)
    whole = place(ledger, all_of_them.values(), now, ahead=ahead)
    part = place(ledger, some.values(), now, ahead=ahead)
    assert part.placements == whole.placements
    assert part.reservations == whole.reservations
    assert part.recalled == whole.recalled


def test_of_many_that_may_be_sent_ahead_few_are_looked_at() -> None:
    ledger = Ledger.empty().add_pilot("p", [node("n0", 2)], NOW + 100)
    assert (most_of(ledger), most_of(ledger, LookAhead(3))) == (2, 7)


def test_each_of_several_pilots_is_kept_for_one_of_equal_tasks() -> None:
    """Though but few cores are free: else what one was promised is given to another."""
    ledger = Ledger.empty()
    for name in ("a", "b", "c"):
        ledger = ledger.add_pilot(name, [node("n0", 1), node("n1", 1)], NOW + 1e6)
        busy = [Holding(f"r{name}", 1, (NodeShare("n0", (0,)),), NOW + 100)]
        if name != "c":
            busy.append(Holding(f"s{name}", 1, (NodeShare("n1", (0,)),), NOW + 100))
        ledger = ledger.take(name, busy)
    wide = [Candidate(f"w{n}", 1, Resources(num_nodes=2), 100, GRACE, 1) for n in range(3)]
    long = Candidate("long", 1, Resources(), 9000, GRACE)
    some = candidates_of(map(waiting, [*wide, long]), GRACE, most_of(ledger), Estimates())
    decided = place(ledger, some.values(), NOW)
    assert {one.pilot for one in decided.reservations} == {"a", "b", "c"}
    assert decided.placements == ()


def test_an_aged_task_is_looked_at_behind_equal_ones_of_a_higher_priority() -> None:
    ledger = Ledger.empty().add_pilot("p", [node("n0", 1)], NOW + 1e6)
    fresh = [Candidate(f"n{n}", 1, Resources(), 10, GRACE, 1, NOW) for n in range(5)]
    aged = Candidate("old", 1, Resources(), 10, GRACE, 0, NOW - 1000)
    some = candidates_of(map(waiting, [*fresh, aged]), GRACE, most_of(ledger), Estimates())
    [first] = place(ledger, some.values(), NOW, ageing=100.0).placements
    assert first.id == "old"


def test_of_many_equal_ones_few_are_looked_at() -> None:
    ledger = Ledger.empty().add_pilot("p", [node("n0", 2), node("n1", 4)], NOW + 100)
    lost = ledger.lose_node("p", "n1")
    task = Candidate("t", 1, Resources(), 10, GRACE)
    rows = [waiting(task)._replace(id=f"t{n:03}") for n in range(500)]
    assert (ledger.free_cores, lost.free_cores, ledger.drain("p").free_cores) == (6, 2, 0)
    some = candidates_of(rows, GRACE, lost.free_cores, Estimates())
    assert list(some) == ["t000", "t001", "t002"]
    steps = [row._replace(kind="celery") for row in rows]
    assert list(candidates_of([*steps, rows[7]], GRACE, 2, Estimates())) == ["t007"]
