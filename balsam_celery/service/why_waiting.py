"""Why a program waits for slots: facts → a code and one or two sentences.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from balsam_celery.durations import format_duration
from balsam_celery.service.backoff import Pause
from balsam_celery.service.phrases import counted, ended, listed, moment, nodes
from balsam_celery.service.why_allocations import full_text, waits_for
from balsam_celery.service.why_facts import Standing, TaskFacts, Why
from balsam_celery.store.rows import AllocationState
from balsam_celery.store.standing import Ahead


def waiting(facts: TaskFacts) -> Why:
    """Why a program that may start now has not been given slots."""
    standing = facts.standing
    found = _hopeless(standing) or _placed(facts) or _planned(facts) or _asked(facts)
    return replace(found, ahead=standing.ahead)


def _hopeless(standing: Standing) -> Why | None:
    if not standing.hopeless:
        return None
    text = ended(f"No allocation that the site allows can hold it: {standing.hopeless}")
    return Why("impossible", f"{text} The service ends it FAILED when it plans next.")


def _placed(facts: TaskFacts) -> Why | None:
    """What placement says: it starts, or nodes are kept for it."""
    standing = facts.standing
    if standing.starts:
        text = f"It fits into pilot {standing.starts} now: the service's next look starts it."
        return Why("starting", text, pilot=standing.starts)
    kept = standing.reservation
    if kept is None:
        return None
    [*pilots] = (pilot for pilot in standing.fits if pilot.id == kept.pilot)
    when = f"by {moment(kept.start, facts.now)}" if kept.start > facts.now else "any moment now"
    return Why(
        "reserved",
        f"It is to run on {nodes(kept.nodes)} of pilot {kept.pilot}, kept for it: it starts"
        f" {when}.",
        pilot=kept.pilot,
        allocation=pilots[0].allocation if pilots else None,
        nodes=kept.nodes,
        expected_start=kept.start,
    )


def _planned(facts: TaskFacts) -> Why | None:
    """It waits in a pilot that runs, or for an allocation that exists."""
    standing, now = facts.standing, facts.now
    planned = standing.planned
    at_hand = [p for p in standing.fits if planned is None or p.allocation == planned.id]
    if at_hand:
        pilot = at_hand[0]
        behind = behind_what(standing.ahead) or "behind what runs there"
        text = (
            f"It waits for slots in pilot {pilot.id} (allocation {pilot.allocation}, until"
            f" {moment(pilot.end_time, now)}), {behind}."
        )
        return Why("behind", text, pilot=pilot.id, allocation=pilot.allocation)
    if planned is None:
        return None
    if standing.pilot is None or planned.cancel_requested is not None:
        code, waits = waits_for(planned, standing.job, now)
    else:
        until = moment(standing.pilot.end_time, now)
        code = "no-room"
        waits = (
            f"runs until {until}; its pilot {standing.pilot.id} has no room that lasts long enough"
        )
    text = (
        f"It is planned for allocation {planned.id} ({size(planned.nodes, planned.wall_time)} in"
        f" queue {planned.queue}), which {waits}."
    )
    if behind := behind_what(standing.ahead):
        text += f" It stands {behind}."
    start = standing.job.expected_start if planned.state is AllocationState.QUEUED else None
    return Why(code, text, allocation=planned.id, expected_start=start)


def _asked(facts: TaskFacts) -> Why:
    """Nothing that exists holds it: what is asked for, or why nothing is."""
    standing = facts.standing
    if standing.request is not None:
        asked, full = standing.request, standing.job.full
        waits = f"; it has to wait, since {full_text(asked.queue, full)}" if full else ""
        return Why(
            "to-request",
            f"No allocation has room for it: one of {size(asked.nodes, asked.wall_time)} in queue"
            f" {asked.queue} is asked for when the service plans next{waits}."
            f"{_stands(standing.ahead)}",
        )
    if standing.paused:
        text = pauses_text(standing.paused, facts.now)
        return Why("paused", f"{text}{_stands(standing.ahead)}")
    if standing.held is not None:
        code, reason = standing.held
        text = ended(f"No allocation has room for it, and none may be asked for now: {reason}")
        return Why(code, f"{text}{_stands(standing.ahead)}")
    return Why(
        "slots", f"It waits for slots: the service plans for it next.{_stands(standing.ahead)}"
    )


def size(count: int, wall_time: int) -> str:
    """``2 nodes for 1h30m``."""
    return f"{counted(count, 'node')} for {format_duration(wall_time)}"


def pauses_text(paused: Mapping[str, Pause], now: float) -> str:
    """Which queues are asked for nothing, until when and why."""
    parts = []
    for queue, pause in paused.items():
        reason = f", the last: {pause.reason}" if pause.reason else ""
        failed = (
            f"an allocation came to nothing{reason}"
            if pause.failures == 1
            else f"{pause.failures} allocations in a row came to nothing{reason}"
        )
        parts.append(
            ended(f"Queue {queue} is asked for nothing until {moment(pause.until, now)}: {failed}")
        )
    return " ".join(parts)


def behind_what(ahead: Ahead) -> str:
    """``behind 12 tasks of higher priority and 4 older tasks``; ``""``: nothing."""
    parts = [
        words
        for count, words in (
            (ahead.higher, f"{counted(ahead.higher, 'task')} of higher priority"),
            (ahead.wider, f"{counted(ahead.wider, 'task')} over more nodes"),
            (ahead.larger, f"{counted(ahead.larger, 'task')} with more of each node"),
            (ahead.older, counted(ahead.older, "older task")),
        )
        if count
    ]
    return f"behind {listed(parts)}" if parts else ""


def _stands(ahead: Ahead) -> str:
    behind = behind_what(ahead)
    return f" It stands {behind}." if behind else ""
