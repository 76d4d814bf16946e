"""Queues in which only so many jobs run at once, others waiting."""

from __future__ import annotations

from dataclasses import replace

from balsam_celery.limits import Queue
from balsam_celery.packing import Demand, Existing, Window, pack
from balsam_celery.resources import Resources
from tests.planning.packings import POLICY, Case
from tests.planning.test_packing import BIG, FAST, running
from tests.planning.values import node


def test_no_more_are_counted_on_to_start_than_may_run() -> None:
    queue = Queue("batch", 1, 16, 60, 36_000, 8, 1, node("n", 1))
    tasks, idle = [Demand(Resources(), 3600, 400)], [Window("batch", 64)]
    for policy in (POLICY, replace(POLICY, release_after=30.0)):
        case = Case(tasks, [queue], [], policy, idle)
        plan = case.pack()
        first, *others = plan.requests
        assert first.code == "window"
        assert {one.code for one in others} == {"backlog"}
        assert not case.carried_out(plan).pack().requests
        # a queued one that fits into them starts, and no other does
        there = Existing("a", "batch", "queued", 1, policy.usable(36_000), queue.node)
        beside = replace(case, existing=[there]).pack()
        assert {one.code for one in beside.requests} == {"backlog"}
    both = replace(case, queues=[replace(queue, max_running=2)]).pack()
    assert [one.code for one in both.requests][:3] == ["window", "window", "backlog"]


def test_what_runs_is_not_given_help_that_only_waits_for_its_end() -> None:
    policy = replace(POLICY, release_after=30.0)
    full = Queue("batch", 1, 16, 60, 36_000, 8, 1, node("n", 1))
    runs = Existing("r", "batch", "running", 16, 36_000.0, full.node)
    tasks = [Demand(Resources(), 3600, 100)]
    assert pack(tasks, [full], [runs], policy).requests == ()
    assert pack(tasks, [replace(full, max_running=2)], [runs], policy).requests
    # another queue's starts
    other = replace(full, name="other")
    assert {one.queue for one in pack(tasks, [full, other], [runs], policy).requests} == {"other"}
    # what is too long for it is asked for all the same
    short = replace(runs, usable=900.0)
    assert pack(tasks, [full], [short], policy).requests


def test_a_queue_that_runs_all_it_may_is_asked_last() -> None:
    other = replace(BIG, name="other", max_nodes=10)
    full = replace(BIG, max_running=1)
    tasks = [Demand(Resources(), 600, 20)]
    there = [running(1, 0)]
    assert pack(tasks, [full, other], [], FAST).requests[0].queue == "big"
    assert pack(tasks, [full, other], there, FAST).requests[0].queue == "other"
