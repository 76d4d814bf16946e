"""What a node has, and which one it is."""

from __future__ import annotations

import os

import pytest

from balsam_celery.pilot.inventory import completed, surveyed
from balsam_celery.pilot.node import node_name
from balsam_celery.resources import NodeCapacity
from balsam_celery.settings import QueueSettings

USABLE = tuple(sorted(os.sched_getaffinity(0)))


def test_cores_are_real_when_as_many_were_told() -> None:
    told = NodeCapacity("n", tuple(range(100, 100 + len(USABLE))))
    found = surveyed(told, {})
    assert (found.cores, found.pinned) == (USABLE, True)
    assert surveyed(NodeCapacity("n", ()), {}).cores == USABLE


def test_cores_are_numbers_otherwise() -> None:
    found = surveyed(NodeCapacity("n", tuple(range(100, 101 + len(USABLE)))), {})
    assert (found.cores, found.pinned) == (tuple(range(len(USABLE) + 1)), False)


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({}, (7,)),
        ({"CUDA_VISIBLE_DEVICES": "0,2,3"}, (0, 2, 3)),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937,GPU-1a2b3c4d"}, (0, 1)),
        ({"ROCR_VISIBLE_DEVICES": "1"}, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "ROCR_VISIBLE_DEVICES": "4,5"}, (4, 5)),
        ({"ZE_AFFINITY_MASK": "0.0,0.1,1.0,1.1"}, (0, 1, 2, 3)),
        ({"SLURM_GPUS_ON_NODE": "4"}, (0, 1, 2, 3)),
        ({"SLURM_GPUS_ON_NODE": "gpu:4"}, (7,)),
    ],
)
def test_gpus(environment: dict[str, str], gpus: tuple[int, ...]) -> None:
    assert surveyed(NodeCapacity("n", (0,), gpus=(7,)), environment).gpus == gpus


def test_memory_is_never_more_than_was_told() -> None:
    assert surveyed(NodeCapacity("n", (0,), memory=1000), {}).memory == 1000
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < surveyed(NodeCapacity("n", (0,)), {}).memory <= machine


def test_the_queue_tells_what_the_scheduler_does_not() -> None:
    queue = QueueSettings(
        cores_per_node=3,
        gpus_per_node=2,
        memory_per_node=99,
        resources_per_node={"nvme": 1, "licence": 2},
    )
    assert completed(NodeCapacity("n", ()), queue) == NodeCapacity(
        "n", (0, 1, 2), (0, 1), 99, resources=(("licence", 2), ("nvme", 1))
    )
    told = NodeCapacity("n", (5,), (6,), 7, resources=(("nvme", 3),))
    assert completed(told, queue) == told
    assert completed(told, None) == told


@pytest.mark.parametrize(
    ("names", "rank", "environ", "host", "name"),
    [
        (["n1", "n2"], 0, {}, "n2", "n2"),
        (["n1", "n2"], 0, {}, "n2.cluster.org", "n2"),
        (["n1.cluster.org", "n2.cluster.org"], 0, {}, "n2", "n2.cluster.org"),
        (["n1", "n2"], 0, {"SLURMD_NODENAME": "n2"}, "vm", "n2"),
        # passed on from another node: the host knows better
        (["n1", "n2"], 1, {"SLURMD_NODENAME": "n1"}, "n2", "n2"),
        (["n1", "n2"], 1, {"SLURMD_NODENAME": "login"}, "vm", "n2"),
    ],
)
def test_which_node_this_is(
    names: list[str], rank: int, environ: dict[str, str], host: str, name: str
) -> None:
    assert node_name(names, rank, environ, host) == name
