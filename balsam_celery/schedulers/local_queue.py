"""Which waiting jobs start now: first come, first served per queue, with backfill. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued job; ``duration`` in seconds is the longest that it can hold its nodes."""

    number: int
    queue: str
    nodes: int
    duration: float


@dataclass(frozen=True, slots=True)
class Holding:
    """A job that holds nodes until ``until`` (seconds since the epoch) at the latest."""

    queue: str
    nodes: int
    until: float


def choose(
    waiting: Iterable[Waiting],
    holding: Iterable[Holding],
    *,
    nodes: int,
    max_running: Mapping[str, int],
    now: float,
) -> list[int]:
    """Numbers of the jobs to start now.

    The first job that lacks nodes gets a reservation at the time by which enough will be free;
    later ones start before it only if they do not delay it. A job held back by its queue's
    ``max_running`` reserves nothing.

    Args:
        waiting: queued jobs in order of submission.
        holding: jobs that hold nodes.
        nodes: nodes of the machine.
        max_running: limit of each queue; a queue that is not named has none.
        now: seconds since the epoch.
    """
    held = list(holding)
    running = Counter(job.queue for job in held)
    free = nodes - sum(job.nodes for job in held)
    starts: list[int] = []
    reserved: float | None = None  # when the first job that lacks nodes can start
    spare = 0  # nodes that it leaves free even then
    for job in waiting:
        if running[job.queue] >= max_running.get(job.queue, running[job.queue] + 1):
            continue
        ends = now + job.duration
        if job.nodes > free:
            if reserved is None:
                reserved, spare = _reserve(job.nodes, free, held, now)
            continue
        if reserved is not None and ends > reserved:
            if job.nodes > spare:
                continue
            spare -= job.nodes
        free -= job.nodes
        running[job.queue] += 1
        held.append(Holding(job.queue, job.nodes, ends))
        starts.append(job.number)
    return starts


def expected_starts(
    waiting: Iterable[Waiting],
    holding: Iterable[Holding],
    *,
    nodes: int,
    max_running: Mapping[str, int],
    now: float,
) -> dict[int, float]:
    """When each queued job starts at the latest, by number, if nothing is queued before it.

    The queue is played through, each job holding its nodes for its whole duration; jobs that can
    never start are left out. Arguments: as :func:`choose`.
    """
    left, held = list(waiting), list(holding)
    found: dict[int, float] = {}
    while left:
        starts = choose(left, held, nodes=nodes, max_running=max_running, now=now)
        chosen = set(starts)
        for job in left:
            if job.number in chosen:
                found[job.number] = now
                held.append(Holding(job.queue, job.nodes, now + job.duration))
        left = [job for job in left if job.number not in chosen]
        if not held:
            break
        now = max(now, min(job.until for job in held))
        held = [job for job in held if job.until > now]
    return found


def _reserve(wanted: int, free: int, held: list[Holding], now: float) -> tuple[float, int]:
    for job in sorted(held, key=lambda job: job.until):
        free += job.nodes
        if free >= wanted:
            return max(job.until, now), free - wanted
    return float("inf"), 0  # never: the job asks for more than the machine has
