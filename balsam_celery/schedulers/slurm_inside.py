"""What a batch script of Slurm finds in its environment. Pure.

The variables are those of ``sbatch(1)``, OUTPUT ENVIRONMENT VARIABLES.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from balsam_celery.errors import SchedulerError
from balsam_celery.resources import NodeCapacity
from balsam_celery.schedulers.hostlist import expand

_CPUS = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_MEBI = 1 << 20


def job_id(environment: Mapping[str, str]) -> str:
    """The id of the job whose environment this is.

    Raises:
        SchedulerError: not the environment of a job of Slurm.
    """
    found = environment.get("SLURM_JOB_ID", "")
    if not found:
        raise SchedulerError("not inside a job of Slurm: SLURM_JOB_ID is not set")
    return found


def nodes_inside(environment: Mapping[str, str]) -> tuple[NodeCapacity, ...]:
    """The nodes of the job, the one that runs the batch script first.

    Cores are the CPUs that Slurm gave, which are hardware threads on machines that have several of
    them in a core.

    Raises:
        SchedulerError: the variables are missing, or do not fit each other.
    """
    word = environment.get("SLURM_JOB_NODELIST", "")
    try:
        names = expand(word)
    except ValueError as error:
        raise SchedulerError(f"SLURM_JOB_NODELIST: {error}") from None
    cpus = environment.get("SLURM_JOB_CPUS_PER_NODE", "")
    counts = expand_counts(cpus)
    if not names or len(counts) != len(names):
        raise SchedulerError(
            f"SLURM_JOB_NODELIST {word!r} names {len(names)} nodes, "
            f"SLURM_JOB_CPUS_PER_NODE {cpus!r} is of {len(counts)}"
        )
    gpus, memory = _gpus(environment), _number(environment, "SLURM_MEM_PER_NODE") * _MEBI
    nodes = [
        NodeCapacity(name, tuple(range(count)), gpus, memory)
        for name, count in zip(names, counts, strict=True)
    ]
    head = environment.get("SLURMD_NODENAME", "")
    return tuple(sorted(nodes, key=lambda node: node.name != head))


def expand_counts(text: str) -> list[int]:
    """CPUs of each node: ``4(x2),2`` is 4, 4, 2; nothing for what is not of that form."""
    matches = [_CPUS.fullmatch(item) for item in text.split(",")]
    return [
        int(match[1]) for match in matches if match is not None for _ in range(int(match[2] or 1))
    ]


def _gpus(environment: Mapping[str, str]) -> tuple[int, ...]:
    """Ids of the head node's GPUs; batch scripts ask for as many on each node."""
    ids = environment.get("SLURM_JOB_GPUS", "").split(",")
    if all(id.isascii() and id.isdigit() for id in ids):
        return tuple(int(id) for id in ids)
    return tuple(range(_number(environment, "SLURM_GPUS_ON_NODE")))


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else 0
