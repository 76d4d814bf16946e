"""No schedule is shorter than the bound, and none uses more than it is charged."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_celery.nodefree import NodeFree
from balsam_celery.resources import Resources
from balsam_celery.simulate.bound import lower_bound
from balsam_celery.simulate.engine import Simulation
from balsam_celery.simulate.planning import Planning
from balsam_celery.simulate.state import Allocation
from balsam_celery.simulate.workload import Kind, Workload, shares_of
from tests.planning.values import node, resources
from tests.simulate.making import NODE, WHOLE, machine, workload

GPU = Kind("gpu", Resources(gpus_per_rank=2), 600)
CPU = Kind("cpu", Resources(threads_per_rank=3), 600)


def test_the_bound_of_work_and_of_the_longest_path() -> None:
    work = workload(WHOLE, [100.0] * 16)
    assert lower_bound(work, machine(nodes=8)) == 200
    assert lower_bound(work, machine(nodes=8), 4) == 400
    chain = Workload((WHOLE,))
    first = chain.add(0, 100.0, 50.0)
    chain.add(0, 300.0, 0.0, [first])
    assert lower_bound(chain, machine()) == 450
    late = workload(WHOLE, [100.0] * 8)
    for _ in range(16):
        late.add(0, 100.0, 1000.0)
    assert lower_bound(late, machine(nodes=8)) == 1200
    # half a node each: a packed task counts its share
    half = workload(replace(WHOLE, resources=Resources(threads_per_rank=2)), [100.0] * 32)
    assert NODE.cores == (0, 1, 2, 3)
    assert lower_bound(half, machine(nodes=8)) == 200


#: Each wants much of one thing.
MIXES = st.builds(
    Resources,
    threads_per_rank=st.sampled_from([1, 1, 4]),
    gpus_per_rank=st.sampled_from([0.0, 0.0, 0.5, 2.0]),
    node_packing_count=st.sampled_from([None, None, 2]),
    memory_per_node=st.sampled_from([0, 0, 18]),
    resources_per_node=st.sampled_from([(), (), (("licence", 3),)]),
)


@given(st.lists(resources() | MIXES, min_size=1, max_size=20), st.integers(1, 3))
def test_what_fits_on_nodes_at_once_takes_no_longer_and_uses_no_more(
    wanted: list[Resources], nodes: int
) -> None:
    """Nodes are filled with whatever mix fits; all of it runs for the same time."""
    capacity = node("n", 6, 2, 20, 3)
    left = [NodeFree.of(capacity)] * nodes
    shapes = sorted(set(wanted), key=repr)
    work = Workload([Kind("a", one, 600) for one in shapes])
    allocation = Allocation("a", "q", nodes, 600, 0.0, started=0.0, ended=100.0)
    for one in wanted:
        free = [place for place, there in enumerate(left) if there.share(one) is not None]
        if len(free) < one.num_nodes:
            continue
        for place in free[: one.num_nodes]:
            share = left[place].share(one)
            assert share is not None
            left[place] = left[place].with_taken(share, one.node_packing_count, one.is_gang)
        work.add(shapes.index(one), 100.0, 0.0)
        allocation.use(shares_of(one, capacity), 100.0)
    where = replace(machine(nodes), node=capacity)
    assert lower_bound(work, where) <= 100.0 * (1 + 1e-9)
    assert allocation.used <= allocation.charged * (1 + 1e-9)


def test_tasks_of_gpus_and_of_cores_share_nodes() -> None:
    work = Workload((GPU, CPU))
    for number in range(40):
        work.add(number % 2, 500.0, 0.0)
    where = machine(4)
    assert lower_bound(work, where) == 20 * 500 / 4
    record = Simulation(work, where, Planning(), 0, trace=True).run()
    assert record.used <= record.charged
    assert record.used == pytest.approx(20 * 500)
