"""What holds for every plan, whatever the backlog, the queues and what there is already."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from balsam_celery.ledger import Ledger
from balsam_celery.limits import at_once, per_node
from balsam_celery.packing import Demand, Plan
from balsam_celery.placement import Candidate, place
from balsam_celery.plans import Existing
from tests.planning.packings import Case, asking, cases

#: Cases are large and slow to make.
some = settings(max_examples=60)

CANCELLED = {"unneeded", "too-large", "too-small"}
DRAINED = {"idle", "time-over"}


def shape(demand: Demand) -> Demand:
    return replace(demand, count=0, waited=0.0)


def holds(case: Case, allocation: Existing, demand: Demand) -> bool:
    """The allocation could run such a task."""
    needed = demand.needs(case.policy.kill_grace)
    fits = at_once(demand.resources, allocation.nodes, allocation.node)
    return bool(fits) and needed <= allocation.usable


@some
@given(cases())
def test_limits_are_kept(case: Case) -> None:
    plan = case.pack()
    there = len(case.existing) + len(plan.requests)
    assert not plan.requests or there <= case.policy.max_allocations
    for queue in case.queues:
        mine = [request for request in plan.requests if request.queue == queue.name]
        queued = sum(1 for a in case.existing if a.queue == queue.name and a.state == "queued")
        assert not mine or queued + len(mine) <= queue.max_queued
        for request in mine:
            assert queue.min_nodes <= request.nodes <= queue.max_nodes
            assert queue.min_wall_time <= request.wall_time <= queue.max_wall_time


@some
@given(cases())
def test_no_more_are_to_start_at_once_than_may_run(case: Case) -> None:
    """One more where one that runs is drained for it."""
    plan = case.pack()
    cleared = {note.id for note in plan.notes if note.code == "in-the-way"}
    for queue in case.queues:
        mine = [a for a in case.existing if a.queue == queue.name and a.state == "running"]
        starting = sum(one.queue == queue.name and one.code == "window" for one in plan.requests)
        makes_room = any(one.id in cleared for one in mine)
        assert not starting or starting + len(mine) <= queue.max_running + makes_room


@some
@given(cases())
def test_the_budget_is_kept(case: Case) -> None:
    plan = case.pack()
    charged = sum(request.nodes * request.wall_time for request in plan.requests)
    assert case.policy.budget is None or not charged or charged <= case.policy.budget


@some
@given(cases())
def test_all_is_covered_or_said_to_wait(case: Case) -> None:
    """A shape that is not said to wait has allocations that can run all of it in time."""
    plan = case.pack()
    # one that is too small holds the place of the one that is to run its share
    assume("too-small" not in {note.code for note in plan.notes})
    waiting = {shape(waits.demand) for waits in plan.waiting}
    after = case.carried_out(plan).existing
    room: float = sum(a.nodes * a.usable for a in after)
    for demand in case.backlog:
        if not demand.count or shape(demand) in waiting:
            continue
        mine = [a for a in after if holds(case, a, demand)]
        assert mine
        nodes = max(per_node(demand.resources, a.node) for a in mine)
        # a restartable one that most likely ends in less may be cut at the allocation's end
        seconds = min(demand.duration, max(a.usable for a in mine))
        room -= demand.count * seconds * demand.resources.num_nodes / nodes
    assert room >= -1e-6


@some
@given(cases())
def test_every_decision_has_its_reason_and_code(case: Case) -> None:
    plan = case.pack()
    codes = {note.id: note.code for note in plan.notes}
    assert list(codes) == [allocation.id for allocation in case.existing]
    assert all(note.reason for note in plan.notes)
    assert {id for id, code in codes.items() if code in CANCELLED} == set(plan.cancel)
    assert {id for id, code in codes.items() if code in DRAINED} == set(plan.drain)
    for waits in plan.waiting:
        assert waits.reason
        assert waits.demand.count > 0
        assert waits.code in {"max-allocations", "max-queued", "budget", "no-queue", "machine-full"}
    for request in plan.requests:
        assert request.reason
        assert request.code in {"backlog", "window"}


@some
@given(asking())
def test_no_more_is_asked_for_than_the_backlog_can_fill(case: Case) -> None:
    """Nodes: no more than the waiting tasks fill at once; time: no more than one row of tasks
    after another needs, each at its limit."""
    policy = case.policy
    for request in case.pack().requests:
        queue = case.by_name[request.queue]
        mine = [
            d for d in case.backlog if d.count and at_once(d.resources, request.nodes, queue.node)
        ]
        fill = sum(
            d.count * d.resources.num_nodes / per_node(d.resources, queue.node) for d in mine
        )
        assert request.nodes <= max(queue.min_nodes, math.ceil(fill))
        assert request.tasks > 0
        rows = sum(
            math.ceil(d.count / at_once(d.resources, request.nodes, queue.node))
            * max(d.needs(policy.kill_grace), d.wall_time)
            for d in mine
        )
        slack = policy.margins + policy.kill_grace
        assert request.wall_time <= max(queue.min_wall_time, math.ceil(rows * 1.5) + slack)


@some
@given(cases(), st.randoms())
def test_equal_inputs_give_equal_plans(case: Case, random: object) -> None:
    shuffled = list(case.backlog)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert case.pack() == replace(case, backlog=shuffled).pack() == case.pack()


@some
@given(cases())
def test_a_plan_that_was_carried_out_is_not_changed(case: Case) -> None:
    """Nothing more is asked for, and nothing is given up: it never flaps."""
    plan = case.pack()
    again = case.carried_out(plan).pack()
    assert (again.requests, again.cancel, again.drain) == ((), (), ())


@some
@given(cases())
def test_once_all_that_was_given_up_is_gone_it_settles(case: Case) -> None:
    """Also where one allocation takes the place of another, planning comes to rest."""
    for _ in range(6):
        plan = case.pack()
        if not (plan.requests or plan.cancel or plan.drain):
            return
        case = case.carried_out(plan)
        gone = [a for a in case.existing if a.usable > 0 or a.id not in plan.cancel]
        named = [replace(a, id=f"b{number}") for number, a in enumerate(gone)]
        case = replace(case, existing=named)
    raise AssertionError(f"it goes on: {plan}")


@some
@given(cases())
def test_only_queued_ones_are_cancelled_and_only_idle_ones_drained(case: Case) -> None:
    plan = case.pack()
    by_id = {allocation.id: allocation for allocation in case.existing}
    assert all(by_id[id].state == "queued" for id in plan.cancel)
    for id in plan.drain:
        assert by_id[id].idle_for is not None
        assert not any(holds(case, by_id[id], d) for d in case.backlog if d.count)


@some
@given(cases())
def test_without_a_backlog_all_that_waits_is_given_up(case: Case) -> None:
    plan = replace(case, backlog=[]).pack()
    queued = tuple(a.id for a in case.existing if a.state == "queued" and a.usable > 0)
    assert sorted(plan.cancel) == sorted(queued)
    assert (plan.requests, plan.waiting) == ((), ())


@some
@given(cases())
def test_one_that_waits_too_long_gets_no_more_than_one_beside_it(case: Case) -> None:
    """However often it is planned, the smaller one is asked for once."""
    case = replace(case, policy=replace(case.policy, max_wait=300.0))
    late = [a for a in case.existing if a.state == "queued" and a.waited > 300 and a.usable > 0]
    asked = 0
    for _ in range(4):
        plan = case.pack()
        asked += sum(request.code == "overdue" for request in plan.requests)
        case = case.carried_out(plan)
    assert asked <= len(late)
    last = case.pack()
    assert (last.requests, last.cancel) == ((), ())
    assert Plan() != last or not case.existing


@some
@given(asking())
def test_what_is_asked_for_is_long_enough_for_placement(case: Case) -> None:
    """In each new allocation a task starts of those that it is for, also if it starts up slowly."""
    plan, policy = case.pack(), case.policy
    for flow in plan.flows:
        if flow.request is None:
            continue
        request, demand = plan.requests[flow.request], flow.demand
        node = case.by_name[request.queue].node
        nodes = [replace(node, name=f"n{number}") for number in range(request.nodes)]
        ledger = Ledger.empty().add_pilot("p", nodes, policy.usable(request.wall_time))
        candidate = Candidate(
            "t",
            1,
            demand.resources,
            demand.wall_time,
            policy.kill_grace,
            restartable=demand.restartable,
            expected_time=demand.fits,
        )
        assert candidate.least_time == demand.needs(policy.kill_grace)
        assert len(place(ledger, [candidate], 0.0).placements) == 1
