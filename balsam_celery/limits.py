"""What the site's settings let an allocation be, and whether a task fits one.  Pure values."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from balsam_celery.amounts import format_bytes
from balsam_celery.durations import format_duration
from balsam_celery.nodefree import NodeFree
from balsam_celery.resources import NodeCapacity, Resources

#: For how many times a task's expected time a lane is idle at the end of an allocation, on average:
#: run times scatter, and the last to end is longer than the others.
IDLE_AT_END = 1.5
#: How far run times scatter where only an expected time is known: the standard deviation of their
#: logarithm.
SCATTER = 0.25


class QueueLimits(Protocol):
    """What is read of ``[queues.NAME]``."""

    @property
    def min_nodes(self) -> int: ...
    @property
    def max_nodes(self) -> int: ...
    @property
    def min_wall_time(self) -> int: ...
    @property
    def max_wall_time(self) -> int: ...
    @property
    def max_queued(self) -> int: ...
    @property
    def max_running(self) -> int: ...
    @property
    def cores_per_node(self) -> int: ...
    @property
    def gpus_per_node(self) -> int: ...
    @property
    def memory_per_node(self) -> int: ...
    @property
    def resources_per_node(self) -> Mapping[str, int]: ...


class NodeLimits(Protocol):
    """What is read of ``[local]``."""

    @property
    def nodes(self) -> int: ...
    @property
    def cores_per_node(self) -> int: ...
    @property
    def gpus_per_node(self) -> int: ...
    @property
    def memory_per_node(self) -> int: ...
    @property
    def resources_per_node(self) -> Mapping[str, int]: ...


class SchedulerKind(Protocol):
    """What is read of ``[scheduler]``."""

    @property
    def kind(self) -> str: ...


class PilotMargins(Protocol):
    """What is read of ``[pilot]``."""

    @property
    def startup_margin(self) -> int: ...
    @property
    def drain_margin(self) -> int: ...
    @property
    def idle_timeout(self) -> int: ...


class GraceLimits(Protocol):
    """What is read of ``[site]``."""

    @property
    def kill_grace(self) -> int: ...


class PackingLimits(Protocol):
    """What is read of ``[packing]``."""

    @property
    def max_allocations(self) -> int: ...
    @property
    def efficiency(self) -> float: ...
    @property
    def haste(self) -> float: ...
    @property
    def max_wait(self) -> int: ...
    @property
    def release_idle_nodes(self) -> bool: ...
    @property
    def release_after(self) -> int: ...


class SiteLimits(Protocol):
    """What is read of ``site.toml``; ``settings.Settings`` is one."""

    @property
    def site(self) -> GraceLimits: ...
    @property
    def scheduler(self) -> SchedulerKind: ...
    @property
    def local(self) -> NodeLimits: ...
    @property
    def queues(self) -> Mapping[str, QueueLimits]: ...
    @property
    def packing(self) -> PackingLimits: ...
    @property
    def pilot(self) -> PilotMargins: ...


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of the scheduler; times in seconds, limits inclusive.

    Attributes:
        node: what each of its nodes has.
        max_queued, max_running: allocations of the site that may wait, or run, at once.
    """

    name: str
    min_nodes: int
    max_nodes: int
    min_wall_time: int
    max_wall_time: int
    max_queued: int
    max_running: int
    node: NodeCapacity


@dataclass(frozen=True, slots=True)
class Policy:
    """How the site packs; times in seconds.

    Attributes:
        max_allocations: allocations that may wait or run at once, over all queues.
        startup_margin: from an allocation's start until its workers consume.
        drain_margin: before its end the pilot stops what runs.
        kill_grace: between TERM and KILL of a task whose limit is over.
        idle_timeout: an allocation with nothing to do is drained after this.
        efficiency: share (0 <= e < 1) of the node time that an allocation is charged which tasks
            are to use, of the best that can be had; 0: as wide as the backlog fills at once.
        haste: node-seconds that a wider allocation may be charged more than the thriftiest, to end
            sooner, whatever ``efficiency`` says.
        max_wait: an allocation that has been queued for longer gets a smaller one beside it;
            ``None``: however long.
        budget: node-seconds that new allocations may be charged in all; ``None``: no limit.
        machine_nodes: nodes of the machine in all, where that is known.
        release_after: an idle node of a running allocation is given back after this; ``None``: the
            scheduler takes none, all are charged to the end.
    """

    max_allocations: int
    startup_margin: int
    drain_margin: int
    kill_grace: int
    idle_timeout: int = 60
    efficiency: float = 0.8
    haste: float = 7200.0
    max_wait: float | None = None
    budget: float | None = None
    machine_nodes: int | None = None
    release_after: float | None = None

    @property
    def overhead(self) -> int:
        """Seconds for which a node is charged at its start and end without running tasks."""
        after = self.idle_timeout if self.release_after is None else self.release_after
        return self.startup_margin + math.ceil(after)

    @property
    def margins(self) -> int:
        """Seconds of an allocation's wall time in which no task runs."""
        return self.startup_margin + self.drain_margin

    def depth(self, duration: float, beside: int) -> float:
        """Seconds that an allocation must last to reach ``efficiency`` with tasks of ``duration``,
        of which ``beside`` run at once on a node.

        At its end its lanes run empty one after the other, and are charged until all of it ends or,
        where nodes are given back, all of their node.
        """
        idle = IDLE_AT_END if self.release_after is None else late(beside)
        return (self.overhead + idle * duration) * self.efficiency / (1 - self.efficiency)

    def usable(self, wall_time: int) -> int:
        """Seconds in which an allocation of ``wall_time`` can run tasks."""
        return wall_time - self.startup_margin - self.drain_margin


def late(tasks: float) -> float:
    """For how many times their expected time the longest of so many tasks runs beyond it."""
    return math.exp(SCATTER * math.sqrt(2 * math.log(max(1.0, tasks)))) - 1


@functools.lru_cache(maxsize=4096)
def per_node(wanted: Resources, node: NodeCapacity) -> int:
    """Tasks of ``wanted`` that run at once on a node (a share of one that spans nodes: 1)."""
    if wanted.is_gang:
        return 0 if NodeFree.of(node).share(wanted) is None else 1
    count, free = 0, NodeFree.of(node)
    while (share := free.share(wanted)) is not None:
        free = free.with_taken(share, wanted.node_packing_count, False)
        count += 1
    return count


def at_once(wanted: Resources, nodes: int, node: NodeCapacity) -> int:
    """Tasks of ``wanted`` that run at once on ``nodes`` nodes."""
    return (nodes // wanted.num_nodes) * per_node(wanted, node)


def at_once_on(wanted: Resources, kinds: Iterable[tuple[NodeCapacity, int]]) -> int:
    """Tasks of ``wanted`` that run at once on nodes of several kinds, with how many of each."""
    places = sum(per_node(wanted, node) * count for node, count in kinds)
    return places // wanted.num_nodes


def could_hold(queue: Queue, wanted: Resources, needed: float, policy: Policy) -> bool:
    """The queue could give an allocation that holds a task of ``wanted`` for ``needed`` seconds."""
    return policy.usable(queue.max_wall_time) >= needed and bool(
        at_once(wanted, queue.max_nodes, queue.node)
    )


def queues_of(settings: SiteLimits) -> tuple[Queue, ...]:
    """The queues of ``site.toml`` with what their nodes have."""
    machine = settings.local if settings.scheduler.kind == "local" else None
    return tuple(
        Queue(
            name,
            limits.min_nodes,
            limits.max_nodes if machine is None else min(limits.max_nodes, machine.nodes),
            limits.min_wall_time,
            limits.max_wall_time,
            limits.max_queued,
            limits.max_running,
            _node(limits if machine is None else machine),
        )
        for name, limits in settings.queues.items()
    )


def _node(shape: QueueLimits | NodeLimits) -> NodeCapacity:
    cores, gpus = tuple(range(shape.cores_per_node)), tuple(range(shape.gpus_per_node))
    counts = tuple(sorted(shape.resources_per_node.items()))
    return NodeCapacity("node", cores, gpus, shape.memory_per_node, resources=counts)


def policy_of(settings: SiteLimits, *, releases: bool = False) -> Policy:
    """The packing policy of ``site.toml``; its budget is to be filled in by who knows what is left.

    ``releases``: the scheduler takes nodes out of running jobs.

    This machine's own time is charged to nobody, so there only speed counts.
    """
    local = settings.scheduler.kind == "local"
    releases = releases and settings.packing.release_idle_nodes
    return Policy(
        settings.packing.max_allocations,
        settings.pilot.startup_margin,
        settings.pilot.drain_margin,
        settings.site.kill_grace,
        settings.pilot.idle_timeout,
        0.0 if local else settings.packing.efficiency,
        3600 * settings.packing.haste,
        settings.packing.max_wait,
        machine_nodes=settings.local.nodes if local else None,
        release_after=settings.packing.release_after if releases else None,
    )


def fits_some_queue(resources: Resources, wall_time: int, settings: SiteLimits) -> str | None:
    """Why no allocation that the site allows could ever hold the task; ``None`` when one can.

    The reason is one line that names the value and the mend.
    """
    queues, policy = queues_of(settings), policy_of(settings)
    if not queues:
        return "the site has no queue: add a table [queues.NAME] to site.toml"
    widest = max(queue.max_nodes for queue in queues)
    if resources.num_nodes > widest:
        return (
            f"num_nodes is {resources.num_nodes}: no queue gives more than {widest}; ask for fewer"
        )
    cores = max(len(queue.node.cores) for queue in queues)
    if resources.least_cores > cores:
        return (
            f"ranks_per_node {resources.ranks_per_node} × threads_per_rank"
            f" {resources.threads_per_rank} need {resources.least_cores} cores on each node:"
            f" a node has {cores}; ask for fewer, or for more nodes"
        )
    if reason := _beyond_nodes(resources, queues, settings):
        return reason
    wide = [queue for queue in queues if at_once(resources, queue.max_nodes, queue.node)]
    if not wide:
        most = max(queue.max_nodes for queue in queues if per_node(resources, queue.node))
        return (
            f"num_nodes is {resources.num_nodes}: no queue with nodes for {_asked(resources)}"
            f" gives more than {most}; ask for fewer"
        )
    margin = policy.kill_grace
    longest = max(policy.usable(queue.max_wall_time) - margin for queue in wide)
    if wall_time > longest:
        return (
            f"wall_time is {format_duration(wall_time)}: the longest that a queue can give"
            f" {resources.num_nodes} node{'s' * resources.is_gang} is"
            f" {format_duration(max(longest, 0))} after start-up and drain; ask for less"
        )
    return None


def _beyond_nodes(wanted: Resources, queues: Sequence[Queue], settings: SiteLimits) -> str | None:
    """Why no queue's nodes have what the task asks for on each of its own, beyond cores."""
    nodes = [queue.node for queue in queues]
    memory = max(node.memory for node in nodes)
    # a node whose memory is not known is taken to have enough
    if wanted.memory_per_node > memory and all(node.memory for node in nodes):
        return (
            f"memory_per_node is {wanted.memory_per_node} ({format_bytes(wanted.memory_per_node)}):"
            f" a node has {format_bytes(memory)}; ask for less, or for more nodes"
        )
    for name, amount in wanted.resources_per_node:
        most = max(dict(node.resources).get(name, 0) for node in nodes)
        if amount > most:
            table = "local" if settings.scheduler.kind == "local" else "queues.NAME"
            mend = (
                f"a node has {most}; ask for fewer"
                if most
                else f"no node has any; name it in {table}.resources_per_node of site.toml"
            )
            return f"resources_per_node.{name} is {amount}: {mend}"
    bare = replace(wanted, memory_per_node=0, resources_per_node=())
    if not any(per_node(bare, node) for node in nodes):
        return (
            f"gpus_per_rank is {wanted.gpus_per_rank:g} for {wanted.ranks_per_node} ranks on"
            f" each node: a node has {max(len(node.gpus) for node in nodes)} GPUs; ask for fewer"
        )
    if not any(per_node(wanted, node) for node in nodes):
        return f"no queue has nodes with all of {_asked(wanted)}; ask for less of one of them"
    return None


def _asked(wanted: Resources) -> str:
    """What each node must have for the task, in words."""
    parts = [f"{wanted.least_cores} cores", f"{wanted.gpus_per_node:g} GPUs"]
    if wanted.memory_per_node:
        parts.append(f"{format_bytes(wanted.memory_per_node)} of memory")
    parts += [f"{amount} {name}" for name, amount in wanted.resources_per_node]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
