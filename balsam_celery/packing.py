"""Which allocations to ask for, which to give up, which to drain.  Pure (R9).

The backlog is poured, by priority, widest and longest first, into what exists: running
allocations, then queued ones. One takes work only as deep as another allocation would be worth its
cost (:meth:`~balsam_celery.limits.Policy.depth`). For what is left new allocations are asked for,
each for tasks of about the same length, so that all its lanes end together
(:mod:`~balsam_celery.sizing`). What may not be asked for goes deeper into what there is.

A new allocation is poured into just as an existing one, behind all others, so that a plan that was
carried out and is made again asks for nothing more. A queued allocation is given up when nothing
flows into it, or when what does is worth less than half of its nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from balsam_celery.asking import ask, enough
from balsam_celery.collection import uncollected
from balsam_celery.draining import TOO_SMALL, drained, in_the_way
from balsam_celery.durations import format_duration
from balsam_celery.limits import Policy, Queue, fits_some_queue, policy_of, queues_of
from balsam_celery.plans import (
    Demand,
    Existing,
    Flow,
    Lane,
    Note,
    Plan,
    Release,
    Request,
    Waiting,
    Window,
)
from balsam_celery.pouring import Block, Rest, by_shape, flows
from balsam_celery.releasing import released
from balsam_celery.requesting import Requester
from balsam_celery.sizing import Caps

__all__ = [
    "Demand",
    "Existing",
    "Flow",
    "Lane",
    "Note",
    "Plan",
    "Policy",
    "Queue",
    "Release",
    "Request",
    "Waiting",
    "Window",
    "fits_some_queue",
    "pack",
    "policy_of",
    "queues_of",
]

#: A queued one that is too small is given up after so many seconds: none is asked for and given up
#: for another.
_SETTLED = 60.0
#: So many shapes that want no idle nodes are looked at before others are left to be asked for
#: without: each look is at all of the backlog.
WINDOW_TRIES = 32


@uncollected
def pack(
    backlog: Iterable[Demand],
    queues: Sequence[Queue],
    allocations: Iterable[Existing],
    policy: Policy,
    *,
    windows: Sequence[Window] = (),
) -> Plan:
    """Decide which allocations to ask for, which queued ones to give up, which running to drain.

    Args:
        backlog: tasks that wait for slots, by shape.
        queues: the site's queues, the preferred first.
        allocations: those that wait or run, the oldest first.
        policy: the site's limits and margins.
        windows: nodes that are idle now.
    """
    wanted, existing = by_shape(backlog), list(allocations)
    given_up: dict[str, Note] = {}
    while True:
        # what one that is given up was to run flows into others, which may be needed then
        planner = _Planner(queues, existing, policy, windows, given_up, wanted)
        note = planner.superfluous()
        if note is None:
            break
        given_up[note.id] = note
    planner.ask_beside_overdue()
    planner.ask_for_rest()
    larger = planner.too_small()
    if larger is not None:
        given_up[larger.id] = larger
    drain = [note for allocation in existing if (note := drained(allocation, wanted, policy))]
    drain += [note for note in planner.in_the_way() if note.id not in {one.id for one in drain}]
    over = {note.id for note in drain}
    release = [
        Release(allocation.id, nodes)
        for allocation in existing
        if allocation.id not in over and (nodes := released(allocation, wanted, policy))
    ]
    notes = {note.id: note for note in (*planner.notes(), *drain, *given_up.values())}
    return Plan(
        planner.told(),
        tuple(given_up),
        tuple(planner.waiting),
        tuple(note.id for note in drain),
        tuple(notes[allocation.id] for allocation in existing),
        tuple(release),
        flows(planner.blocks, planner.new),
    )


class _Planner(Requester):
    """One planning: what exists, less what was given up, filled; then what is asked for."""

    def __init__(
        self,
        queues: Sequence[Queue],
        existing: Sequence[Existing],
        policy: Policy,
        windows: Sequence[Window],
        given_up: dict[str, Note],
        wanted: Rest,
    ) -> None:
        super().__init__(queues, existing, policy, windows)
        self._ending = any(a.state == "queued" and a.usable <= 0 for a in existing)
        self._kept = sorted((a for a in existing if a.id not in given_up), key=self._filling_order)
        self.blocks = {a.id: Block.of(a, policy) for a in self._kept}
        self.waiting: list[Waiting] = []
        self._behind_running: Rest = wanted
        self._before_overdue: Rest = wanted
        self._rest = wanted
        queued = [a for a in self._kept if not self._runs(a)]
        for allocation in self._kept[: len(self._kept) - len(queued)]:
            self._rest = self.blocks[allocation.id].pour(self._rest)
        # what starts at once goes before what waits, which may wait for long
        self._rest = self._ask_in_windows(self._rest)
        self._behind_running = self._before_overdue = self._rest
        for allocation in queued:
            self._rest = self.blocks[allocation.id].pour(self._rest)
            if not self._overdue(allocation):
                self._before_overdue = self._rest

    def _runs(self, allocation: Existing) -> bool:
        """It runs, or starts at once."""
        return allocation.state == "running" or allocation.id in self._starting

    def _filling_order(self, allocation: Existing) -> tuple[bool, bool, float, bool]:
        # sorted() keeps the order of the queued ones, in which their shares were planned
        running = allocation.state == "running"
        return (
            not self._runs(allocation),
            not running,
            allocation.usable if running else 0.0,
            self._overdue(allocation),
        )

    def _overdue(self, allocation: Existing) -> bool:
        most = self._policy.max_wait
        return allocation.state == "queued" and most is not None and allocation.waited > most

    # -- what exists ---------------------------------------------------------------------------

    def superfluous(self) -> Note | None:
        """A queued allocation that is not needed, or far larger than what is left for it."""
        for allocation in self._kept:
            if allocation.state != "queued" or allocation.usable <= 0:
                continue
            block = self.blocks[allocation.id]
            if not block.share:
                if self._overdue(allocation) and self._needed_by_overdue(allocation):
                    continue
                return Note(allocation.id, "unneeded", "no waiting task needs it any more")
            nodes = enough(self._queues.get(allocation.queue), block, self._policy)
            if (
                nodes < allocation.nodes
                and not self._overdue(allocation)
                and self._room.replaces(allocation.queue)
            ):
                return Note(
                    allocation.id,
                    "too-large",
                    f"{block.served} waiting tasks are left for it: {nodes} nodes would do",
                )
        return None

    def _needed_by_overdue(self, allocation: Existing) -> bool:
        """There is work for it, though others that are queued have promised to do it."""
        block = Block.of(allocation, self._policy)
        block.pour(self._behind_running)
        return bool(block.share)

    def too_small(self) -> Note | None:
        """A queued allocation in whose place a far larger one is to be asked for next time."""
        if self._ending or self.requests or not self.waiting:
            return None
        demand, _, code = self.waiting[0]
        if code not in ("max-allocations", "max-queued"):
            return None
        for queue in self._fitting(demand):
            if not self._room.replaces(queue.name):
                continue
            caps = self._caps(queue, demand, False)
            if caps is None:
                continue
            mine = [
                a for a in self._kept
                if a.queue == queue.name and a.state == "queued" and a.waited >= _SETTLED
                if not self._overdue(a)
            ]  # fmt: skip
            for small in sorted(mine, key=lambda a: a.nodes * a.usable):
                share = self.blocks[small.id].share
                backlog = by_shape(
                    replace(d, count=n)
                    for d, n in (*share, *((w.demand, w.demand.count) for w in self.waiting))
                )
                asked = ask(queue, backlog, caps, self._policy)
                if asked is None:
                    continue
                request = asked.request
                usable = self._policy.usable(request.wall_time)
                if request.nodes * usable >= TOO_SMALL * small.nodes * small.usable:
                    return Note(
                        small.id,
                        "too-small",
                        f"it holds the place of one of {request.nodes} nodes for"
                        f" {format_duration(request.wall_time)}",
                    )
        return None

    def notes(self) -> Iterable[Note]:
        """What becomes of each that is kept."""
        for allocation in self._kept:
            block = self.blocks[allocation.id]
            if allocation.usable <= 0:
                yield Note(allocation.id, "ending", "nothing more starts in it")
            elif self._overdue(allocation):
                yield Note(
                    allocation.id,
                    "overdue",
                    f"it has been queued for {format_duration(allocation.waited)}, longer than"
                    f" packing.max_wait; {_tasks(block.served)} for it",
                )
            else:
                yield Note(allocation.id, "kept", f"{_tasks(block.served)} for it")

    # -- what is asked for ---------------------------------------------------------------------

    def ask_beside_overdue(self) -> None:
        """Ask for a smaller allocation beside each that waits too long and has none yet."""
        overdue = [a for a in self._kept if self._overdue(a)]
        partners = [a for a in self._kept if a.state == "queued"]
        rest = self._before_overdue
        for allocation in overdue:
            queue = self._queues.get(allocation.queue)
            smaller = [p for p in partners if _is_smaller(p, allocation)]
            if smaller:
                partners.remove(smaller[0])
            elif queue is not None and rest and self._room.has(queue):
                caps = self._half(allocation, queue)
                asked = ask(queue, rest, caps, self._policy) if caps is not None else None
                if asked is not None:
                    rest = self._take(asked, "overdue", rest)
        if not self.new:
            return
        for allocation in overdue:
            block = self.blocks[allocation.id] = Block.of(allocation, self._policy)
            rest = block.pour(rest)
        self._rest = rest

    def _half(self, allocation: Existing, queue: Queue) -> Caps | None:
        """Limits of an allocation of half the nodes, or half the time where it has the fewest."""
        wall_time = min(int(allocation.usable) + self._policy.margins, queue.max_wall_time)
        nodes = min(allocation.nodes, queue.max_nodes)
        if nodes // 2 >= queue.min_nodes:
            nodes //= 2
        elif wall_time // 2 >= queue.min_wall_time:
            wall_time //= 2
        else:
            return None
        return Caps(nodes, wall_time, self._room.node_seconds)

    def ask_for_rest(self) -> None:
        """Ask for what is left; what may not be asked for goes deeper into what there is."""
        left = self._ask_for(self._rest, spare=True)
        for block in (*self.blocks.values(), *self.new):
            left = block.pour(left, deep=True)
        self._ask_for(left, spare=False)

    def _ask_for(self, rest: Rest, *, spare: bool) -> Rest:
        """Ask for allocations for ``rest``; return what none may be asked for.

        ``spare``: nothing more than the machine has nodes for or a queue lets run, and no word of
        what waits.
        """
        left: Rest = []
        while rest:
            demand, count = rest[0]
            queues = self._fitting(demand)
            open_queues = [queue for queue in queues if self._room.has(queue)]
            asked = [
                found
                for queue in open_queues
                if not (spare and self._would_wait(queue, demand))
                if (caps := self._caps(queue, demand, spare)) is not None
                if (found := self._ask_in(queue, rest, caps)) is not None
            ]
            if asked:
                # only here, and not for each shape that is refused, which would be quadratic
                if spare and self._is_little(rest, left):
                    return left + rest
                rest, left = self._take_best(asked, left + rest), []
                continue
            rest = rest[1:]
            left.append((demand, count))
        if not spare:
            for demand, count in left:
                queues = self._fitting(demand)
                open_queues = [queue for queue in queues if self._room.has(queue)]
                self.waiting.append(self._why(replace(demand, count=count), queues, open_queues))
        return left

    def _ask_in_windows(self, rest: Rest) -> Rest:
        """Ask for allocations in idle nodes; return what is left."""
        left: Rest = []
        while rest and len(left) < WINDOW_TRIES:
            demand, count = rest[0]
            found = [
                asked
                for queue in self._fitting(demand)
                if self._room.has(queue) and self._windows.best(queue.name) is not None
                if (caps := self._caps(queue, demand, True)) is not None
                if (asked := self._ask_in(queue, rest, caps)) is not None and asked[1] == "window"
            ]
            if found:
                rest, left = self._take_best(found, left + rest), []
            else:
                left.append((demand, count))
                rest = rest[1:]
        return left + rest

    def in_the_way(self) -> Iterable[Note]:
        """Running allocations that are to end for far larger ones for which nodes are idle."""
        notes = [self._clears(one) for one in self.requests if one.code == "window"]
        notes += [
            in_the_way(self._kept, one.queue, one.nodes, one.usable)
            for one in self._kept
            if one.id in self._windows.fitting and self._room.is_full(one.queue)
        ]
        return {note.id: note for note in notes if note is not None}.values()


def _is_smaller(one: Existing, other: Existing) -> bool:
    return one.queue == other.queue and 4 * one.nodes * one.usable <= 3 * other.nodes * other.usable


def _tasks(count: int) -> str:
    return (
        f"{count} waiting task{'s are' if count != 1 else ' is'}" if count else "no waiting task is"
    )
