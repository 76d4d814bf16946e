"""The simulation itself: equal seeds, nothing lost, nothing given twice."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balsam_celery.packing import Plan, Request
from balsam_celery.resources import Resources
from balsam_celery.simulate.baselines.clairvoyant import clairvoyant
from balsam_celery.simulate.bound import lower_bound
from balsam_celery.simulate.engine import Simulation, Stuck
from balsam_celery.simulate.machine import Machine
from balsam_celery.simulate.metrics import measure
from balsam_celery.simulate.planning import Planning
from balsam_celery.simulate.runs import BASELINES, OURS, make
from balsam_celery.simulate.state import State
from balsam_celery.simulate.workload import Kind, Workload
from tests.simulate.making import WHOLE, check, machine, workload

WHOLE_FOR_AN_HOUR = replace(WHOLE, wall_time=3600)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    kinds = draw(
        st.lists(
            st.builds(
                Kind,
                st.sampled_from("ab"),
                st.builds(
                    Resources,
                    num_nodes=st.sampled_from([1, 1, 1, 2, 4]),
                    threads_per_rank=st.sampled_from([1, 2, 4]),
                    gpus_per_rank=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
                    node_packing_count=st.sampled_from([None, None, 1, 2]),
                ),
                st.sampled_from([60, 600, 1800]),
                st.sampled_from([None, None, 30.0, 900.0]),
                st.booleans(),
                st.sampled_from([0, 0, 1]),
            ),
            min_size=1,
            max_size=4,
        )
    )
    work = Workload(kinds)
    for number in range(draw(st.integers(1, 30))):
        after = (
            draw(st.lists(st.integers(0, number - 1), max_size=2, unique=True)) if number else []
        )
        work.add(
            draw(st.integers(0, len(kinds) - 1)),
            float(draw(st.integers(1, 2000))),
            float(draw(st.sampled_from([0, 0, 10, 900, 5000]))),
            after,
        )
    return work


machines = st.builds(
    machine,
    st.sampled_from([4, 8]),
    max_queued=st.integers(1, 3),
    max_running=st.integers(1, 3),
    load=st.sampled_from([0.0, 0.5, 0.9]),
)


@settings(max_examples=40)
@given(workloads(), machines, st.sampled_from([OURS, *BASELINES]), st.integers(0, 3))
def test_every_task_ends_once_within_capacity(
    work: Workload, where: Machine, planner: str, seed: int
) -> None:
    simulation = Simulation(work, where, make(planner), seed, trace=True, give_up=10 * 86400)
    try:
        record = simulation.run()
    except Stuck:
        # it waits for windows of 35 minutes, which a small and busy machine may never have
        assert planner == "balsam-0.7"
        return
    assert record.ended == len(work)
    check(simulation)
    figures = measure(record, simulation.state.backlog.ready, work, where)
    assert figures.over_bound >= 1


@settings(max_examples=30)
@given(workloads(), machines, st.sampled_from([5_000.0, 20_000.0, 100_000.0]))
def test_no_more_is_charged_than_the_budget(work: Workload, where: Machine, budget: float) -> None:
    where = replace(where, policy=replace(where.policy, budget=budget))
    simulation = Simulation(work, where, Planning(), 0, give_up=10 * 86400)
    with contextlib.suppress(Stuck):  # it is not enough for all
        simulation.run()
    running = sum(one.reserved for one in simulation.state.allocations.values())
    assert simulation.record.charged + running <= budget


@settings(max_examples=10)
@given(workloads(), machines, st.integers(0, 3))
def test_equal_seeds_give_equal_runs(work: Workload, where: Machine, seed: int) -> None:
    first, second = (Simulation(work, where, Planning(), seed, trace=True).run() for _ in range(2))
    assert first == second


@settings(max_examples=5)
@given(workloads(), machines)
def test_knowing_the_future_changes_no_outcome(work: Workload, where: Machine) -> None:
    simulation = clairvoyant(work, where, 1, trace=True)
    check(simulation)
    record = simulation.record
    assert record.ended == len(work)
    assert lower_bound(work, where) <= max(record.finished)
    assert not record.lost


def test_the_other_users_differ_by_seed() -> None:
    work, where = workload(WHOLE, [300.0] * 20), machine(load=0.9)
    starts = {
        tuple(Simulation(work, where, Planning(), seed).run().first_start) for seed in range(4)
    }
    assert len(starts) > 1


def test_a_restartable_task_that_is_cut_starts_again() -> None:
    # expected to run 10 s, it runs for half an hour in an allocation that was made for 10 s
    kind = Kind("wrong", Resources(), 3000, 10.0, True)

    class Short(Planning):
        def pack(self, state: State, now: float) -> Plan:
            wall_time = 7200 if simulation.record.attempts else 400
            busy = bool(state.allocations) or not state.backlog.count
            return Plan() if busy else Plan((Request("q", 1, wall_time, "test"),))

    simulation = Simulation(workload(kind, [1800.0]), machine(), Short(), 0, trace=True)
    record = simulation.run()
    check(simulation)
    assert [attempt.outcome for attempt in record.attempts] == ["cut", "done"]
    assert record.lost == pytest.approx((400 - 30 - 30) / 4)
    assert record.used == pytest.approx(1800 / 4)


def test_tasks_below_one_that_failed_never_start() -> None:
    work = Workload((WHOLE,))
    late = work.add(0, 700.0, 0.0)
    below = work.add(0, 10.0, 0.0, [late])
    work.add(0, 10.0, 0.0, [below])
    work.add(0, 10.0, 0.0)
    record = Simulation(work, machine(), Planning(), 0).run()
    assert (record.done, record.timeouts, record.orphans) == (1, 1, 2)


def test_an_idle_pilot_ends() -> None:
    simulation = Simulation(workload(WHOLE, [100.0]), machine(), Planning(), 0)
    [allocation] = simulation.run().allocations
    assert allocation.ended is not None
    # start-up, the task with its overhead, and the idle timeout
    assert allocation.ended == pytest.approx(30 + 101 + 60, abs=11)


def test_a_request_outside_the_queue_is_refused() -> None:
    class Greedy(Planning):
        def pack(self, state: State, now: float) -> Plan:
            return Plan((Request("q", 5, 600, "too wide"),))

    with pytest.raises(ValueError, match="queue q refuses 5 nodes for 600 s"):
        Simulation(workload(WHOLE, [1.0]), machine(), Greedy(), 0).run()


def test_a_planner_that_never_asks_is_stuck() -> None:
    class Lazy(Planning):
        def pack(self, state: State, now: float) -> Plan:
            return Plan()

    with pytest.raises(Stuck, match="1 tasks are left after 1 days"):
        Simulation(workload(WHOLE, [1.0]), machine(), Lazy(), 0, give_up=86400).run()


def test_an_estimate_that_was_too_short_is_not_believed_twice() -> None:
    # half as much again as it says, then each time twice what was too short: 600 s, 1200 s, 2400 s
    kind = Kind("wrong", Resources(), 3000, 400.0, True)
    simulation = Simulation(workload(kind, [1800.0]), machine(), Planning(), 0, trace=True)
    record = simulation.run()
    check(simulation)
    assert [attempt.outcome for attempt in record.attempts] == ["cut", "cut", "done"]


class OneWide(Planning):
    """Asks once for four nodes, and plans as ours does from then on."""

    def pack(self, state: State, now: float) -> Plan:
        if now > 0:
            return replace(super().pack(state, now), requests=())
        return Plan((Request("q", 4, 7200, "the only one"),))


def test_nodes_that_are_given_back_are_charged_until_then() -> None:
    work = workload(WHOLE_FOR_AN_HOUR, [3000.0, 100.0, 100.0, 100.0])
    there = machine(4)

    def run(after: float | None) -> Simulation:
        simulation = Simulation(work, replace(there, release_after=after), OneWide(), 0, trace=True)
        simulation.run()
        check(simulation)
        return simulation

    [kept] = run(None).record.allocations
    assert kept.given_back == 0
    assert kept.charged == 4 * (kept.ended or 0.0)
    [given] = run(60.0).record.allocations
    # the first task, which is the long one, runs on the head
    assert given.given_back == 3
    length = given.ended or 0.0
    # from the allocation's start: start-up, the task, the wait, and the next look at the backlog
    assert length + 3 * (30 + 100 + 60) <= given.charged <= length + 3 * (30 + 100 + 60 + 15)


def test_nodes_that_are_given_back_serve_others() -> None:
    """Two machines' worth of work: the second allocation starts on nodes of the first."""
    work = workload(WHOLE_FOR_AN_HOUR, [3000.0, 100.0, 100.0, 100.0])
    for _ in range(3):
        work.add(0, 100.0, 1000.0)
    there = replace(machine(4, max_queued=1), release_after=30.0)
    simulation = Simulation(work, there, make(OURS), 0, trace=True)
    record = simulation.run()
    check(simulation)
    assert max(record.finished[4:]) < 2500
