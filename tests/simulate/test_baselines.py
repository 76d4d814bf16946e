"""The baselines' published rules on cases made by hand."""

from __future__ import annotations

from balsam_celery.ledger import Ledger
from balsam_celery.resources import NodeCapacity, Resources
from balsam_celery.simulate.backlog import Backlog
from balsam_celery.simulate.baselines.balsam07 import Balsam07
from balsam_celery.simulate.baselines.hyperqueue import HyperQueue
from balsam_celery.simulate.baselines.original import Original
from balsam_celery.simulate.batch import Idle
from balsam_celery.simulate.estimates import Estimates
from balsam_celery.simulate.state import Allocation, State
from balsam_celery.simulate.workload import Kind, Workload
from tests.simulate.making import machine

SMALL = Kind("small", Resources(node_packing_count=1), 600)
WIDE = Kind("wide", Resources(num_nodes=3), 600)


def state(
    *kinds: Kind, each: int = 1, nodes: int = 0, deadline: float = 1e6, most: int = 512
) -> State:
    work = Workload(kinds)
    for kind in range(len(kinds)):
        for _ in range(each):
            work.add(kind, 60.0, 0.0)
    backlog = Backlog(work)
    for task in range(len(work)):
        backlog.add(task, 0.0)
    ledger = Ledger.empty()
    if nodes:
        names = [NodeCapacity(f"p.{n}", (0, 1, 2, 3), (0, 1)) for n in range(nodes)]
        ledger = ledger.add_pilot("p", names, deadline)
    where = machine(1024, max_nodes=most, max_queued=20, max_running=20, max_wall_time=86400)
    return State(where, work, backlog, ledger, {}, Estimates(), [0] * len(work))


def with_allocation(there: State, nodes: int, submitted: float, kind: str = "queued") -> Allocation:
    one = Allocation(f"a{len(there.allocations)}", "q", nodes, 3600, submitted, kind)  # type: ignore[arg-type]
    there.allocations[one.id] = one
    return one


def test_original_asks_for_256_nodes_and_six_hours_once() -> None:
    there = state(SMALL)
    [request] = Original().pack(there, 0).requests
    assert (request.nodes, request.wall_time) == (256, 21600)
    with_allocation(there, 256, 0.0)
    assert Original().pack(there, 10).requests == ()
    there.backlog.ready[0] = 20.0
    assert len(Original().pack(there, 20).requests) == 1


def test_original_is_cut_to_the_queue() -> None:
    [request] = Original().pack(state(SMALL, most=100), 0).requests
    assert request.nodes == 100


def test_original_starts_the_widest_first() -> None:
    decided = Original().place(state(SMALL, WIDE, nodes=3), 0)
    assert [one.id for one in decided.placements] == ["0000001"]


def test_balsam_starts_the_narrowest_first_and_the_longest_of_those() -> None:
    longer = Kind("longer", Resources(node_packing_count=1), 900)
    decided = Balsam07().place(state(SMALL, WIDE, longer, nodes=4), 0)
    assert [one.id for one in decided.placements] == ["0000002", "0000000"]


def test_balsam_starts_nothing_that_cannot_end() -> None:
    decided = Balsam07().place(state(SMALL, nodes=1, deadline=604.0), 0)
    assert decided.placements == ()


def test_balsam_takes_the_largest_window_less_five_minutes() -> None:
    there = state(SMALL, each=300)
    assert Balsam07().pack(there, 0).requests == (), "nothing is idle"
    there.idle = [Idle(500, 2000.0), Idle(100, 7200.0), Idle(60, 9000.0)]
    [request] = Balsam07().pack(there, 0).requests
    assert (request.nodes, request.wall_time) == (100, 6900)


def test_balsam_asks_for_20_to_127_nodes() -> None:
    for tasks, nodes in ((1, 20), (50, 50), (500, 127)):
        [request] = Balsam07(backfill=False).pack(state(SMALL, each=tasks), 0).requests
        assert (request.nodes, request.wall_time) == (nodes, 355 * 60)


def test_balsam_asks_for_what_is_missing() -> None:
    there = state(SMALL, each=50)
    with_allocation(there, 10, 0.0)
    [request] = Balsam07(backfill=False).pack(there, 0).requests
    assert request.nodes == 40
    with_allocation(there, 40, 0.0)
    assert Balsam07(backfill=False).pack(there, 0).requests == ()


def test_balsam_deletes_what_waited_for_ten_minutes() -> None:
    there = state(SMALL)
    old = with_allocation(there, 20, 0.0)
    assert Balsam07().pack(there, 600).cancel == ()
    assert Balsam07().pack(there, 601).cancel == (old.id,)
    assert Balsam07(backfill=False).pack(there, 601).cancel == ()


def test_hyperqueue_keeps_its_backlog_queued() -> None:
    there = state(SMALL, each=1000)
    requests = HyperQueue().pack(there, 0).requests
    assert [(one.nodes, one.wall_time) for one in requests] == [(32, 3600)] * 4
    with_allocation(there, 32, 0.0)
    assert len(HyperQueue().pack(there, 0).requests) == 3


def test_hyperqueue_asks_for_no_more_than_it_can_use() -> None:
    assert len(HyperQueue().pack(state(SMALL, each=40), 0).requests) == 2


def test_hyperqueue_starts_in_order_of_submission() -> None:
    other = Kind("other", Resources(node_packing_count=2), 900)
    decided = HyperQueue().place(state(SMALL, other, WIDE, nodes=4), 0)
    assert [one.id for one in decided.placements] == ["0000002", "0000000"]
