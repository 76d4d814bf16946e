"""Which tasks an allocation of the site could ever hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_celery.errors import InvalidInput
from balsam_celery.packing import Demand, fits_some_queue, pack, policy_of, queues_of
from balsam_celery.resources import Resources
from balsam_celery.settings import Settings, parse
from tests.planning.values import resources


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
            {"memory_per_node": 4 << 30, "ranks_per_node": 9},
            "no queue has nodes with all of 9 cores, 0 GPUs and 4GiB of memory; ask for less",
        ),
        (
            {"resources_per_node": (("licence", 1), ("nvme", 1))},
            "no queue has nodes with all of 1 cores, 0 GPUs, 1 licence and 1 nvme; ask for less",
        ),
        (
            {"num_nodes": 3, "memory_per_node": 4 << 30},
            "no queue with nodes for 1 cores, 0 GPUs and 4GiB of memory gives more than 2; ask",
        ),
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
