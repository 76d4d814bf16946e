"""Packing: limits are kept, the backlog is served, and never more is asked for than it needs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from balsam_celery.errors import InvalidInput
from balsam_celery.limits import at_once, per_node
from balsam_celery.packing import (
    Demand,
    Existing,
    Lane,
    Plan,
    Policy,
    Queue,
    fits_some_queue,
    pack,
    policy_of,
    queues_of,
)
from balsam_celery.resources import Resources
from balsam_celery.settings import Settings, parse
from tests.planning.values import node, resources

POLICY = Policy(max_allocations=10, startup_margin=30, drain_margin=15, kill_grace=5)
NODE = node("n", 4)
SHORT = Queue("short", 1, 2, 60, 600, 2, 2, NODE)
WIDE = Queue("wide", 2, 8, 60, 3600, 2, 2, NODE)


def demands() -> st.SearchStrategy[list[Demand]]:
    return st.lists(
        st.builds(
            Demand,
            resources=resources(),
            wall_time=st.sampled_from([5, 60, 300, 2000, 9000]),
            count=st.integers(0, 500),
            priority=st.sampled_from([0, 0, 1]),
            expected_time=st.sampled_from([None, None, 0.1, 50.0]),
        ),
        max_size=6,
    )


@st.composite
def queues(draw: st.DrawFn) -> list[Queue]:
    made = []
    for number in range(draw(st.integers(1, 3))):
        least, least_time = draw(st.integers(1, 3)), draw(st.sampled_from([1, 60, 300]))
        made.append(
            Queue(
                f"q{number}",
                least,
                least + draw(st.integers(0, 6)),
                least_time,
                least_time + draw(st.sampled_from([0, 200, 3000, 10_000])),
                draw(st.integers(0, 4)),
                draw(st.integers(0, 4)),
                node("n", draw(st.sampled_from([1, 4, 8])), draw(st.integers(0, 2))),
            )
        )
    return made


def as_existing(plan: Plan, asked_of: list[Queue]) -> list[Existing]:
    by_name = {queue.name: queue for queue in asked_of}
    return [
        Existing(
            f"a{number}",
            request.queue,
            "queued",
            request.nodes,
            POLICY.usable(request.wall_time),
            by_name[request.queue].node,
        )
        for number, request in enumerate(plan.requests)
    ]


@given(demands(), queues(), st.integers(0, 6))
def test_limits_are_kept(backlog: list[Demand], asked_of: list[Queue], most: int) -> None:
    policy = replace(POLICY, max_allocations=most)
    plan = pack(backlog, asked_of, [], policy)
    by_name = {queue.name: queue for queue in asked_of}
    assert len(plan.requests) <= most
    for queue in asked_of:
        mine = [request for request in plan.requests if request.queue == queue.name]
        assert len(mine) <= queue.max_queued
    for request in plan.requests:
        queue = by_name[request.queue]
        assert queue.min_nodes <= request.nodes <= queue.max_nodes
        assert queue.min_wall_time <= request.wall_time <= queue.max_wall_time


@given(demands(), queues())
def test_all_is_served_or_said_to_wait(backlog: list[Demand], asked_of: list[Queue]) -> None:
    """Each demand fits one of the requests, or stands among the waiting ones with a reason."""
    plan = pack(backlog, asked_of, [], POLICY)
    by_name = {queue.name: queue for queue in asked_of}
    said = {replace(demand, count=0) for demand, _ in plan.waiting}
    for demand in backlog:
        if not demand.count or replace(demand, count=0) in said:
            continue
        assert any(
            at_once(demand.resources, request.nodes, by_name[request.queue].node)
            and POLICY.usable(request.wall_time) >= demand.wall_time + POLICY.kill_grace
            for request in plan.requests
        )
    assert all(reason for _, reason in plan.waiting)


@given(demands(), queues())
def test_what_was_asked_for_is_enough_and_none_of_it_too_much(
    backlog: list[Demand], asked_of: list[Queue]
) -> None:
    plan = pack(backlog, asked_of, [], POLICY)
    assume(not plan.waiting)
    assert pack(backlog, asked_of, as_existing(plan, asked_of), POLICY) == Plan()


@given(demands(), queues())
def test_no_more_is_asked_for_than_the_backlog_can_fill(
    backlog: list[Demand], asked_of: list[Queue]
) -> None:
    """Nodes: no more than all waiting tasks fill at once; time: no more than one row after
    another of the longest needs."""
    by_name = {queue.name: queue for queue in asked_of}
    for request in pack(backlog, asked_of, [], POLICY).requests:
        queue = by_name[request.queue]
        mine = [d for d in backlog if d.count and at_once(d.resources, request.nodes, queue.node)]
        fill = sum(
            d.count * d.resources.num_nodes / per_node(d.resources, queue.node) for d in mine
        )
        assert request.nodes <= max(queue.min_nodes, math.ceil(fill))
        rounds = sum(
            math.ceil(d.count / at_once(d.resources, request.nodes, queue.node)) for d in mine
        )
        longest = max(d.wall_time for d in mine) + POLICY.kill_grace
        margins = POLICY.startup_margin + POLICY.drain_margin
        assert request.wall_time <= max(queue.min_wall_time, rounds * longest + margins)


@given(demands(), queues())
def test_equal_inputs_give_equal_plans(backlog: list[Demand], asked_of: list[Queue]) -> None:
    assert pack(backlog, asked_of, [], POLICY) == pack(backlog[::-1], asked_of, [], POLICY)


def test_width_for_the_widest_and_time_for_the_longest() -> None:
    backlog = [Demand(Resources(num_nodes=4), 100, 1), Demand(Resources(), 1000, 4)]
    [request] = pack(backlog, [SHORT, WIDE], [], POLICY).requests
    assert (request.queue, request.nodes, request.wall_time) == ("wide", 5, 1000 + 5 + 45)


def test_rows_wait_for_each_other() -> None:
    [request] = pack([Demand(Resources(), 100, 24)], [SHORT], [], POLICY).requests
    assert (request.nodes, request.wall_time) == (2, 3 * 100 + 5 + 45)


def test_several_allocations_for_a_large_backlog() -> None:
    plan = pack([Demand(Resources(), 500, 100)], [SHORT, WIDE], [], POLICY)
    assert [request.queue for request in plan.requests] == ["wide"]
    plan = pack([Demand(Resources(), 500, 1000)], [SHORT, WIDE], [], POLICY)
    assert [request.queue for request in plan.requests] == ["wide", "wide", "short", "short"]
    assert "max_queued" in plan.waiting[0][1]


def test_running_allocations_take_what_they_can() -> None:
    backlog = [Demand(Resources(), 100, 8)]
    running = Existing("r", "short", "running", 2, 400, NODE, (Lane(4), Lane(4)))
    assert pack(backlog, [SHORT], [running], POLICY) == Plan()
    busy = replace(running, lanes=(Lane(0, 390), Lane(0, 390)))
    assert len(pack(backlog, [SHORT], [busy], POLICY).requests) == 1
    draining = replace(running, usable=0)
    assert len(pack(backlog, [SHORT], [draining], POLICY).requests) == 1


def test_a_wide_task_needs_its_nodes_together() -> None:
    wide = [Demand(Resources(num_nodes=2), 100, 1)]
    one_busy = Existing("r", "wide", "running", 2, 400, NODE, (Lane(4), Lane(0, 350)))
    assert len(pack(wide, [WIDE], [one_busy], POLICY).requests) == 1
    soon_free = replace(one_busy, lanes=(Lane(4), Lane(0, 50)))
    assert pack(wide, [WIDE], [soon_free], POLICY) == Plan()


def test_queued_allocations_that_nothing_needs_are_given_up() -> None:
    queued = Existing("q", "short", "queued", 2, 500, NODE)
    assert pack([], [SHORT], [queued], POLICY).cancel == ("q",)
    kept = pack([Demand(Resources(), 100, 1)], [SHORT], [queued], POLICY)
    assert kept == Plan()


def test_an_allocation_of_a_queue_that_left_the_settings_counts() -> None:
    old = Existing("o", "gone", "running", 2, 0, NODE)
    plan = pack([Demand(Resources(), 10, 1)], [SHORT], [old], replace(POLICY, max_allocations=1))
    assert not plan.requests
    assert "max_allocations" in plan.waiting[0][1]


def site(**queue: object) -> Settings:
    return parse(
        {
            "local": {"nodes": 4, "cores_per_node": 2, "gpus_per_node": 1},
            "queues": {"only": {"max_nodes": 8, "max_wall_time": "10m", **queue}},
        }
    )


@pytest.mark.parametrize(
    ("asked", "wall_time", "words"),
    [
        ({}, 100, None),
        ({"num_nodes": 4, "ranks_per_node": 2}, 550, None),
        ({"num_nodes": 5}, 100, "num_nodes is 5: no queue gives more than 4"),
        ({"ranks_per_node": 3}, 100, "ranks_per_node 3 × threads_per_rank 1 need 3 cores"),
        ({"gpus_per_rank": 2}, 100, "gpus_per_rank is 2 for 1 ranks"),
        ({"ranks_per_node": 2, "gpus_per_rank": 0.6}, 100, "a node has 1 GPUs"),
        ({"memory_per_node": 1 << 40}, 100, None),
        (
            {"resources_per_node": (("licence", 1),)},
            100,
            "resources_per_node.licence is 1: no node has any; name it in local.resources_per_node",
        ),
        ({}, 551, "wall_time is 9m11s: the longest that a queue can give 1 node is 9m10s"),
    ],
)
def test_fits_some_queue(asked: dict[str, float], wall_time: int, words: str | None) -> None:
    reason = fits_some_queue(Resources(**asked), wall_time, site())  # type: ignore[arg-type]
    if words is None:
        assert reason is None
    else:
        assert reason is not None
        assert words in reason
        assert "\n" not in reason


def machine(**queues: dict[str, object]) -> Settings:
    """A site of a scheduler whose queues have nodes of their own."""
    short = {"max_wall_time": "10m"}
    return parse(
        {
            "scheduler": {"kind": "slurm"},
            "local": {"nodes": 1, "cores_per_node": 1},
            "queues": {name: {**short, **queue} for name, queue in queues.items()},
        }
    )


CPU = {
    "max_nodes": 8,
    "cores_per_node": 64,
    "memory_per_node": 1024,
    "resources_per_node": {"nvme": 1},
}
GPU = {
    "max_nodes": 2,
    "cores_per_node": 8,
    "gpus_per_node": 4,
    "memory_per_node": 4 << 30,
    "resources_per_node": {"licence": 2},
}


def test_each_queue_has_nodes_of_its_own() -> None:
    cpu, gpu = queues_of(machine(cpu=CPU, gpu=GPU))
    assert (cpu.max_nodes, len(cpu.node.cores), cpu.node.gpus, cpu.node.memory) == (8, 64, (), 1024)
    assert (gpu.max_nodes, len(gpu.node.cores), gpu.node.gpus) == (2, 8, (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"num_nodes": 8, "ranks_per_node": 64}, None),
        ({"num_nodes": 2, "ranks_per_node": 4, "gpus_per_rank": 1}, None),
        ({"num_nodes": 3, "gpus_per_rank": 1}, "1 cores and 1 GPUs gives more than 2; ask for"),
        ({"num_nodes": 9}, "no queue gives more than 8"),
        ({"ranks_per_node": 65}, "a node has 64"),
        ({"ranks_per_node": 9, "gpus_per_rank": 0.1}, "gpus_per_rank is 0.1"),
        ({"num_nodes": 2, "memory_per_node": 4 << 30}, None),
        (
            {"memory_per_node": 5 << 30},
            "memory_per_node is 5368709120 (5GiB): a node has 4GiB; ask for less, or for more",
        ),
        ({"resources_per_node": (("licence", 2),)}, None),
        (
            {"resources_per_node": (("licence", 3),)},
            "resources_per_node.licence is 3: a node has 2; ask for fewer",
        ),
        (
            {"resources_per_node": (("disk", 1),)},
            "resources_per_node.disk is 1: no node has any; name it in"
            " queues.NAME.resources_per_node of site.toml",
        ),
    ],
)
def test_what_no_single_queue_can_hold_is_refused(
    asked: dict[str, float], words: str | None
) -> None:
    settings = machine(cpu=CPU, gpu=GPU)
    reason = fits_some_queue(Resources(**asked), 100, settings)  # type: ignore[arg-type]
    assert (reason is None) if words is None else (words in (reason or ""))


def test_a_queue_without_cores_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"queues\.cpu\.cores_per_node is 0: give the cores"):
        machine(cpu={"max_nodes": 8})


def test_a_site_without_queues_holds_nothing() -> None:
    reason = fits_some_queue(Resources(), 10, Settings())
    assert reason is not None
    assert "[queues.NAME]" in reason


@given(resources(), st.integers(1, 700))
def test_what_fits_is_packed_and_what_does_not_is_not(wanted: Resources, wall_time: int) -> None:
    settings = site()
    plan = pack([Demand(wanted, wall_time, 1)], queues_of(settings), [], policy_of(settings))
    fits = fits_some_queue(wanted, wall_time, settings) is None
    assert (len(plan.requests), len(plan.waiting)) == ((1, 0) if fits else (0, 1))
