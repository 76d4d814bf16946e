"""Packing: what it asks for, gives up and drains in cases that are easy to see."""

from __future__ import annotations

from dataclasses import replace

from balsam_celery.limits import Policy, Queue
from balsam_celery.packing import Demand, Existing, Lane, Plan, Request, Window, pack
from balsam_celery.resources import Resources
from tests.planning.packings import POLICY, Case
from tests.planning.values import node

NODE = node("n", 4)
SHORT = Queue("short", 1, 2, 60, 600, 2, 2, NODE)
WIDE = Queue("wide", 2, 8, 60, 3600, 2, 2, NODE)
#: Nodes with one core, so that a task is a lane.
BIG = Queue("big", 1, 1000, 60, 86_400, 4, 4, node("n", 1))
#: Speed alone counts.
FAST = replace(POLICY, efficiency=0.0)


def one(plan: Plan) -> Request:
    [request] = plan.requests
    return request


def codes(plan: Plan) -> dict[str, str]:
    return {note.id: note.code for note in plan.notes}


def queued(nodes: int, usable: float, waited: float = 0.0, id: str = "q") -> Existing:
    return Existing(id, "big", "queued", nodes, usable, BIG.node, waited=waited)


def running(nodes: int, usable: float, busy: float = 0.0, likely: float | None = None) -> Existing:
    lane = Lane(0, busy, likely) if busy else Lane(1)
    return Existing("r", "big", "running", nodes, usable, BIG.node, (lane,) * nodes)


def test_width_for_the_widest_and_time_for_the_longest() -> None:
    backlog = [Demand(Resources(num_nodes=4), 300, 1), Demand(Resources(), 1000, 4)]
    request = one(pack(backlog, [SHORT, WIDE], [], FAST))
    assert (request.queue, request.nodes, request.wall_time) == ("wide", 5, 1000 + 5 + 45)


def test_rows_wait_for_each_other() -> None:
    policy = replace(FAST, machine_nodes=2)
    request = one(pack([Demand(Resources(), 100, 24)], [SHORT], [], policy))
    assert request.nodes == 2
    assert 3 * 100 + 5 + 45 <= request.wall_time <= 3 * 110 + 5 + 45


def test_a_large_backlog_is_shared_by_all_that_may_be_asked_for() -> None:
    plan = pack([Demand(Resources(), 500, 1000)], [SHORT, WIDE], [], POLICY)
    assert [request.queue for request in plan.requests] == ["wide", "wide", "short", "short"]
    # of two that may run at once of 8 nodes, each has two thirds of its half
    assert [(r.nodes, r.wall_time) for r in plan.requests] == [(3, 3600)] * 2 + [(1, 600)] * 2
    whole = pack([Demand(Resources(), 500, 1000)], [SHORT, WIDE], [], FAST).requests
    assert [(r.nodes, r.wall_time) for r in whole] == [(8, 3600)] * 2 + [(2, 600)] * 2
    assert plan.waiting[0].code == "max-queued"
    assert "wide (2)" in plan.waiting[0].reason


def test_width_is_paid_for_by_depth() -> None:
    """Of 1,000 tasks of ten minutes each lane runs so many that its start and end weigh little."""
    tasks = [Demand(Resources(), 3600, 1000, expected_time=600)]
    request = one(pack(tasks, [BIG], [], POLICY))
    used = 1000 * 600
    rounds = -(-1000 // request.nodes)
    charged = request.nodes * (POLICY.overhead + rounds * 600)
    assert used / charged >= 0.9
    thrifty = one(pack(tasks, [BIG], [], replace(POLICY, efficiency=0.95)))
    fast = one(pack(tasks, [BIG], [], FAST))
    assert thrifty.nodes < request.nodes < fast.nodes == 1000


def test_lanes_end_together() -> None:
    """101 tasks on 100 nodes would leave 99 of them idle half of the time."""
    tasks = [Demand(Resources(), 36_000, 101)]
    assert one(pack(tasks, [BIG], [], POLICY)).nodes in (51, 101)


def test_a_tail_of_long_tasks_has_a_narrow_allocation_of_its_own() -> None:
    long_ones = Demand(Resources(), 40_000, 4)
    short = Demand(Resources(), 600, 5000)
    plan = pack([short, long_ones], [BIG], [], POLICY)
    narrow, *others = plan.requests
    assert narrow.nodes <= 4
    assert narrow.wall_time > 40_000
    assert sum(one.nodes for one in others) > 50
    assert all(one.wall_time < 30_000 for one in others)
    assert not plan.waiting


def test_the_last_that_may_be_asked_for_takes_all() -> None:
    both = [Demand(Resources(), 600, 4000), Demand(Resources(), 40_000, 4)]
    request = one(pack(both, [replace(BIG, max_queued=1)], [], POLICY))
    assert request.wall_time > 40_000
    assert request.tasks == 4004


def test_expected_time_says_how_much_and_wall_time_what_fits() -> None:
    sure = one(pack([Demand(Resources(), 7200, 100)], [BIG], [], FAST))
    quick = one(pack([Demand(Resources(), 7200, 100, expected_time=72)], [BIG], [], FAST))
    assert quick.wall_time >= 7200
    assert quick.nodes == sure.nodes
    quick = one(pack([Demand(Resources(), 7200, 100, expected_time=72)], [BIG], [], POLICY))
    assert quick.nodes < 20
    again = Demand(Resources(), 7200, 100, expected_time=72, restartable=True, fits=72)
    assert one(pack([again], [BIG], [], POLICY)).wall_time < 7200


def test_a_restartable_task_needs_only_the_time_in_which_it_has_most_likely_ended() -> None:
    small = replace(BIG, max_wall_time=600)
    task = Demand(Resources(), 7200, 1, expected_time=300, fits=400)
    assert pack([task], [small], [], POLICY).waiting[0].code == "no-queue"
    again = replace(task, restartable=True)
    assert POLICY.usable(one(pack([again], [small], [], POLICY)).wall_time) >= 400
    assert pack([replace(again, fits=700)], [small], [], POLICY).waiting[0].code == "no-queue"
    assert pack([replace(again, fits=None)], [small], [], POLICY).waiting[0].code == "no-queue"


def test_running_allocations_take_what_they_can() -> None:
    backlog = [Demand(Resources(), 100, 8)]
    busy = running(8, 400, busy=390)
    assert pack(backlog, [BIG], [running(8, 400)], POLICY).requests == ()
    assert one(pack(backlog, [BIG], [busy], POLICY)).tasks == 8
    assert pack(backlog, [BIG], [running(8, 400, 390, likely=50)], POLICY).requests == ()
    draining = replace(busy, usable=0)
    plan = pack(backlog, [BIG], [draining], POLICY)
    assert one(plan).tasks == 8
    assert codes(plan) == {"r": "ending"}


def test_a_burst_does_not_queue_behind_a_narrow_allocation() -> None:
    """One node could run it all in a day; more are asked for, though not for all of it."""
    burst = [Demand(Resources(), 600, 140)]
    request = one(pack(burst, [BIG], [running(1, 86_400)], POLICY))
    assert 0 < request.tasks < 140
    assert request.nodes > 3
    # where nothing may be asked for, it takes all
    plan = pack(burst, [replace(BIG, max_queued=0)], [running(1, 86_400)], POLICY)
    assert (plan.requests, plan.waiting) == ((), ())


def test_a_wide_task_needs_its_nodes_together() -> None:
    wide = [Demand(Resources(num_nodes=2), 100, 1)]
    one_busy = Existing("r", "wide", "running", 2, 400, NODE, (Lane(4), Lane(0, 350)))
    assert len(pack(wide, [WIDE], [one_busy], POLICY).requests) == 1
    soon_free = replace(one_busy, lanes=(Lane(4), Lane(0, 50)))
    assert pack(wide, [WIDE], [soon_free], POLICY).requests == ()


def test_queued_allocations_that_nothing_needs_are_given_up() -> None:
    plan = pack([], [BIG], [queued(2, 500)], POLICY)
    assert (plan.cancel, codes(plan)) == (("q",), {"q": "unneeded"})
    kept = pack([Demand(Resources(), 100, 2)], [BIG], [queued(2, 500)], POLICY)
    assert (kept.cancel, codes(kept)) == ((), {"q": "kept"})


def test_a_queued_one_shrinks_only_when_that_is_clearly_better() -> None:
    def plan(tasks: int) -> Plan:
        return pack([Demand(Resources(), 600, tasks)], [BIG], [queued(100, 700)], FAST)

    assert codes(plan(100)) == codes(plan(51)) == {"q": "kept"}
    smaller = plan(40)
    assert codes(smaller) == {"q": "too-large"}
    assert one(smaller).nodes == 40


def test_a_queued_one_grows_only_when_that_is_clearly_better() -> None:
    only = replace(BIG, max_queued=1)
    there = queued(1, 700, waited=60)

    def plan(tasks: int) -> Plan:
        return pack([Demand(Resources(), 600, tasks)], [only], [there], FAST)

    assert codes(plan(3)) == {"q": "kept"}
    assert plan(3).waiting[0].code == "max-queued"
    larger = plan(400)
    assert codes(larger) == {"q": "too-small"}
    # its place is free once the scheduler has let it go
    assert larger.requests == ()
    assert pack([Demand(Resources(), 600, 400)], [only], [], FAST).requests[0].nodes == 400
    # not at once
    fresh = replace(there, waited=59)
    assert pack([Demand(Resources(), 600, 400)], [only], [fresh], FAST).cancel == ()
    # one at a time
    ending = replace(there, usable=0)
    assert pack([Demand(Resources(), 600, 400)], [only], [ending], FAST).cancel == ()


def test_queued_ones_are_not_given_up_for_a_larger_one_that_is_not_asked_for() -> None:
    """Where nodes are not given back, several narrow ones share what a wide one could do."""
    queue = Queue("batch", 1, 128, 600, 21_600, 5, 5, node("n", 16))
    task = Demand(Resources(ranks_per_node=16), 3600, 5000, expected_time=1800.0)
    case = Case([task], [queue], [], replace(POLICY, drain_margin=30), [])
    for _ in range(6):
        plan = case.pack()
        assert plan.cancel == ()
        case = case.carried_out(plan)
        case.existing[:] = [replace(a, waited=a.waited + 100) for a in case.existing]
    assert len(case.existing) == 5


def test_one_that_waits_too_long_gets_a_smaller_one_beside_it() -> None:
    policy = replace(FAST, max_wait=3600)
    tasks = [Demand(Resources(), 600, 100)]
    plan = pack(tasks, [BIG], [queued(100, 700, 3600)], policy)
    assert (plan.requests, codes(plan)) == ((), {"q": "kept"})
    plan = pack(tasks, [BIG], [queued(100, 700, 3601)], policy)
    assert codes(plan) == {"q": "overdue"}
    request = one(plan)
    assert (request.code, request.nodes) == ("overdue", 50)
    beside = [queued(100, 700, 3601), queued(50, request.wall_time - 45, id="half")]
    again = pack(tasks, [BIG], beside, policy)
    assert (again.requests, codes(again)) == ((), {"q": "overdue", "half": "kept"})
    # that one waits too long too: it gets one, the first no second one
    late = [beside[0], replace(beside[1], waited=3601)]
    third = one(pack(tasks, [BIG], late, policy))
    assert (third.code, third.nodes) == ("overdue", 25)
    # the smaller one runs all: nothing is left for the other
    runs = replace(beside[1], state="running", usable=7000)
    fewer = [Demand(Resources(), 600, 50)]
    assert codes(pack(fewer, [BIG], [beside[0], runs], policy)) == {"q": "unneeded", "half": "kept"}


def test_idle_nodes_are_asked_for_at_once() -> None:
    tasks = [Demand(Resources(), 3600, 2000, expected_time=600)]
    whole = one(pack(tasks, [BIG], [], POLICY))
    plan = pack(tasks, [BIG], [], POLICY, windows=[Window("big", 20, 40_000.0)])
    first, *rest = plan.requests
    assert (first.code, first.nodes) == ("window", 20)
    assert first.wall_time <= 40_000
    assert [request.code for request in rest] == ["backlog"]
    assert sum(request.tasks for request in plan.requests) == 2000
    # too short for one task, or too short to be worth a start
    for seconds in (600.0, 3800.0):
        window = Window("big", 20, seconds)
        assert one(pack(tasks, [BIG], [], POLICY, windows=[window])) == whole
    # wide and long enough for all
    all_of_it = one(pack(tasks, [BIG], [], POLICY, windows=[Window("big", 1000)]))
    assert all_of_it == replace(whole, code="window")


def test_a_small_one_makes_room_for_a_far_larger_one_in_idle_nodes() -> None:
    queue = Queue("batch", 1, 64, 60, 36_000, 5, 1, node("n", 1))
    task = Demand(Resources(), 3600, 1000)
    small = Existing("r", "batch", "running", 2, 20_000.0, queue.node)
    case = Case([task], [queue], [small], POLICY, [Window("batch", 64)])
    plan = case.pack()
    assert (plan.requests[0].code, plan.drain) == ("window", ("r",))
    assert codes(plan)["r"] == "in-the-way"
    # one at a time
    again = case.carried_out(plan).pack()
    assert again.drain == ()
    assert codes(again)["r"] == "ending"
    # not for one that is little larger, nor where there is room for both
    near = replace(case, existing=[replace(small, nodes=30)], windows=[Window("batch", 32)])
    assert near.pack().drain == ()
    roomy = replace(case, queues=[replace(queue, max_running=2)]).pack()
    assert (roomy.requests[0].code, roomy.drain) == ("window", ())


def test_idle_nodes_are_promised_once() -> None:
    tasks = [Demand(Resources(), 3600, 2000, expected_time=600)]
    window = Window("big", 20, 40_000.0)
    plan = pack(tasks, [BIG], [], POLICY, windows=[window])
    first = plan.requests[0]
    there = queued(first.nodes, POLICY.usable(first.wall_time))
    again = pack(tasks, [BIG], [there], POLICY, windows=[window])
    assert again.requests == plan.requests[1:]


def test_tasks_that_no_queue_can_hold_change_nothing_for_others() -> None:
    """What little is left of those is not asked for the next time, as it was not the first time."""
    queue = Queue("two", 2, 2, 60, 3060, 3, 4, node("n", 8))
    tasks = [
        Demand(Resources(ranks_per_node=2), 2000, 100, expected_time=50.0),
        Demand(Resources(num_nodes=4), 2000, 3, priority=1, expected_time=200.0),
    ]
    case = Case(tasks, [queue], [], replace(POLICY, efficiency=0.5), [])
    plan = case.pack()
    assert len(plan.requests) == 2
    assert not case.carried_out(plan).pack().requests


def test_tasks_that_go_first_are_counted_in_where_others_ask_for_idle_nodes() -> None:
    """Else these would find no room there, and be asked for anew."""
    queue = Queue("q", 1, 13, 60, 10_060, 5, 1, node("n", 4))
    tasks = [
        Demand(Resources(ranks_per_node=2), 300, 20, priority=1, expected_time=200.0),
        Demand(Resources(num_nodes=2), 900, 3),
    ]
    policy = replace(POLICY, efficiency=0.5, budget=100_000.0, machine_nodes=10)
    case = Case(tasks, [queue], [], policy, [Window("q", 4, 2000.0)])
    plan = case.pack()
    assert [request.code for request in plan.requests] == ["window", "backlog"]
    again = case.carried_out(plan).pack()
    assert (again.requests, again.cancel) == ((), ())


def test_the_budget_makes_requests_smaller_and_then_none() -> None:
    tasks = [Demand(Resources(), 3600, 100)]
    full = one(pack(tasks, [BIG], [], FAST))
    assert full.nodes == 100
    policy = replace(FAST, budget=50.0 * full.wall_time)
    assert one(pack(tasks, [replace(BIG, max_queued=1)], [], policy)).nodes == 50
    plan = pack(tasks, [BIG], [], replace(FAST, budget=3600.0))
    assert plan.requests == ()
    assert plan.waiting[0].code == "budget"
    assert plan.waiting[0].reason == "packing.budget has 1.0 node-hours left"


def test_a_machine_of_known_size_is_not_asked_for_more_nodes_than_it_has() -> None:
    policy = replace(FAST, machine_nodes=4)
    burst = [Demand(Resources(), 60, 100)]
    there = replace(running(1, 8000), nodes=1)
    request = one(pack(burst, [BIG], [there], policy))
    assert request.nodes == 3
    full = pack(burst, [BIG], [running(4, 8000)], policy)
    assert (full.requests, full.waiting) == ((), ())
    # what fits none of them has to queue behind them
    wide = [Demand(Resources(num_nodes=4), 60, 1)]
    assert one(pack(wide, [BIG], [there], policy)).nodes == 4


def test_no_more_is_asked_for_than_this_machine_can_start() -> None:
    """A hundred tasks of an hour, of which eleven follow each other in half a day."""
    policy, queue = replace(FAST, machine_nodes=2), replace(BIG, max_nodes=2, max_wall_time=43_200)
    case = Case([Demand(Resources(), 3600, 100)], [queue], [], policy, [])
    plan = case.pack()
    request = one(plan)
    assert (request.nodes, request.wall_time, request.tasks) == (2, 43_200, 22)
    [waits] = plan.waiting
    assert (waits.code, waits.demand.count) == ("machine-full", 78)
    assert waits.reason == "the nodes of this machine (2) are in allocations that can run it later"
    # the next one is asked for when none of them can start any more in this one
    late = replace(case, existing=[running(2, 3604.0, 3000.0)]).pack()
    assert (one(late).nodes, one(late).wall_time) == (2, 43_200)
    assert not replace(case, existing=[running(2, 3606.0, 3000.0)]).pack().requests
    # of two that are near their end each has one that follows
    halves = [replace(running(1, 99.0, 99.0), id=id) for id in ("a", "b")]
    narrow = replace(case, queues=[replace(queue, max_nodes=1)], existing=halves)
    plan = narrow.pack()
    assert [request.nodes for request in plan.requests] == [1, 1]
    # and one that waits for all of them takes what it can
    short = [Demand(Resources(num_nodes=2), 60, 2), Demand(Resources(), 60, 1)]
    late = replace(case, backlog=short, existing=[running(2, 10.0, 10.0)])
    assert one(late.pack()).tasks == 2


def test_idle_allocations_drain_when_nothing_fits_them() -> None:
    idle = replace(running(2, 3000), idle_for=60.0)
    assert pack([], [BIG], [replace(idle, idle_for=59.0)], POLICY).drain == ()
    assert pack([], [BIG], [replace(idle, idle_for=None)], POLICY).drain == ()
    plan = pack([], [BIG], [idle], POLICY)
    assert (plan.drain, codes(plan)) == (("r",), {"r": "idle"})
    fits = [Demand(Resources(), 600, 1)]
    assert pack(fits, [BIG], [idle], POLICY).drain == ()
    too_wide = [Demand(Resources(num_nodes=3), 600, 1)]
    assert pack(too_wide, [BIG], [idle], POLICY).drain == ("r",)


def test_one_too_near_its_end_for_what_waits_does_not_wait_idle() -> None:
    idle = replace(running(2, 300), idle_for=0.0)
    plan = pack([Demand(Resources(), 600, 1)], [BIG], [idle], POLICY)
    assert codes(plan) == {"r": "time-over"}
    # what is only too wide may be followed by others
    assert pack([Demand(Resources(num_nodes=3), 100, 1)], [BIG], [idle], POLICY).drain == ()


def test_an_allocation_of_a_queue_that_left_the_settings_counts() -> None:
    old = Existing("o", "gone", "running", 2, 0, NODE)
    plan = pack([Demand(Resources(), 10, 1)], [SHORT], [old], replace(POLICY, max_allocations=1))
    assert not plan.requests
    assert plan.waiting[0].code == "max-allocations"


def test_policy_of_depth() -> None:
    policy = Policy(1, 30, 15, 5, idle_timeout=60, efficiency=0.9)
    assert round(policy.depth(600, 2)) == (90 + 900) * 9
    given_back = replace(policy, release_after=30.0)
    assert round(given_back.depth(600, 1)) == 60 * 9
    assert 60 * 9 < given_back.depth(600, 2) < policy.depth(600, 2)
    assert replace(policy, efficiency=0.0).depth(600, 2) == 0
