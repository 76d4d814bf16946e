"""Why a task is where it is: facts → a code and one or two sentences.  Pure: a function per state.

:mod:`~balsam_celery.service.explain` gathers the facts; :mod:`~balsam_celery.service.why_waiting`
tells of tasks that wait for slots, :mod:`~balsam_celery.service.why_ended` of ended ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from balsam_celery.service.phrases import (
    counted,
    ended,
    listed,
    moment,
    nodes,
)
from balsam_celery.service.transitions import awaited
from balsam_celery.service.why_ended import failed, finished, history, killed
from balsam_celery.service.why_facts import SiteFacts, TaskFacts, Why
from balsam_celery.service.why_waiting import waiting
from balsam_celery.states import FINAL, ON_PILOT, PLACEABLE, State
from balsam_celery.store.rows import PilotState, TaskRow

#: Seconds of silence after which a pilot's last heartbeat is told.
SILENT_AFTER = 30.0
#: What runs goes on without the service, and what has ended needs nobody.
_NEEDS_NOBODY = FINAL | {State.RUNNING, State.AWAITING_PARENTS}
_STEPS = {
    "stage_in": "its files are to be staged in",
    "preprocess": "its preprocess hook is to run",
    "postprocess": "its program has ended well, and its postprocess hook is to run",
    "stage_out": "its program has ended well, and its files are to be staged out",
    "handler": "its program has failed, and its handler is to say what follows",
}


def why(facts: TaskFacts) -> Why:
    """Why the task is where it is."""
    row = facts.row
    if row.kill_requested is not None and row.state not in FINAL:
        found = _kill_asked(facts)
    else:
        found = BY_STATE[row.state](facts)
    if row.attempt and row.state in (*PLACEABLE, *ON_PILOT) and (told := history(facts)):
        found = replace(found, text=f"{found.text} {told}")
    return _with_site(found, row, facts.site)


def _with_site(found: Why, row: TaskRow, site: SiteFacts) -> Why:
    """``found``, or that nothing moves, where the service is needed and not there."""
    if row.state in FINAL or not (trouble := site_trouble(site)):
        return found
    code, text = trouble
    if code == "beat-down" and (row.state not in PLACEABLE or row.kind == "celery"):
        return found  # beat asks for allocations, and the service does the rest
    if row.state in _NEEDS_NOBODY and row.kill_requested is None:
        return replace(found, text=f"{found.text} {text}")
    return replace(found, code=code, text=f"{text} {found.text}")


def site_trouble(site: SiteFacts) -> tuple[str, str] | None:
    """A code and a sentence, when the site cannot move anything on."""
    if not site.service:
        return "service-down", "The service is not up, so nothing moves on: 'balsam up' starts it."
    if site.redis:
        text = ended(f"Redis does not answer, so nothing is sent or heard: {site.redis}")
        return "redis-down", text
    if not site.beat:
        text = (
            "Beat is not up, so no allocation is asked for or looked after: 'balsam up' starts it."
        )
        return "beat-down", text
    return None


def _created(facts: TaskFacts) -> Why:
    return Why("new", "It is new: the service looks at it next.")


def _awaiting_parents(facts: TaskFacts) -> Why:
    row, parents = facts.row, facts.parents
    count = max(row.waiting_on, len(parents))
    if not parents:
        return Why("parents-done", "All its parents have finished: the service releases it next.")
    named = listed([f"{p.name} ({p.id}), which is {p.state}" for p in parents])
    text = (
        f"It waits for its parent {named}."
        if count == 1
        else f"It waits for {counted(count, 'parent')}: {named}"
        f"{f', and {count - len(parents):,} more' if count > len(parents) else ''}."
    )
    return Why("parents", text, parents=parents)


def _between(facts: TaskFacts) -> Why:
    """READY, STAGED_IN, RUN_DONE, RUN_ERROR, RUN_TIMEOUT, POSTPROCESSED."""
    row = facts.row
    if row.not_before > facts.now:
        return not_before(facts)
    step = awaited(row)
    if step is None:
        return Why("service", "The service moves it on at its next look.")
    text = f"It waits for the transitions worker: {_STEPS[step]}."
    return Why(f"hook-{step.replace('_', '-')}", text)


def not_before(facts: TaskFacts) -> Why:
    """It is not to start yet."""
    row = facts.row
    when = moment(row.not_before, facts.now)
    if row.reason and awaited(row) is not None:
        text = f"It waits until {when} before this is tried again: {row.reason}."
        return Why("retry-delay", text, expected_start=row.not_before)
    if row.state is State.RESTART_READY:
        text = f"It waits before it is tried again, until {when}."
        return Why("retry-delay", text, expected_start=row.not_before)
    return Why("not-before", f"It is not to start before {when}.", expected_start=row.not_before)


def _placeable(facts: TaskFacts) -> Why:
    if facts.row.not_before > facts.now:
        return not_before(facts)
    if facts.row.kind == "celery":
        return Why("service", "It is a Celery task: the service sends it at its next look.")
    return waiting(facts)


def _dispatched(facts: TaskFacts) -> Why:
    row = facts.row
    since = moment(row.changed, facts.now)
    if row.kind == "celery":
        text = f"Its message was sent at {since}: it waits for the tasks worker."
        return Why("sent", text)
    where = _where(row)
    if any(share.get("queued") for share in row.shares or ()):
        text = f"It was sent to {where} ahead of time, at {since}: it starts once its cores"
        return _on_pilot(facts, "sent-ahead", f"{text} are free.")
    return _on_pilot(facts, "sent", f"It was sent to {where} at {since} and is about to start.")


def _running(facts: TaskFacts) -> Why:
    row, now = facts.row, facts.now
    since = moment(row.changed, now)
    if row.kind == "celery":
        return Why("running", f"It runs on the tasks worker since {since}.")
    latest = row.changed + row.wall_time + facts.kill_grace
    if facts.pilot is not None:
        latest = min(latest, facts.pilot.end_time)
    inside = f" (allocation {facts.allocation.id})" if facts.allocation is not None else ""
    text = (
        f"It runs on {_where(row)}{inside} since {since},"
        f" until {moment(latest, now)} at the latest."
    )
    return replace(_on_pilot(facts, "running", text), latest_end=latest)


def _on_pilot(facts: TaskFacts, code: str, text: str) -> Why:
    """Where it is, and what is the matter with its pilot."""
    pilot = facts.pilot
    found = Why(
        code,
        text,
        pilot=facts.row.pilot,
        allocation=facts.allocation.id if facts.allocation is not None else None,
        nodes=_names(facts.row),
    )
    if pilot is None:
        return found
    lost = [n["name"] for n in pilot.nodes if n.get("lost") and n["name"] in found.nodes]
    if pilot.state is PilotState.ENDED:
        why_so = f": {pilot.reason}" if pilot.reason else ""
        more = ended(f"That pilot has ended{why_so}; the service takes the task back next")
        return replace(found, code="pilot-ended", text=f"{text} {more}")
    if lost:
        more = (
            f"The worker of {nodes(lost)} is gone: the task runs elsewhere once the node's keeper"
            " or the scheduler has confirmed that nothing of it runs there."
        )
        return replace(found, code="node-lost", text=f"{text} {more}")
    if facts.now - pilot.heartbeat > SILENT_AFTER:
        more = (
            f"The pilot was heard of last at {moment(pilot.heartbeat, facts.now)}: its tasks stay"
            " with it until the scheduler says that its job has ended. If you know that it has,"
            f" 'balsam allocations cancel {pilot.allocation}' has the scheduler say so."
        )
        return replace(found, code="pilot-silent", text=f"{text} {more}")
    return found


def _kill_asked(facts: TaskFacts) -> Why:
    row = facts.row
    asked = moment(row.kill_requested or 0.0, facts.now)
    reason = f" ({row.kill_reason})" if row.kill_reason else ""
    if row.pilot:
        who = f"pilot {row.pilot} has told that no process of it lives"
    elif row.kind == "celery":
        who = "the tasks worker has told its end"
    else:
        who = "the service has looked at it"
    text = f"A kill was asked for at {asked}{reason}: it is USER_KILLED once {who}."
    return _on_pilot(facts, "kill-asked", text)


def _where(row: TaskRow) -> str:
    pilot = f"pilot {row.pilot}" if row.pilot else "a pilot"
    return f"{nodes(_names(row))} of {pilot}" if row.shares else pilot


def _names(row: TaskRow) -> tuple[str, ...]:
    return tuple(share["node"] for share in row.shares or ())


#: What is told in each state.
BY_STATE: dict[State, Callable[[Any], Why]] = {
    State.CREATED: _created,
    State.AWAITING_PARENTS: _awaiting_parents,
    State.READY: _between,
    State.STAGED_IN: _between,
    State.PREPROCESSED: _placeable,
    State.DISPATCHED: _dispatched,
    State.RUNNING: _running,
    State.RUN_DONE: _between,
    State.RUN_ERROR: _between,
    State.RUN_TIMEOUT: _between,
    State.RESTART_READY: _placeable,
    State.POSTPROCESSED: _between,
    State.JOB_FINISHED: finished,
    State.FAILED: failed,
    State.USER_KILLED: killed,
}
