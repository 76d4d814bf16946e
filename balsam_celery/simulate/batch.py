"""The machine's batch scheduler, with the jobs of its other users.

First come, first served, with EASY backfilling (Lifka, "The ANL/IBM SP scheduling system", JSSPP
1995; Mu'alem and Feitelson, IEEE TPDS 12(6), 2001): the first job that does not fit is promised the
time at which enough nodes are free when all that runs takes its limit; others may start out of turn
where that does not delay it. So queue waits and idle windows follow from the load, the width and
the limit of a job, and from what the others happen to run: nothing is drawn from a curve of waits.

The other users' jobs: Poisson arrivals; widths log-uniform, three of four rounded to a power of
two, and lognormal runtimes (after Lublin and Feitelson, JPDC 63(11), 2003); limits 1 to 5 times the
runtime, rounded up to half an hour, since users ask for much more than they use (Mu'alem and
Feitelson). The rate makes their work ``load`` times the machine. They begin three days before the
workload, so that the machine is busy from the start.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass

from balsam_celery.simulate.machine import Background, Machine

#: Jobs that a pass looks at behind the first that does not fit.
_DEPTH = 300
_WARM_UP = 3 * 86400.0


@dataclass(slots=True)
class Job:
    """A batch job.

    Attributes:
        id: of one of our allocations; empty: of another user.
        queue: name of the queue, for our limits of running jobs.
        nodes, limit: what was asked for, less nodes that it gave back; seconds.
        runtime: seconds that another user's job runs.
        start: when it started, ``None``: it waits.
    """

    id: str
    queue: str
    nodes: int
    limit: float
    runtime: float = 0.0
    start: float | None = None


@dataclass(frozen=True, slots=True)
class Idle:
    """``nodes`` nodes that a job of at most ``seconds`` could have at once."""

    nodes: int
    seconds: float


class Batch:
    """The queue of a machine.

    Attributes:
        free: nodes on which nothing runs.
    """

    def __init__(self, machine: Machine, seed: int) -> None:
        self.free = machine.nodes
        self._most = {queue.name: queue.max_running for queue in machine.queues}
        self._running_of: dict[str, int] = dict.fromkeys(self._most, 0)
        self._queue: list[Job] = []
        self._running: list[Job] = []
        self._ends: list[tuple[float, int, Job]] = []
        self._number = 0
        self._others = _Others(machine.background, machine.nodes, seed)
        while self.next_time() <= 0:
            self.advance(self.next_time())

    def next_time(self) -> float:
        """When something happens by itself the next time."""
        ends = self._ends[0][0] if self._ends else math.inf
        return min(ends, self._others.time)

    def advance(self, now: float) -> list[Job]:
        """Let happen what happens until ``now``; returns our jobs that start."""
        changed = False
        while self._ends and self._ends[0][0] <= now:
            job = heapq.heappop(self._ends)[2]
            self._running.remove(job)
            self.free += job.nodes
            changed = True
        while self._others.time <= now:
            self._queue.append(self._others.take())
            changed = True
        return self._start(now) if changed else []

    def submit(self, id: str, queue: str, nodes: int, limit: float, now: float) -> list[Job]:
        """Queue a job of ours; returns our jobs that start."""
        self._queue.append(Job(id, queue, nodes, limit))
        return self._start(now)

    def cancel(self, id: str) -> None:
        """Take a job of ours that waits out of the queue."""
        self._queue = [job for job in self._queue if job.id != id]

    def end(self, id: str, now: float) -> list[Job]:
        """A job of ours that runs is over; returns our jobs that start."""
        job = next(job for job in self._running if job.id == id)
        self._running.remove(job)
        self._running_of[job.queue] -= 1
        self.free += job.nodes
        return self._start(now)

    def release(self, id: str, nodes: int, now: float) -> list[Job]:
        """A job of ours that runs gives back some of its nodes; returns our jobs that start."""
        job = next(job for job in self._running if job.id == id)
        job.nodes -= nodes
        self.free += nodes
        return self._start(now)

    def idle(self, now: float) -> list[Idle]:
        """What a job could have at once: all idle nodes until the first in the queue needs them."""
        head = next((job for job in self._queue if self._may_run(job)), None)
        if not self.free:
            return []
        if head is None:
            return [Idle(self.free, math.inf)]
        shadow, extra = self._promise(head, now)
        windows = [Idle(self.free, shadow - now)]
        return windows + [Idle(min(extra, self.free), math.inf)] * (extra > 0)

    def _may_run(self, job: Job) -> bool:
        return not job.id or self._running_of[job.queue] < self._most[job.queue]

    def _promise(self, head: Job, now: float) -> tuple[float, int]:
        """When ``head`` can start at the latest, and how many nodes it then leaves."""
        free = self.free
        for job in sorted(self._running, key=lambda one: (one.start or 0.0) + one.limit):
            if free >= head.nodes:
                break
            free += job.nodes
            now = max(now, (job.start or 0.0) + job.limit)
        return now, free - head.nodes

    def _start(self, now: float) -> list[Job]:
        started: list[Job] = []
        kept: list[Job] = []
        head: tuple[float, int] | None = None
        for place, job in enumerate(self._queue):
            if not self.free or len(kept) > _DEPTH:
                kept += self._queue[place:]
                break
            if not self._may_run(job):
                kept.append(job)
            elif head is None and job.nodes > self.free:
                head = self._promise(job, now)
                kept.append(job)
            elif job.nodes <= self.free and (
                head is None or now + job.limit <= head[0] or job.nodes <= head[1]
            ):
                if head is not None and now + job.limit > head[0]:
                    head = head[0], head[1] - job.nodes
                self._run(job, now)
                started.append(job)
            else:
                kept.append(job)
        self._queue = kept
        return [job for job in started if job.id]

    def _run(self, job: Job, now: float) -> None:
        job.start = now
        self.free -= job.nodes
        self._running.append(job)
        if job.id:
            self._running_of[job.queue] += 1
        else:
            self._number += 1
            heapq.heappush(self._ends, (now + job.runtime, self._number, job))


class _Others:
    """The other users' jobs, one after the other; ``time``: when the next one is submitted."""

    def __init__(self, background: Background | None, nodes: int, seed: int) -> None:
        self._random = random.Random(f"background {seed}")  # noqa: S311
        self.time = math.inf
        if background is None or not background.load:
            return
        self._model = background
        draws = [self._draw() for _ in range(4000)]
        area = sum(job.nodes * job.runtime for job in draws) / len(draws)
        self._gap = area / (background.load * nodes)
        self.time = -_WARM_UP

    def take(self) -> Job:
        """The next one; moves on."""
        self.time += self._random.expovariate(1 / self._gap)
        return self._draw()

    def _draw(self) -> Job:
        model, draw = self._model, self._random
        width = draw.uniform(0, math.log2(model.max_nodes))
        nodes = round(2 ** (round(width) if draw.random() < 0.75 else width))
        runtime = model.median_runtime * math.exp(draw.gauss(0, model.sigma))
        runtime = min(max(runtime, 60.0), model.max_runtime)
        limit = math.ceil(runtime * draw.uniform(1, 5) / 1800) * 1800
        return Job("", "", min(nodes, model.max_nodes), min(limit, model.max_runtime), runtime)
