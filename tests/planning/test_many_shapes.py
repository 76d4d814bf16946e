"""Packing looks at each of thousands of shapes a few times only, whatever refuses them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from balsam_celery.limits import Policy, Queue
from balsam_celery.packing import Demand, Existing, Window, pack
from balsam_celery.pouring import Block, Rest
from balsam_celery.resources import NodeCapacity, Resources
from balsam_celery.sizing import Work

NODE = NodeCapacity("", tuple(range(64)), memory=256 << 30)
QUEUES = [
    Queue("q", 1, 128, 600, 86_400, 5, 5, NODE),
    Queue("r", 1, 1000, 600, 21_600, 5, 5, NODE),
]
POLICY = Policy(10, 120, 60, 10, 300, 0.9)
QUEUED = [
    Existing(f"e{number}", "q", "queued", 100, 80_000, NODE, waited=100) for number in range(4)
]
#: Looks at each shape: some for each of ten allocations, not one for each other shape.
MOST = 250


def shapes(count: int) -> list[Demand]:
    return [
        Demand(
            Resources(num_nodes=1 + number % 3, memory_per_node=(1 << 30) + number),
            600 + number * 7,
            10,
            expected_time=None if number % 2 else 300.0 + number,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("policy", "there", "windows"),
    [
        (POLICY, [], []),
        (replace(POLICY, budget=100.0), [], []),
        (replace(POLICY, machine_nodes=300), [], []),
        (replace(POLICY, max_allocations=4), QUEUED, []),
        (POLICY, [], [Window("q", 4, 700.0), Window("r", 100)]),
        (POLICY, [], [Window("q", 1, 650.0), Window("r", 1, 601.0)]),
    ],
    ids=["allocations", "budget", "machine", "full", "windows", "short-windows"],
)
def test_looks_grow_with_the_shapes_alone(
    monkeypatch: pytest.MonkeyPatch,
    policy: Policy,
    there: list[Existing],
    windows: list[Window],
) -> None:
    looks = 0
    pour, work = Block.pour, Work.__init__

    def counted_pour(self: Block, rest: Rest, *, deep: bool = False) -> Rest:
        nonlocal looks
        looks += len(rest)
        return pour(self, rest, deep=deep)

    def counted_work(self: Work, tasks: Rest, *others: Any) -> None:
        nonlocal looks
        looks += len(tasks)
        work(self, tasks, *others)

    monkeypatch.setattr(Block, "pour", counted_pour)
    monkeypatch.setattr(Work, "__init__", counted_work)
    backlog = shapes(2000)
    plan = pack(backlog, QUEUES, there, policy, windows=windows)
    assert looks <= MOST * len(backlog)
    # what is not planned for is said to wait: nothing is forgotten
    told = sum(flow.count for flow in plan.flows) + sum(w.demand.count for w in plan.waiting)
    assert told == 10 * len(backlog)
