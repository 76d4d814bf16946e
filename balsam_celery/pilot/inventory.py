"""What a node really has: looked up on the node, beside what scheduler and queue say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from balsam_celery.resources import NodeCapacity
from balsam_celery.settings import QueueSettings

#: Variables by which schedulers hide GPUs from a job. AMD's first: where there is one, others may
#: count in what it has left.
_MASKS = ("ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
#: Slurm's count of a node's GPUs given to the job (sbatch(1), "OUTPUT ENVIRONMENT VARIABLES").
_SLURM_GPUS = "SLURM_GPUS_ON_NODE"


def completed(node: NodeCapacity, queue: QueueSettings | None) -> NodeCapacity:
    """``node`` with what the scheduler did not tell of it taken from its queue's settings."""
    if queue is None:
        return node
    return replace(
        node,
        cores=node.cores or tuple(range(queue.cores_per_node)),
        gpus=node.gpus or tuple(range(queue.gpus_per_node)),
        memory=node.memory or queue.memory_per_node,
        resources=node.resources or tuple(sorted(queue.resources_per_node.items())),
    )


def surveyed(told: NodeCapacity, environ: Mapping[str, str]) -> NodeCapacity:
    """This host as a node of the pilot.

    Cores are real ones, to which programs may be bound, if this process may use just as many as
    were told; else (hardware threads counted otherwise, several nodes on one machine) numbers.

    Args:
        told: what scheduler or queue say of it.
        environ: of a process that the launcher started here.
    """
    usable = sorted(os.sched_getaffinity(0))
    real = not told.cores or len(usable) == len(told.cores)
    return replace(
        told,
        cores=tuple(usable) if real else tuple(range(len(told.cores))),
        gpus=_gpus(told.gpus, environ),
        memory=_memory(told.memory),
        pinned=real,
    )


def _gpus(told: tuple[int, ...], environ: Mapping[str, str]) -> tuple[int, ...]:
    for name in _MASKS:
        mask = environ.get(name)
        if mask is not None:
            ids = [part.strip() for part in mask.split(",") if part.strip()]
            if all(part.isdigit() for part in ids):
                return tuple(map(int, ids))
            # UUIDs, tiles: programs see as many, numbered from 0; "NoDevFiles" stands for none
            return () if mask.startswith("No") else tuple(range(len(ids)))
    count = environ.get(_SLURM_GPUS, "")
    return tuple(range(int(count))) if count.isdigit() else told


def _memory(told: int) -> int:
    """Bytes: the least of what was told, what the machine has, and what this group may use."""
    limits = [told] if told else []
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            limits.append(int(line.split()[1]) * 1024)
    limits += _group_limits()
    return min(limits, default=0)


def _group_limits() -> list[int]:
    """Limits of this process's control groups: version 2, or the memory controller of version 1."""
    limits = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        for directory in (group, *group.parents):
            if not directory.is_relative_to(root):
                break
            try:
                text = (directory / name).read_text().strip()
            except OSError:
                continue  # the root has none, or it is not shown here
            if text.isdigit() and int(text) > 0:
                limits.append(int(text))
    return limits
