"""What one request is, given what may still be asked for.  Pure: used by ``packing`` alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from balsam_celery.asking import Asked, ask, efficiency, told
from balsam_celery.draining import in_the_way
from balsam_celery.limits import Policy, Queue, could_hold
from balsam_celery.plans import Demand, Existing, Note, Request, Waiting, Window
from balsam_celery.pouring import Block, Rest
from balsam_celery.room import Room, Windows
from balsam_celery.sizing import Caps

#: For so much more than what allocations have to do, none is asked for beside them.
LITTLE = 0.25
#: Where charges count, as many allocations of the widest size as may run at once have so many times
#: fewer nodes than the queue's limits allow.
NARROW = 1.5


class Requester:
    """What is asked for in one planning, beside what exists.

    Attributes:
        blocks: allocations that exist and are kept, by id.
        requests, new: what is asked for, and the allocations that this makes.
    """

    def __init__(
        self,
        queues: Sequence[Queue],
        existing: Sequence[Existing],
        policy: Policy,
        windows: Sequence[Window],
    ) -> None:
        self._queues = {queue.name: queue for queue in queues}
        self._policy = policy
        # one that is given up takes its place until the scheduler has let it go
        self._room = Room(queues, existing, policy)
        self._windows = Windows(windows, existing, policy)
        self._existing = existing
        #: queued ones that start at once; others that fit would wait for one that runs
        self._starting: set[str] = set()
        for one in existing:
            if one.id in self._windows.fitting and self._room.may_start(one.queue):
                self._room.start(one.queue)
                self._starting.add(one.id)
        self.blocks: dict[str, Block] = {}
        self.new: list[Block] = []
        self.requests: list[Request] = []

    def _is_little(self, rest: Rest, held: Rest) -> bool:
        """What there is can run it too, and becomes little deeper by that.

        ``held``: what none may be asked for; where there is room for it, that goes first.
        """
        blocks = [replace(block, share=[]) for block in (*self.blocks.values(), *self.new)]
        rest = [pair for pair in held if any(b.fits(pair[0]) for b in blocks)] + rest
        before = sum(block.depth * block.nodes for block in blocks)
        for block in blocks:
            rest = block.pour(rest, deep=True)
        more = sum(block.depth * block.nodes for block in blocks) - before
        return not rest and more <= LITTLE * before

    def _fitting(self, demand: Demand) -> list[Queue]:
        """The queues that could hold one such task."""
        needed = demand.needs(self._policy.kill_grace)
        return [
            queue
            for queue in self._queues.values()
            if could_hold(queue, demand.resources, needed, self._policy)
        ]

    def _why(self, demand: Demand, queues: Sequence[Queue], open_: Sequence[Queue]) -> Waiting:
        if not queues:
            return Waiting(demand, "no queue asked now can hold it", "no-queue")
        if not open_:
            return Waiting(demand, *self._room.reason(queues))
        most = self._policy.machine_nodes
        if most is not None and all(self._caps(queue, demand, False) is None for queue in open_):
            reason = f"the nodes of this machine ({most}) are in allocations that can run it later"
            return Waiting(demand, reason, "machine-full")
        hours = max(0.0, self._room.node_seconds) / 3600
        return Waiting(demand, f"packing.budget has {hours:.1f} node-hours left", "budget")

    def _caps(self, queue: Queue, demand: Demand, spare: bool) -> Caps | None:
        # several narrow ones rather than a wide one: each ends by itself when the work gets less,
        # and where limits end them the last tasks of a few lanes are waited for, not of all
        nodes = queue.max_nodes
        if self._policy.efficiency and self._policy.release_after is None:
            share = math.ceil(nodes / (NARROW * max(1, queue.max_running)))
            nodes = min(nodes, max(share, queue.min_nodes, demand.resources.num_nodes))
        room = self._room.left(queue)
        if (machine := self._policy.machine_nodes) is not None:
            # nobody else waits for this machine: what can only wait for others is asked for in time
            # when those are too near their end
            free = machine - (self._room.nodes if spare else self._nodes_for(demand))
            if free >= max(queue.min_nodes, demand.resources.num_nodes):
                nodes = min(nodes, free)
                room = min(room, free // nodes)
            elif self._is_held(demand):
                return None
            else:
                room = max(1, min(room, machine // nodes))
        return Caps(nodes, queue.max_wall_time, self._room.node_seconds, room)

    def _nodes_for(self, demand: Demand) -> int:
        """Nodes of what there is, or is asked for, that can run such tasks, if later."""
        blocks = (*self.blocks.values(), *self.new)
        return sum(block.nodes for block in blocks if block.fits(demand))

    def _would_wait(self, queue: Queue, demand: Demand) -> bool:
        """One more of the queue waits for the end of one that runs, and what there is, or is asked
        for, can run such tasks as well.
        """
        return not self._room.may_start(queue.name) and self._is_held(demand)

    def _is_held(self, demand: Demand) -> bool:
        """What there is, or is asked for, can run such tasks, if later."""
        return self._nodes_for(demand) > 0

    def _ask_in(self, queue: Queue, rest: Rest, caps: Caps) -> tuple[Asked, str] | None:
        """The best request of a queue; cut to what is idle there, if that is worth it."""
        whole = ask(queue, rest, caps, self._policy)
        window = self._windows.best(queue.name)
        if whole is None:
            return None
        if window is None:
            return whole, "backlog"
        request = whole.request
        if request.nodes <= window.nodes and request.wall_time <= window.seconds:
            return whole, "window" if self._may_start(request) else "backlog"
        wall_time = int(min(caps.wall_time, window.seconds))
        nodes = min(caps.nodes, window.nodes)
        # it starts at once however long it is, and nobody knows when the others do
        narrow = replace(caps, nodes=nodes, wall_time=wall_time, whole=True)
        cut = ask(queue, rest, narrow, self._policy)
        if cut is None or (cut.left and caps.room < 2):
            return whole, "backlog"
        good = self._policy.efficiency * efficiency(queue, whole, self._policy)
        if efficiency(queue, cut, self._policy) < good or not self._may_start(cut.request):
            return whole, "backlog"
        return cut, "window"

    def _may_start(self, request: Request) -> bool:
        """Nothing but nodes may keep it from starting: those that run, or one fewer, let it."""
        return self._room.may_start(request.queue, cleared=self._clears(request) is not None)

    def _clears(self, request: Request) -> Note | None:
        """The running allocation that is to end for it, where all run that may."""
        if not self._room.is_full(request.queue):
            return None
        usable = self._policy.usable(request.wall_time)
        return in_the_way(self._existing, request.queue, request.nodes, usable)

    def _worth(self, found: tuple[Asked, str]) -> tuple[bool, bool, float, int]:
        asked, code = found
        request, block = asked.request, asked.block
        return (
            code == "window",
            self._room.may_start(request.queue),
            block.depth * block.nodes,
            -request.nodes * request.wall_time,
        )

    def told(self) -> tuple[Request, ...]:
        """The requests, each with what it is for."""
        pairs = zip(self.requests, self.new, strict=True)
        return tuple(told(request, block, self._waits_for(request)) for request, block in pairs)

    def _waits_for(self, request: Request) -> int:
        waits = request.code != "window" and self._room.is_full(request.queue)
        return self._queues[request.queue].max_running if waits else 0

    def _take_best(self, found: Sequence[tuple[Asked, str]], rest: Rest) -> Rest:
        """Ask for the best of what was found; return what it leaves of ``rest``."""
        best, code = max(found, key=self._worth)
        return self._take(best, code, rest)

    def _take(self, asked: Asked, code: str, rest: Rest) -> Rest:
        """Ask for one; return what it leaves of ``rest``.

        It is filled in the order in which it will be once it exists, also with tasks for which none
        may be asked: those for which it was asked and that find no room then need another.
        """
        request = replace(asked.request, code=code)
        block = replace(asked.block, depth=0.0, longest=0.0, share=[])
        # another would only wait for the end of one that runs, so this one is to do what it can
        deep = code == "backlog" and not self._room.may_start(request.queue)
        left = block.pour(rest, deep=deep)
        self.requests.append(request)
        self.new.append(block)
        self._room.take(request)
        self._windows.take(request.queue, request.nodes, request.wall_time)
        return left
