"""Reads what Slurm says of nodes and partitions. Pure.

Node states: ``node_state_string`` and ``node_state_base_string`` in Slurm's
``src/common/slurm_protocol_defs.c``, explained in ``sinfo(1)``, NODE STATE CODES. ``scontrol show
node`` gives the state with all its flags, ``sinfo`` one word that stands for several of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from balsam_celery.schedulers.base import IdleWindow, QueueInfo
from balsam_celery.schedulers.hostlist import expand
from balsam_celery.schedulers.slurm_jobs import parse_time

#: For ``sinfo --exact --format``: partition, CPUs, sockets, cores of a socket, memory in MiB, GRES.
SHAPE_FORMAT = "%R|%c|%X|%Y|%m|%G"
#: For ``sinfo --format``: partition, whether it is up, state, nodes.
STATE_FORMAT = "%R|%a|%T|%N"
#: For ``squeue --format`` of pending jobs: expected start, nodes that it would get.
PLAN_FORMAT = "%S|%Y"

_NODE_STATE = re.compile(r"^NodeName=(\S+)\s.*?\bState=(\S+)", re.MULTILINE)
_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")
_MEBI = 1 << 20


def parse_down(text: str) -> frozenset[str]:
    """Nodes that Slurm has set down, from the output of ``scontrol --oneliner show node``.

    When it sets a node down it takes it out of the jobs that held it, and asks nothing of it any
    more. How soon it does that (``SlurmdTimeout``, or an administrator at any moment) does not
    matter: the pilot counts from the break of its own link. One that drains (``DRAIN``), may fail
    soon (``FAIL``), or did not answer of late (``*``) still belongs to its jobs.
    """
    found = _NODE_STATE.findall(text)
    return frozenset(name for name, state in found if state.split("+")[0].rstrip("*") == "DOWN")


@dataclass(frozen=True, slots=True)
class Shape:
    """What each of some nodes of a partition has; memory in bytes."""

    cores: int
    gpus: int
    memory: int


def parse_shapes(text: str) -> dict[str, Shape]:
    """What each node of a partition has at the least, from ``sinfo`` with :data:`SHAPE_FORMAT`.

    Raises:
        ValueError: a line that is not understood.
    """
    shapes: dict[str, Shape] = {}
    for name, cpus, sockets, cores, memory, gres in _rows(text, 6):
        # CPUs are hardware threads; cores are what programs are placed on
        own = Shape(
            min(_number(cpus), _number(sockets) * _number(cores)),
            count_gpus(gres),
            _number(memory) * _MEBI,
        )
        other = shapes.get(name, own)
        shapes[name] = Shape(
            min(own.cores, other.cores), min(own.gpus, other.gpus), min(own.memory, other.memory)
        )
    return shapes


def count_gpus(gres: str) -> int:
    """GPUs in a list of generic resources, such as ``gpu:a100:4(S:0,1),nvme:1``."""
    count = 0
    for item in re.sub(r"\([^()]*\)", "", gres).split(","):
        kind, _, rest = item.partition(":")
        number = rest.rpartition(":")[2]
        if kind == "gpu":
            count += int(number) if number.isdigit() else 1
    return count


def parse_partitions(text: str, shapes: dict[str, Shape], *, is_root: bool) -> list[QueueInfo]:
    """The partitions that have nodes, the default first.

    Args:
        text: output of ``scontrol --oneliner show partition``, which leaves out the ones that are
            hidden from the user.
        shapes: what their nodes have.
        is_root: the user is root.

    Raises:
        ValueError: a value that is not understood.
    """
    queues = []
    for line in text.splitlines():
        values = dict(item.split("=", 1) for item in line.split() if "=" in item)
        name = values.get("PartitionName", "")
        nodes = int(values.get("TotalNodes", 0))
        barred = values.get("DisableRootJobs" if is_root else "RootOnly") == "YES"
        if not name or not nodes or name not in shapes or barred:
            continue
        most = values.get("MaxNodes", "UNLIMITED")
        queues.append(
            QueueInfo(
                name=name,
                min_nodes=max(1, int(values.get("MinNodes", 0))),
                max_nodes=nodes if most == "UNLIMITED" else min(nodes, int(most)),
                max_wall_time=parse_limit(values.get("MaxTime", "UNLIMITED")),
                cores_per_node=shapes[name].cores,
                gpus_per_node=shapes[name].gpus,
                memory_per_node=shapes[name].memory,
                is_default=values.get("Default") == "YES",
                enabled=values.get("State") == "UP",
            )
        )
    return sorted(queues, key=lambda queue: not queue.is_default)


def parse_limit(text: str) -> int | None:
    """A time limit in seconds: ``[days-][hours:]minutes:seconds``, or ``None`` for none.

    Raises:
        ValueError: neither.
    """
    if text in ("UNLIMITED", "NONE", "infinite"):
        return None
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time limit")
    days, hours, minutes, seconds = (int(value or 0) for value in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_plans(text: str) -> dict[str, float]:
    """When the next job that waits is expected on each node, from ``squeue``, :data:`PLAN_FORMAT`.

    Raises:
        ValueError: a line that is not understood.
    """
    plans: dict[str, float] = {}
    for start, nodes in _rows(text, 2):
        at = parse_time(start)
        if at is None or nodes in ("", "(null)"):
            continue
        for node in expand(nodes):
            plans[node] = min(at, plans.get(node, at))
    return plans


def idle_windows(text: str, plans: dict[str, float], now: float) -> tuple[IdleWindow, ...]:
    """Idle nodes by partition and by when they are expected to be used.

    Args:
        text: output of ``sinfo`` with :data:`STATE_FORMAT`.
        plans: see :func:`parse_plans`.
        now: seconds since the epoch.

    Returns:
        For each partition that is up and has idle nodes: how many are not planned for any job, and
        for each time at which some are, how many are idle until then.

    Raises:
        ValueError: a line that is not understood.
    """
    idle: dict[str, set[str]] = {}
    for name, up, state, nodes in _rows(text, 4):
        # with a flag behind it a node is not to be had at once: idle* does not answer, idle~ is off
        if up != "up" or state not in ("idle", "planned"):
            continue
        # planned for a job that this user may not see: until when is not known
        usable = {node for node in expand(nodes) if state == "idle" or node in plans}
        idle.setdefault(name, set()).update(usable)
    return tuple(window for name in idle for window in _windows(name, idle[name], plans, now))


def _windows(
    name: str, nodes: Iterable[str], plans: dict[str, float], now: float
) -> list[IdleWindow]:
    until = [plans.get(node) for node in nodes]
    windows = []
    free = until.count(None)
    if free:
        windows.append(IdleWindow(name, free))
    for at in sorted({time for time in until if time is not None and time > now}, reverse=True):
        free += until.count(at)
        windows.append(IdleWindow(name, free, int(at - now)))
    return windows


def _rows(text: str, fields: int) -> list[list[str]]:
    rows = [line.split("|") for line in text.splitlines() if "|" in line]
    for row in rows:
        if len(row) != fields:
            raise ValueError(f"a line of {len(row)} fields: {'|'.join(row)!r}")
    return rows


def _number(text: str) -> int:
    return int(text.rstrip("+"))
