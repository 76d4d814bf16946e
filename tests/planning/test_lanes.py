"""What runs in an allocation, as packing sees it: what it holds of anything, and until when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_celery.decisions import Line, PackingDecision
from balsam_celery.lanes import Held, Lanes, lanes
from balsam_celery.ledger import Ledger
from balsam_celery.limits import Policy, Queue
from balsam_celery.nodefree import NodeFree
from balsam_celery.packing import pack
from balsam_celery.placement import Candidate, place
from balsam_celery.plans import Demand, Existing
from balsam_celery.pouring import Block
from balsam_celery.resources import NodeCapacity, Resources
from balsam_celery.wire import decode, encode
from tests.planning.values import node, resources

HOUR = 3600.0
NODE = node("", 16, gpus=2, memory=100, licences=4)
QUEUE = Queue("q", 1, 100, 600, 86_400, 5, 5, NODE)
POLICY = Policy(10, 120, 60, 10, efficiency=0.9)
ALL_GPUS = Resources(ranks_per_node=2, gpus_per_rank=1)
#: Tasks that hold few cores and all of something else.
HOGS = {
    "gpus": ALL_GPUS,
    "memory": Resources(memory_per_node=100),
    "licences": Resources(resources_per_node=(("licence", 4),)),
    "packing": Resources(ranks_per_node=1, node_packing_count=1, threads_per_rank=16),
    "cores": Resources(ranks_per_node=16),
}


KINDS = (
    node("", 4),
    node("", 4, gpus=2),
    node("", 8, gpus=1, memory=10),
    node("", 2, memory=20, licences=2),
)


def holding(wanted: Resources, on: NodeCapacity = NODE) -> NodeFree:
    """A node on which one such task runs."""
    free = NodeFree.of(on)
    share = free.share(wanted)
    assert share is not None
    return free.with_taken(share, wanted.node_packing_count, wanted.is_gang)


def running(*nodes: NodeFree, until: float) -> Existing:
    """An allocation with 23 hours left; what runs there ends after ``until``."""
    held = Held(tuple(free.capacity.name for free in nodes), until, until)
    each = lanes(nodes, [held])
    return Existing("a", "q", "running", len(nodes), 23 * HOUR, nodes[0].capacity, each)


@pytest.mark.parametrize("hog", HOGS)
def test_what_a_task_holds_for_a_day_is_asked_for_elsewhere(hog: str) -> None:
    waiting = [Demand(HOGS[hog], 600, 20)]
    busy = pack(waiting, [QUEUE], [running(holding(HOGS[hog]), until=22.9 * HOUR)], POLICY)
    assert sum(request.tasks for request in busy.requests) == 20
    soon = pack(waiting[:1], [QUEUE], [running(holding(HOGS[hog]), until=60)], POLICY)
    assert [soon.requests, soon.waiting] == [(), ()]


def test_beside_a_task_that_holds_the_gpus_those_without_still_run() -> None:
    there = running(holding(ALL_GPUS), until=22.9 * HOUR)
    plan = pack([Demand(Resources(), 600, 14)], [QUEUE], [there], POLICY)
    assert plan.requests == ()
    assert sum(flow.count for flow in plan.flows if flow.allocation == "a") == 14


def test_half_of_the_gpus_halve_what_flows_in() -> None:
    one_gpu = Resources(gpus_per_rank=1)
    many, none = [Demand(one_gpu, 600, 10_000)], replace(QUEUE, max_queued=0)

    def taken(there: Existing) -> int:
        flows = pack(many, [none], [there], POLICY).flows
        return sum(flow.count for flow in flows)

    idle = taken(running(NodeFree.of(NODE), until=0))
    half = taken(running(holding(one_gpu), until=23 * HOUR))
    assert idle == 2 * per_rounds(600)
    assert abs(half - idle / 2) <= 2


def per_rounds(seconds: int) -> int:
    """Tasks of that length, one after the other, within the 23 hours."""
    return int((23 * HOUR - POLICY.kill_grace - seconds) // seconds) + 1


def test_lost_nodes_have_no_lane() -> None:
    nodes = [NodeFree.of(replace(NODE, name=name)) for name in "ab"]
    each = lanes([nodes[0].with_lost(), nodes[1]], [Held(("a", "b"), 9, 5)])
    assert [(lane.busy_for, lane.likely_for) for lane in each] == [(9, 5)]


@given(st.lists(resources(), max_size=4), resources(), st.integers(0, 2))
def test_a_lane_knows_what_its_node_knows(
    taken: list[Resources], wanted: Resources, gpus: int
) -> None:
    wanted = replace(wanted, num_nodes=1)
    capacity = node("n", 8, gpus, memory=10, licences=3)
    free = NodeFree.of(capacity)
    for one in taken:
        share = free.share(one)
        if share is not None:
            free = free.with_taken(share, one.node_packing_count, one.is_gang)
    [lane] = lanes([free], [Held(("n",), 100, 50)])
    planned = Lanes([lane], capacity, 1000.0)
    assert planned.start(wanted, 0) == (free.share(wanted) is not None)
    assert planned.start(wanted, 60)
    assert planned.used(wanted, 1000) <= 51
    if free.is_free:
        assert planned.used(wanted, 1000) == 0


@given(st.lists(resources(), max_size=4))
def test_a_decision_is_read_back_as_it_was_written(taken: list[Resources]) -> None:
    free = NodeFree.of(NODE)
    for one in taken:
        share = free.share(one)
        if share is not None:
            free = free.with_taken(share, one.node_packing_count, one.is_gang)
    backlog, there = (Demand(ALL_GPUS, 600, 20),), (running(free, until=HOUR),)
    plan = pack(backlog, [QUEUE], there, POLICY)
    line = Line(
        packing=PackingDecision(
            1.0, backlog, (QUEUE,), there, POLICY, (), plan.requests, plan.notes
        )
    )
    read = decode(Line, encode(line))
    assert read == line
    assert read.is_repeated


def test_a_decision_that_tells_of_cores_alone_can_be_read() -> None:
    """As they were written before lanes knew anything else."""
    there = running(NodeFree.of(NODE), until=0.0)
    line = Line(packing=PackingDecision(1.0, (), (QUEUE,), (there,), POLICY, (), (), ()))
    new = ',"gpus":null,"memory":null,"resources":null,"occupancy":0.0'
    text = encode(line)
    assert new in text
    assert decode(Line, text.replace(new, "")) == line


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5), resources())
def test_of_nodes_that_differ_each_counts_for_what_it_has(
    kinds: list[NodeCapacity], wanted: Resources
) -> None:
    nodes = [replace(kind, name=f"n{place}") for place, kind in enumerate(kinds)]
    each = lanes(map(NodeFree.of, nodes), [], like=nodes[0])
    block = Block.of(Existing("a", "q", "running", len(nodes), HOUR, nodes[0], each), POLICY)
    tasks = [Candidate(f"t{number:03}", 1, wanted, 60, 5) for number in range(100)]
    ledger = Ledger.empty().add_pilot("a", nodes, HOUR)
    started = len(place(ledger, tasks, 0.0).placements)
    demand = Demand(wanted, 60, 100)
    assert block.row(demand) == started
    assert block.fits(demand) == bool(started)


def test_what_only_some_nodes_of_a_pilot_have_is_neither_missed_nor_counted_on() -> None:
    bare, gpus = replace(NODE, gpus=(), name="bare"), replace(NODE, name="gpus")
    for first in (bare, gpus):
        nodes = [first, *(one for one in (bare, gpus, bare) if one is not first)][:3]
        each = lanes(map(NodeFree.of, nodes), [], like=first)
        there = Existing("a", "q", "running", 3, 23 * HOUR, first, each, idle_for=600.0)
        on_one = pack([Demand(ALL_GPUS, 600, 1)], [QUEUE], [there], POLICY)
        assert (on_one.requests, on_one.drain) == ((), ())
        on_all = pack([Demand(replace(ALL_GPUS, num_nodes=3), 600, 1)], [QUEUE], [there], POLICY)
        assert [request.nodes for request in on_all.requests] == [3]
