"""Idle nodes of running allocations that are given back."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from balsam_celery.lanes import Held, lanes
from balsam_celery.ledger import Ledger
from balsam_celery.limits import Policy, Queue
from balsam_celery.packing import Demand, Existing, Lane, Plan, Release, pack
from balsam_celery.pilotfree import PilotFree
from balsam_celery.placement import Candidate, place
from balsam_celery.releasing import released
from balsam_celery.resources import Resources
from tests.planning.values import NOW, candidates, ledgers, node

POLICY = Policy(10, 30, 15, 5, release_after=60.0)
NODE = node("n", 4)
BUSY = Lane(0, 900.0, 500.0, name="busy")
QUEUE = Queue("q", 1, 8, 60, 7200, 4, 4, NODE)


def idle(name: str, seconds: float = 60.0) -> Lane:
    return Lane(4, name=name, idle_for=seconds)


def running(*each: Lane, usable: float = 3000.0) -> Existing:
    return Existing("a", "q", "running", len(each), usable, NODE, each, head=each[0].name)


def demand(nodes: int = 1, wall_time: int = 600) -> Demand:
    return Demand(Resources(num_nodes=nodes), wall_time, 1)


def test_an_idle_node_is_given_back_and_the_head_is_not() -> None:
    assert released(running(BUSY, idle("b"), idle("c")), [], POLICY) == ("b", "c")
    assert released(running(idle("head"), BUSY, idle("c")), [], POLICY) == ("c",)


def test_a_node_is_kept_for_a_while() -> None:
    assert released(running(BUSY, idle("b", 59.0), idle("c", 61.0)), [], POLICY) == ("c",)


def test_none_is_given_back_where_the_scheduler_takes_none_or_the_end_is_near() -> None:
    there = running(BUSY, idle("b"))
    assert released(there, [], replace(POLICY, release_after=None)) == ()
    assert released(replace(there, usable=60.0), [], POLICY) == ()
    assert released(replace(there, usable=0.0), [], POLICY) == ()
    assert released(replace(there, state="queued"), [], POLICY) == ()


def test_a_node_is_kept_for_what_could_start_there() -> None:
    there = running(BUSY, idle("b"))
    assert released(there, [(demand(), 1)], POLICY) == ()
    # also on more nodes than are free now, once what runs has most likely ended
    assert released(there, [(demand(2), 1)], POLICY) == ()


def test_a_node_is_given_back_beside_tasks_that_cannot_start_there() -> None:
    there = running(BUSY, idle("b"))
    too_wide, too_long, too_late = demand(3), demand(wall_time=3000), demand(2, 2800)
    rest = [(too_wide, 1), (too_long, 1), (too_late, 1)]
    assert released(there, rest, POLICY) == ("b",)
    larger = Demand(Resources(threads_per_rank=8), 60, 1)
    assert released(there, [(larger, 1)], POLICY) == ("b",)


def test_packing_tells_what_is_given_back() -> None:
    there = running(BUSY, idle("b"))
    assert pack([], [QUEUE], [there], POLICY).release == (Release("a", ("b",)),)
    assert pack([demand()], [QUEUE], [there], POLICY).release == ()


def test_an_allocation_that_is_drained_gives_nothing_back_beside_that() -> None:
    there = replace(running(idle("a"), idle("b")), idle_for=60.0)
    plan = pack([], [QUEUE], [there], POLICY)
    assert plan.drain == ("a",)
    assert plan.release == ()


def test_wider_allocations_are_asked_for_where_nodes_can_be_given_back() -> None:
    policy = replace(POLICY, haste=0.0)
    queue = replace(QUEUE, max_nodes=400)
    work = [Demand(Resources(node_packing_count=2, threads_per_rank=2), 1200, 600, 0, 400.0)]

    def nodes(after: float | None) -> int:
        plan = pack(work, [queue], [], replace(policy, release_after=after))
        return sum(request.nodes for request in plan.requests)

    assert nodes(60.0) > 1.5 * nodes(None)
    assert nodes(20.0) > nodes(60.0)


def existing(pilot: PilotFree, idle_for: float, likely: float) -> Existing:
    """A pilot of a ledger as packing sees it."""
    held = [
        Held(tuple(s.node for s in one.shares), one.until - NOW, likely * (one.until - NOW))
        for one in pilot.holdings.values()
    ]
    quiet = {n.capacity.name: idle_for for n in pilot.nodes if not n.lost and not n.holders}
    each = lanes(pilot.nodes, held, quiet, pilot.node(0).capacity)
    return Existing(
        pilot.id,
        "q",
        "running",
        len(each),
        0.0 if pilot.draining else max(0.0, pilot.deadline - NOW),
        pilot.node(0).capacity,
        each,
        head=pilot.node(0).capacity.name,
    )


def wanted(one: Candidate) -> Demand:
    fits = one.expected_time if one.restartable else None
    return Demand(one.resources, one.wall_time, 1, one.priority, None, one.restartable, 0.0, fits)


@given(
    ledgers(),
    candidates(),
    st.sampled_from([1.0, 0.5]),
    st.sampled_from([0.0, 30.0, 200.0]),
    st.booleans(),
)
def test_nothing_is_given_back_that_is_held_or_reserved(
    ledger: Ledger, tasks: list[Candidate], likely: float, idle_for: float, is_later: bool
) -> None:
    decided = place(ledger, tasks, NOW)
    started = {placement.id for placement in decided.placements}
    rest = [(wanted(one), 1) for one in tasks if one.id not in started]
    policy = replace(POLICY, release_after=30.0 if is_later else 0.0)
    for pilot in decided.ledger.pilots.values():
        there = existing(pilot, idle_for, likely)
        given_back = set(released(there, rest, policy))
        assert tuple(sorted(given_back)) == tuple(sorted(released(there, rest, policy)))
        assert there.head not in given_back
        if idle_for < (policy.release_after or 0.0):
            assert not given_back
        for holding in pilot.holdings.values():
            assert given_back.isdisjoint(share.node for share in holding.shares)
        for reservation in decided.reservations:
            if reservation.pilot == pilot.id:
                assert given_back.isdisjoint(reservation.nodes)


def test_equal_inputs_give_equal_plans() -> None:
    there = running(BUSY, idle("b"), idle("c", 10.0))
    plans: list[Plan] = [pack([demand(4)], [QUEUE], [there], POLICY) for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0].release == (Release("a", ("b",)),)
