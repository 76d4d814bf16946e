"""What becomes of waiting tasks of one shape: facts → a code and one or two sentences.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from balsam_celery.durations import format_duration
from balsam_celery.packing import Request
from balsam_celery.resources import Resources
from balsam_celery.service.backoff import Pause
from balsam_celery.service.phrases import counted, ended, listed
from balsam_celery.service.why_facts import Why
from balsam_celery.service.why_waiting import pauses_text, size


@dataclass(frozen=True, slots=True)
class Need:
    """Waiting tasks of one shape, and what packing makes of them.

    Attributes:
        count: how many wait.
        planned: how many of them are planned for an allocation that exists, by its id.
        asked: how many for one that is asked for next.
        held: why nothing is asked for the others: a code and words.
        paused: queues whose pauses are why, by name.
    """

    resources: Resources
    wall_time: int
    priority: int
    count: int
    planned: tuple[tuple[str, int], ...] = ()
    asked: tuple[tuple[Request, int], ...] = ()
    held: tuple[str, str] | None = None
    paused: Mapping[str, Pause] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """How many nothing is planned for."""
        taken = sum(n for _, n in self.planned) + sum(n for _, n in self.asked)
        return self.count - taken


def why_need(need: Need, now: float) -> Why:
    """What becomes of them, and why nothing is asked for what is left."""
    parts = []
    if need.planned:
        where = [f"{n:,} for allocation {id}" for id, n in need.planned]
        parts.append(f"planned {listed(where)}")
    for request, n in need.asked:
        parts.append(
            f"{n:,} for one of {size(request.nodes, request.wall_time)} in queue {request.queue},"
            " which is asked for next"
        )
    text = f"{describe(need)}: {'; '.join(parts)}." if parts else f"{describe(need)}."
    code = "to-request" if need.asked else "planned"
    if need.left <= 0:
        return Why(code, text)
    code, reason = need.held or ("slots", "the service plans for them next")
    left = f"{need.left:,}" if parts else "They"
    if need.paused:
        return Why("paused", f"{text} {left} wait: {pauses_text(need.paused, now)}")
    if code == "impossible":
        return Why(
            code, ended(f"{text} No allocation that the site allows can hold them: {reason}")
        )
    return Why(code, ended(f"{text} {left} wait, and nothing more is asked for: {reason}"))


def describe(need: Need) -> str:
    """``12 tasks of 2 nodes, 10m each at the most``."""
    wanted = need.resources
    shape = counted(wanted.num_nodes, "node")
    if not wanted.is_gang:
        shape = counted(wanted.least_cores, "core")
    if wanted.gpus_per_node:
        shape += f" and {wanted.gpus_per_node:g} GPUs" + (" a node" if wanted.is_gang else "")
    each = " each" if need.count > 1 else ""
    limit = f"{format_duration(need.wall_time)}{each} at the most"
    priority = f", of priority {need.priority}" if need.priority else ""
    return f"{counted(need.count, 'waiting task')} of {shape}, {limit}{priority}"
