"""Nodes of a PBS job, and of the machine. Pure.

Sources: the reference guide of PBS Professional 2021.1 (formats of ``exec_host`` and
``exec_vnode``; states of vnodes), OpenPBS 23.06's ``src/resmom/start_exec.c`` (the node file), and
captured answers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from balsam_celery.schedulers.pbs_jobs import Attributes, Unreadable, document, integer, size

_CHUNK = re.compile(r"\(([^()]*)\)")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a host has, or gives to a job: cores, GPUs, bytes of memory (0: not told)."""

    cores: int = 0
    gpus: int = 0
    memory: int = 0

    def __add__(self, other: Shape) -> Shape:
        return Shape(self.cores + other.cores, self.gpus + other.gpus, self.memory + other.memory)


@dataclass(frozen=True, slots=True)
class Node:
    """A vnode as ``pbsnodes`` tells.

    Attributes:
        states: such as ``{"free"}`` or ``{"down", "offline"}``; empty for an unknown node.
        since: when that state came, in seconds since the epoch.
        idle: free, and no job or reservation has a part of it.
        queue: the one queue that it serves; empty: any.
    """

    name: str
    states: frozenset[str]
    since: float
    shape: Shape
    idle: bool
    queue: str


def node_file(text: str) -> tuple[str, ...]:
    """Hosts in a ``PBS_NODEFILE``, each once, in order.

    A host stands there once for each of its ``mpiprocs``; the first is where the script runs.
    """
    return tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


def shapes(told: Attributes) -> dict[str, Shape]:
    """What each host gives to the job, by its name in ``exec_host``.

    ``exec_host`` has one entry for each chunk in the brackets of ``exec_vnode``
    (``(pbs4:ncpus=2:mem=102400kb)+(pbs5:ncpus=2)``), and a host may have several; a chunk may take
    from several vnodes (``(n[0]:ncpus=4+n[1]:ncpus=4)``). Empty where they do not match.
    """
    names = [part.partition("/")[0] for part in str(told.get("exec_host", "")).split("+") if part]
    chunks = _CHUNK.findall(str(told.get("exec_vnode", "")))
    if len(names) != len(chunks):
        return {}
    found: dict[str, Shape] = {}
    for name, chunk in zip(names, chunks, strict=True):
        for vnode in chunk.split("+"):
            given = dict(item.partition("=")[::2] for item in vnode.split(":")[1:])
            found[name] = found.get(name, Shape()) + Shape(
                integer(given.get("ncpus")) or 0,
                integer(given.get("ngpus")) or 0,
                size(given.get("mem")),
            )
    return found


def short(host: str) -> str:
    """A host's name without its domain: the form in ``exec_host``."""
    return host.partition(".")[0].lower()


def parse_nodes(text: str) -> tuple[float, list[Node]]:
    """The time at the server and the nodes in the answer of ``pbsnodes -F json``.

    Raises:
        Unreadable: not such an answer.
    """
    plain = document(text)
    nodes = plain.get("nodes")
    if not isinstance(nodes, dict):
        raise Unreadable('no "nodes"')
    return float(plain.get("timestamp") or 0), [
        _node(str(name), told) for name, told in nodes.items() if isinstance(told, dict)
    ]


def _node(name: str, told: Mapping[str, Any]) -> Node:
    # an unknown node is told as {"nope": {"nope": "Unknown node "}}
    states = frozenset(part.strip() for part in str(told.get("state", "")).split(",")) - {""}
    has = told.get("resources_available") or {}
    taken = told.get("resources_assigned") or {}
    busy = told.get("jobs") or told.get("resv") or integer(taken.get("ncpus"))
    return Node(
        name=name,
        states=states,
        since=float(told.get("last_state_change_time") or 0),
        shape=Shape(
            integer(has.get("ncpus")) or 0, integer(has.get("ngpus")) or 0, size(has.get("mem"))
        ),
        idle=states == {"free"} and not busy,
        queue=str(told.get("queue", "")),
    )


class Sights:
    """Since when nodes are down, as far as PBS tells, or else since we have seen it."""

    def __init__(self) -> None:
        # by node: the time of its last change of state, and of our first look since
        self._first: dict[str, tuple[float, float]] = {}

    def given_up(self, node: Node, now: float, after: float) -> bool:
        """PBS has had no word from the node for ``after`` seconds.

        PBS takes no dead node out of a running job, so this is all that it ever says. "offline"
        alone keeps no job from running, and "stale" tells of the server, not of the node. So does
        "state-unknown", which a server that was started again says of a node until it hears from
        it: with "down" beside it, the time that PBS tells may be older than the server's own
        absence, in which the node may have spoken, and counts from our own first look.

        Args:
            now: time at the server, seconds since the epoch.
        """
        if "down" not in node.states or "stale" in node.states:
            self._first.pop(node.name, None)
            return False
        if "state-unknown" not in node.states:
            return now >= node.since + after
        changed, first = self._first.get(node.name, (node.since, now))
        if changed != node.since:
            first = now  # it was something else in between
        self._first[node.name] = (node.since, first)
        return now >= first + after


def usable(nodes: Iterable[Node], queue: str) -> list[Node]:
    """Nodes that a job in ``queue`` may get, now or later."""
    return [node for node in nodes if node.queue in ("", queue)]


def common_shape(nodes: Iterable[Node]) -> tuple[Shape, int]:
    """What each of most of ``nodes`` has at the least, and how many these are.

    They have the same cores and GPUs. Memory is what is free of the kernel, to the kilobyte: it
    differs between nodes that are alike.
    """
    groups = defaultdict(list)
    for node in nodes:
        groups[node.shape.cores, node.shape.gpus].append(node.shape.memory)
    if not groups:
        return Shape(cores=1), 0
    (cores, gpus), memory = max(groups.items(), key=lambda group: len(group[1]))
    return Shape(cores, gpus, min(memory)), len(memory)
