"""The simulation: events over virtual time around a planner.

Events of one instant are handled together, then placement runs once if something changed that could
let a task start; packing runs at most once an interval, and only when something changed: equal
inputs give equal plans.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from itertools import count

from balsam_celery.ledger import Ledger
from balsam_celery.placement import Placement
from balsam_celery.resources import NodeCapacity
from balsam_celery.simulate.backlog import Backlog
from balsam_celery.simulate.batch import Batch, Job
from balsam_celery.simulate.estimates import Estimates
from balsam_celery.simulate.machine import Machine
from balsam_celery.simulate.record import Attempt, Promise, Record
from balsam_celery.simulate.state import Allocation, Planner, State
from balsam_celery.simulate.workload import Workload, shares_of

_SUBMIT, _END, _READY, _DEADLINE, _BATCH, _PACK, _IDLE, _IDLE_NODES = range(8)


class Stuck(RuntimeError):
    """Tasks are left that the planner lets wait for ever."""


class Simulation:
    """One run of a workload on a machine.

    Args:
        workload: what is submitted; not changed.
        machine: where.
        planner: who decides.
        seed: of the other users' jobs.
        trace: keep every attempt (:attr:`Record.attempts`).
        give_up: a run fails after this much virtual time, seconds.
    """

    def __init__(
        self,
        workload: Workload,
        machine: Machine,
        planner: Planner,
        seed: int,
        *,
        trace: bool = False,
        give_up: float = 90 * 86400.0,
    ) -> None:
        self.state = State(
            machine,
            workload,
            Backlog(workload),
            Ledger.empty(),
            {},
            Estimates(),
            [0] * len(workload),
        )
        self.record = Record([-1.0] * len(workload), [-1.0] * len(workload))
        self._machine, self._work, self._planner = machine, workload, planner
        self._batch = Batch(machine, seed)
        self._trace = trace
        self._give_up = give_up
        self._heap: list[tuple[float, int, int, object]] = []
        self._serial = count()
        self._waits_for = list(workload.parents)
        #: (start, placement) of what runs
        self._running: dict[int, tuple[float, Placement]] = {}
        self._on_pilot: dict[str, set[int]] = {}
        self._ended: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self._names = count(1)
        self._next_pack = 0.0
        self._interval = planner.interval or machine.packing_interval
        self._pack_set = False
        self._wake_at = math.inf
        self._dirty = True
        self._may_start = False
        self._promises: dict[int, Promise] = {}
        self._shares = [shares_of(kind.resources, machine.node) for kind in workload.kinds]
        # of others a promise does not hold: a wider task that comes later goes first
        first = max((kind.priority, kind.resources.num_nodes) for kind in workload.kinds)
        self._widest = {
            number
            for number, kind in enumerate(workload.kinds)
            if (kind.priority, kind.resources.num_nodes) == first and first[1] > 1
        }
        self._idle_timeout = (
            machine.idle_timeout if planner.idle_timeout is None else planner.idle_timeout
        )
        by_time: dict[float, list[int]] = defaultdict(list)
        for task, parents in enumerate(workload.parents):
            if not parents:
                by_time[workload.submitted[task]].append(task)
        for time, tasks in by_time.items():
            self._push(time, _SUBMIT, tasks)
        # others' jobs come and go before the first task is there
        self._watch_batch()

    def run(self, *, until_allocations_end: bool = True) -> Record:
        """Run until every task is over and, unless told otherwise, every allocation has ended.

        Raises:
            Stuck: that does not come to pass.
        """
        total = len(self._work)
        while self.record.ended < total or (until_allocations_end and self.state.allocations):
            now = self._heap[0][0] if self._heap else math.inf
            if now > self._give_up:
                raise Stuck(
                    f"{self._planner.name}: {total - self.record.ended} tasks are left after"
                    f" {self._give_up / 86400:.0f} days"
                )
            while self._heap and self._heap[0][0] <= now:
                _, what, _, value = heapq.heappop(self._heap)
                self._handle(what, value, now)
            self._step(now)
        return self.record

    def _push(self, time: float, what: int, value: object = None) -> None:
        # a task that ends just at its pilot's end has ended
        heapq.heappush(self._heap, (time, what, next(self._serial), value))

    def _handle(self, what: int, value: object, now: float) -> None:
        if what == _END:
            self._end(value, now)  # type: ignore[arg-type]
        elif what == _SUBMIT:
            for task in value:  # type: ignore[attr-defined]
                self.state.backlog.add(task, now)
            self._dirty = self._may_start = True
        elif what == _READY:
            self._ready(value, now)  # type: ignore[arg-type]
        elif what == _DEADLINE:
            self._deadline(value, now)  # type: ignore[arg-type]
        elif what == _BATCH:
            self._wake_at = math.inf
            self._begin(self._batch.advance(now), now)
            self._dirty = True
        elif what == _PACK:
            self._pack_set = False
        elif what == _IDLE:
            self._idle(value, now)  # type: ignore[arg-type]
        elif what == _IDLE_NODES:
            self._dirty = True

    def _step(self, now: float) -> None:
        """What follows the events of one instant."""
        state = self.state
        for pilot, attempts in self._ended.items():
            state.ledger = state.ledger.give_back(pilot, attempts)
            self._dirty = self._may_start = True
        self._ended.clear()
        if self._may_start and state.backlog.count and state.ledger.pilots:
            self._place(now)
        self._may_start = False
        for pilot in state.ledger.pilots:
            allocation = state.allocations[pilot]
            self._watch_idle(allocation, now)
            self._watch_idle_nodes(allocation, now)
            if not state.backlog.count:
                allocation.starved = True
        if now >= self._next_pack and self._dirty:
            self._dirty = self._planner.interval is not None
            self._next_pack = now + self._interval
            self._pack(now)
        if self._dirty and not self._pack_set:
            self._pack_set = True
            self._push(self._next_pack, _PACK)
        self._watch_batch()

    def _watch_batch(self) -> None:
        wake = self._batch.next_time()
        if wake < self._wake_at:
            self._wake_at = wake
            self._push(wake, _BATCH)

    # tasks

    def _place(self, now: float) -> None:
        state = self.state
        decided = self._planner.place(state, now)
        self.record.passes += 1
        state.ledger = decided.ledger
        for placement in decided.placements:
            self._start(placement, now)
        for reservation in decided.reservations:
            task = int(reservation.id)
            if self._work.kind[task] in self._widest and task not in self._promises:
                self._promises[task] = Promise(now, reservation.start)

    def _start(self, placement: Placement, now: float) -> None:
        task = int(placement.id)
        self.state.backlog.take(task)
        record, work = self.record, self._work
        self.state.attempts[task] = placement.attempt
        if record.first_start[task] < 0:
            record.first_start[task] = now
        promise = self._promises.pop(task, None)
        if promise is not None:
            record.promised = max(record.promised, now - promise.since)
            record.late = max(record.late, now - promise.by)
        self._running[task] = (now, placement)
        self._on_pilot[placement.pilot].add(task)
        tick = self._machine.tick
        end = math.ceil((now + work.runs(task) + self._machine.overhead) / tick - 1e-9) * tick
        if end <= self.state.ledger.pilots[placement.pilot].deadline:
            self._push(end, _END, task)

    def _end(self, task: int, now: float) -> None:
        start, placement = self._running.pop(task)
        self._on_pilot[placement.pilot].discard(task)
        self._ended[placement.pilot].append((placement.id, placement.attempt))
        record, work = self.record, self._work
        kind = work.kinds[work.kind[task]]
        record.finished[task] = now
        if work.succeeds(task):
            record.done += 1
            shares = self._shares[work.kind[task]]
            self.state.allocations[placement.pilot].use(shares, work.runtime[task])
            self.state.estimates.learn(kind, work.runtime[task])
            for child in work.children.get(task, ()):
                self._waits_for[child] -= 1
                if not self._waits_for[child]:
                    self._push(max(now, work.submitted[child]), _SUBMIT, [child])
            outcome = "done"
        else:
            record.timeouts += 1
            self._orphan(task, now)
            outcome = "timeout"
        if self._trace:
            self._note(task, start, placement, now, outcome)

    def _orphan(self, task: int, now: float) -> None:
        """Tasks below one that failed fail too."""
        below = list(self._work.children.get(task, ()))
        while below:
            child = below.pop()
            if self.record.finished[child] < 0:
                self.record.finished[child] = now
                self.record.orphans += 1
                self._waits_for[child] = -1
                below += self._work.children.get(child, ())

    def _cut(self, task: int, now: float) -> None:
        start, placement = self._running.pop(task)
        self.record.lost += max(self._shares[self._work.kind[task]]) * (now - start)
        self.state.backlog.put_back(task, now - start)
        if self._trace:
            self._note(task, start, placement, now, "cut")

    def _note(self, task: int, start: float, where: Placement, now: float, outcome: str) -> None:
        self.record.attempts.append(
            Attempt(task, where.attempt, where.pilot, where.shares, start, now, outcome)
        )

    # allocations

    def _pack(self, now: float) -> None:
        state = self.state
        state.idle = self._batch.idle(now) if self._machine.windows else []
        plan = self._planner.pack(state, now)
        self.record.plans += 1
        for id in plan.cancel:
            if state.allocations[id].state == "queued":
                self._batch.cancel(id)
                del state.allocations[id]
        for id in plan.drain:
            self._drain(state.allocations[id], now)
        for release in plan.release:
            self._release(state.allocations[release.id], release.nodes, now)
        for request in plan.requests:
            self._check(request.queue, request.nodes, request.wall_time)
            id = f"a{next(self._names):05d}"
            state.allocations[id] = Allocation(
                id, request.queue, request.nodes, request.wall_time, now
            )
            self._begin(
                self._batch.submit(id, request.queue, request.nodes, request.wall_time, now), now
            )

    def _check(self, name: str, nodes: int, wall_time: int) -> None:
        """The scheduler would refuse what is outside the queue's limits."""
        queue = self._machine.queue(name)
        queued = sum(
            1 for a in self.state.allocations.values() if a.queue == name and a.state == "queued"
        )
        if not (
            queue.min_nodes <= nodes <= queue.max_nodes
            and queue.min_wall_time <= wall_time <= queue.max_wall_time
            and queued < queue.max_queued
        ):
            raise ValueError(
                f"{self._planner.name}: queue {name} refuses {nodes} nodes for {wall_time} s"
                f" with {queued} queued"
            )

    def _begin(self, jobs: list[Job], now: float) -> None:
        for job in jobs:
            allocation = self.state.allocations[job.id]
            allocation.state, allocation.started = "starting", now
            self._push(now + self._machine.startup, _READY, job.id)
            self._dirty = True

    def _ready(self, id: str, now: float) -> None:
        allocation = self.state.allocations[id]
        allocation.state = "live"
        machine = self._machine
        deadline = (allocation.started or 0.0) + allocation.wall_time - machine.policy.drain_margin
        nodes = [
            NodeCapacity(
                f"{id}.{n}",
                machine.node.cores,
                machine.node.gpus,
                machine.node.memory,
                resources=machine.node.resources,
            )
            for n in range(allocation.nodes)
        ]
        self.state.ledger = self.state.ledger.add_pilot(
            id, nodes, deadline, draining=allocation.draining
        )
        self._on_pilot[id] = set()
        self._push(deadline, _DEADLINE, id)
        self._dirty = self._may_start = True

    def _deadline(self, id: str, now: float) -> None:
        allocation = self.state.allocations.get(id)
        if allocation is None:
            return
        for task in sorted(self._on_pilot[id]):
            self._cut(task, now)
        self._over(allocation, now)

    def _over(self, allocation: Allocation, now: float) -> None:
        """The pilot has stopped what ran, and its job ends."""
        id = allocation.id
        allocation.state, allocation.ended = "ended", now
        del self.state.allocations[id], self._on_pilot[id]
        self._ended.pop(id, None)
        self.state.ledger = self.state.ledger.remove_pilot(id)
        self.state.charged += allocation.charged
        self.record.allocations.append(allocation)
        self._begin(self._batch.end(id, now), now)
        self._dirty = self._may_start = True

    def _drain(self, allocation: Allocation, now: float) -> None:
        allocation.draining = True
        if allocation.state == "live":
            self.state.ledger = self.state.ledger.drain(allocation.id)
            if not self._on_pilot[allocation.id]:
                self._over(allocation, now)

    def _release(self, allocation: Allocation, nodes: tuple[str, ...], now: float) -> None:
        for name in nodes:
            self.state.ledger = self.state.ledger.lose_node(allocation.id, name)
        allocation.give_back(len(nodes), now)
        self._begin(self._batch.release(allocation.id, len(nodes), now), now)

    def _watch_idle_nodes(self, allocation: Allocation, now: float) -> None:
        after = self._machine.release_after
        if after is not None:
            free = self.state.ledger.pilots[allocation.id].free_nodes
            if allocation.note_idle(free, now):
                self._push(now + after + self._machine.tick, _IDLE_NODES)

    def _watch_idle(self, allocation: Allocation, now: float) -> None:
        if self._on_pilot[allocation.id]:
            allocation.idle_since = None
        elif allocation.idle_since is None:
            allocation.idle_since = now
            wait = 0.0 if allocation.draining else self._idle_timeout
            self._push(now + wait, _IDLE, (allocation.id, now))

    def _idle(self, value: tuple[str, float], now: float) -> None:
        id, since = value
        allocation = self.state.allocations.get(id)
        if allocation is not None and allocation.idle_since == since:
            self._over(allocation, now)
