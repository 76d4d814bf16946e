"""The simulated machine: its nodes, its queues, its other users, and the site's settings on it."""

from __future__ import annotations

from dataclasses import dataclass

from balsam_celery.limits import Policy, Queue
from balsam_celery.resources import NodeCapacity


@dataclass(frozen=True, slots=True)
class Background:
    """The jobs of a machine's other users.

    Attributes:
        load: share of the machine's node-seconds that they would take (0 to 1).
        max_nodes: of the widest.
        median_runtime, sigma: of the lognormal runtimes, in seconds and as the logarithm's
            standard deviation.
        max_runtime: longest limit in seconds.
    """

    load: float
    max_nodes: int
    median_runtime: float = 2400.0
    sigma: float = 1.2
    max_runtime: float = 86400.0


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine and the site's settings on it; times in seconds.

    Attributes:
        nodes: how many.
        node: what each has.
        queues: that may be used, the preferred first.
        policy: the site's limits and margins.
        background: its other users, ``None``: it is ours alone.
        startup: from an allocation's start until its workers consume.
        overhead: from a task's start until its program runs, and from its end until the slots are
            free, together.
        tick: ends are seen at whole multiples of this (the service works in batches).
        packing_interval: between looks at the backlog.
        idle_timeout: a pilot with nothing to do ends after this.
        release_after: an idle node may be given back after this; ``None``: the scheduler takes
            none out of a running allocation.
        windows: the scheduler tells of nodes that are idle now.
        ageing: waiting that raises a task's priority by one (``placement.ageing``).
    """

    nodes: int
    node: NodeCapacity
    queues: tuple[Queue, ...]
    policy: Policy
    background: Background | None = None
    startup: float = 30.0
    overhead: float = 0.1
    tick: float = 0.1
    packing_interval: float = 10.0
    idle_timeout: float = 60.0
    release_after: float | None = 30.0
    windows: bool = True
    ageing: float = 21600.0

    def queue(self, name: str) -> Queue:
        """The queue of that name."""
        return next(queue for queue in self.queues if queue.name == name)
