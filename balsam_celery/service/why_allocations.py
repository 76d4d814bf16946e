"""Why an allocation is where it is: facts → a code and one or two sentences.  Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from balsam_celery.packing import Note
from balsam_celery.service.phrases import counted, ended, moment
from balsam_celery.service.poll import NOT_KNOWN
from balsam_celery.service.submit import IN_DOUBT
from balsam_celery.service.verdict import NEVER
from balsam_celery.service.why_facts import Job, Why
from balsam_celery.store.rows import AllocationRow, AllocationState, PilotRow, PilotState

#: So many nodes that are not used are told of by name.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class AllocationFacts:
    """What is known of an allocation; times in seconds since the epoch.

    Attributes:
        row: the allocation.
        job: what the scheduler says of it, while it waits.
        pilot: its latest pilot.
        running: tasks on its pilots.
        planned: waiting tasks that packing pours into it.
        note: what packing makes of it.
    """

    row: AllocationRow
    now: float
    job: Job = field(default_factory=Job)
    pilot: PilotRow | None = None
    running: int = 0
    planned: int = 0
    note: Note | None = None


def why_allocation(facts: AllocationFacts) -> Why:
    """Why the allocation is where it is, what it waits for, and what it is for."""
    row = facts.row
    if row.cancel_requested is not None and row.state in BY_STATE:
        asked = moment(row.cancel_requested, facts.now)
        reason = f" ({row.reason})" if row.reason else ""
        text = f"Its end was asked for at {asked}{reason}: the scheduler's word is awaited."
        return _made(facts, "cancelling", text)
    if row.state in BY_STATE:
        code, text = BY_STATE[row.state](facts)
        return _made(facts, code, f"{text}{_origin(facts)} {_purpose(facts)}")
    when = f" at {moment(row.ended, facts.now)}" if row.ended is not None else ""
    word = "failed" if row.state is AllocationState.FAILED else "ended"
    text = ended(f"It {word}{when}: {row.reason or 'no reason is known'}")
    return _made(facts, word, text)


def _made(facts: AllocationFacts, code: str, text: str) -> Why:
    queued = facts.row.state is AllocationState.QUEUED
    pilot = facts.pilot
    return Why(
        code,
        text,
        allocation=facts.row.id,
        pilot=pilot.id if pilot is not None else None,
        nodes=tuple(node["name"] for node in pilot.nodes) if pilot is not None else (),
        expected_start=facts.job.expected_start if queued else None,
        latest_end=pilot.end_time if pilot is not None else None,
    )


def _origin(facts: AllocationFacts) -> str:
    """Why it was asked for; not known of those of an earlier release."""
    row = facts.row
    if not row.asked_for:
        return ""
    return ended(f" It was asked for at {moment(row.created, facts.now)}: {row.asked_for}")


#: What becomes of those with which packing has something in mind.
_PURPOSES = {
    **dict.fromkeys(("unneeded", "too-large", "too-small"), "is given up"),
    **dict.fromkeys(("idle", "time-over", "in-the-way"), "is drained"),
}


def _purpose(facts: AllocationFacts) -> str:
    note, count = facts.note, facts.planned
    if note is not None and (becomes := _PURPOSES.get(note.code)):
        return ended(f"It {becomes} when the service plans next: {note.reason}")
    if note is not None and note.code == "overdue":
        return ended(f"{note.reason[:1].upper()}{note.reason[1:]}")
    if count:
        return f"{counted(count, 'waiting task')} {'is' if count == 1 else 'are'} planned for it."
    return "No waiting task is planned for it."


def _waits(facts: AllocationFacts) -> tuple[str, str]:
    code, words = waits_for(facts.row, facts.job, facts.now)
    return code, ended(f"It {words}")


def waits_for(row: AllocationRow, job: Job, now: float) -> tuple[str, str]:
    """A code, and what an allocation that has no pilot yet waits for: ``which …``."""
    if row.cancel_requested is not None:
        return "cancelling", f"is to end ({row.reason or 'cancelled'})"
    if row.state is AllocationState.REQUESTED:
        return _not_submitted(row)
    if row.state is AllocationState.RUNNING:
        since = f" since {moment(row.started, now)}" if row.started is not None else ""
        return "starting-up", f"runs{since}; its pilot has not registered yet"
    if row.reason.startswith(NEVER):
        return "never-starts", row.reason
    if row.reason.startswith(NOT_KNOWN):
        return "not-known", f"waits in the scheduler's queue: {row.reason}"
    reason = f" ({row.reason})" if row.reason else ""
    full = f"; {full_text(row.queue, job.full)}" if job.full else ""
    return "queued", f"waits in the scheduler's queue{reason}{full}; {_start(job, now)}"


def full_text(queue: str, most: int) -> str:
    """Why one more of a queue waits for the end of another."""
    return f"max_running of queue {queue} is {most}, and as many run"


def _not_submitted(row: AllocationRow) -> tuple[str, str]:
    if row.native_id == IN_DOUBT:
        return "in-doubt", f"may be submitted: {row.reason or 'the answer is awaited'}"
    if row.submitted is not None:
        return "not-submitted", f"could not be submitted yet: {row.reason or 'it is tried again'}"
    return "requested", "is asked for, and submitted when the service plans next"


def _start(job: Job, now: float) -> str:
    if job.trouble:
        return f"when it starts is not known: {job.trouble}"
    if job.expected_start is None:
        return "the scheduler does not say when it starts"
    if job.expected_start <= now:
        return "the scheduler expects to start it any moment"
    return f"the scheduler expects to start it at {moment(job.expected_start, now)}"


def _runs(facts: AllocationFacts) -> tuple[str, str]:
    pilot, now = facts.pilot, facts.now
    if pilot is None:
        return _waits(facts)
    if pilot.state is PilotState.ENDED:
        reason = f": {pilot.reason}" if pilot.reason else ""
        text = ended(f"Its pilot has ended{reason}")
        return "pilot-ended", f"{text} The scheduler has not said yet that its job has."
    holds, are = counted(facts.running, "task"), "is" if facts.running == 1 else "are"
    until = moment(pilot.end_time, now)
    if pilot.state is PilotState.DRAINING:
        reason = f" ({pilot.reason})" if pilot.reason else ""
        text = f"Nothing more starts in it{reason}; {holds} {are} still on it, until {until}."
        return "draining", text
    if not facts.running and pilot.idle_since is not None:
        since = moment(pilot.idle_since, now)
        return "idle", f"Nothing runs in it since {since}; it lasts until {until}."
    text = f"It runs {holds} on {counted(len(pilot.nodes), 'node')}, until {until}."
    return "running", f"{text}{_unused(pilot)}"


def _unused(pilot: PilotRow) -> str:
    """Which nodes nothing starts on, and why."""
    told = [
        ended(f"Nothing starts on {node['name']}: {node.get('lost_reason') or 'it was lost'}")
        for node in pilot.nodes
        if node.get("lost")
    ]
    more = f" So it is with {len(told) - _NAMED} more." if len(told) > _NAMED else ""
    return "".join(f" {one}" for one in told[:_NAMED]) + more


#: What is told of those that have not ended.
BY_STATE: dict[AllocationState, Callable[[AllocationFacts], tuple[str, str]]] = {
    AllocationState.REQUESTED: _waits,
    AllocationState.QUEUED: _waits,
    AllocationState.RUNNING: _runs,
}
