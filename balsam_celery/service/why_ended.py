"""Why a task has ended as it has, and how often it was tried.  Pure."""

from __future__ import annotations

from collections.abc import Sequence

from balsam_celery.durations import format_duration
from balsam_celery.retrying import forbids
from balsam_celery.service.phrases import ended, last_line, moment, times
from balsam_celery.service.rules import failure_of
from balsam_celery.service.why_facts import TaskFacts, Why
from balsam_celery.states import ON_PILOT
from balsam_celery.store.rows import AttemptRow, TaskRow


def finished(facts: TaskFacts) -> Why:
    """When, after how long, at which attempt."""
    row, last = facts.row, facts.attempt
    took = _seconds(last)
    ran = f" after {format_duration(round(took, 1))}" if took is not None else ""
    again = f", at attempt {row.attempt}" if row.attempt > 1 else ""
    when = moment(row.finished if row.finished is not None else row.changed, facts.now)
    return Why("finished", f"It finished at {when}{ran}{again}.")


def killed(facts: TaskFacts) -> Why:
    """When and why."""
    row = facts.row
    when = moment(row.finished if row.finished is not None else row.changed, facts.now)
    reason = row.reason or row.kill_reason or "no reason was given"
    return Why("killed", ended(f"It was killed at {when}: {reason}"), parents=facts.parents)


def failed(facts: TaskFacts) -> Why:
    """Why, what its program said last, how often it was tried, and how to try it again."""
    row, last = facts.row, facts.attempt
    if not row.attempt:
        code = "parent-failed" if facts.parents else "never-ran"
        if row.reason.startswith("no allocation can hold it"):
            code = "impossible"
        text = ended(f"It failed and never ran: {row.reason or 'no reason is known'}")
        return Why(code, f"{text} {_retry_hint(row, facts.parents)}", parents=facts.parents)
    outcome = (last.outcome if last is not None else None) or "not known"
    if last is not None and last.exit_code == 0:
        outcome = "its end"  # of staging out, or by its hook's word
    parts = [ended(f"It failed: {row.reason or _how(last) or 'no reason is known'}")]
    if printed := _printed(last):
        parts.append(printed)
    parts.append(f"{_tried(row, last, facts.retry_on)} {_retry_hint(row, ())}")
    return Why(_FAILURES.get(outcome, "failed"), " ".join(parts))


#: Ends that ``retry_on`` is not asked about.
_TAKEN_BACK = frozenset({"drained", "lost", "cut", "unfit", "killed", "fenced"})
_FAILURES = {
    "exit": "exit-code", "error": "exit-code", "FAILURE": "exit-code", "signal": "signal",
    "timeout": "wall-time", "cannot-start": "cannot-start", "drained": "cut-short",
    "cut": "cut-short",
    "lost": "cut-short", "unfit": "cut-short",
}  # fmt: skip


def _retry_hint(row: TaskRow, parents: Sequence[TaskRow]) -> str:
    if parents:
        return f"'balsam retry {parents[0].id}' runs the parent again, and this one after it."
    return f"'balsam retry {row.id}' runs it again."


def _tried(row: TaskRow, last: AttemptRow | None, retry_on: Sequence[str]) -> str:
    """How often it was tried, and why not once more."""
    tried = f"It was tried {times(row.attempt)}"
    if row.failures > row.max_retries:
        used = f"its {_retries(row.max_retries)} used up" if row.max_retries else "without retries"
        return f"{tried}, {used}."
    if last is None or last.outcome in _TAKEN_BACK or last.exit_code == 0:
        return f"{tried}."
    outcome = "exit" if last.outcome == "FAILURE" else last.outcome or ""
    failure = failure_of(outcome, last.exit_code, last.signal, last.reason)
    entries = retry_on if row.retry_on is None else row.retry_on
    if why_not := forbids(entries, failure):
        whose = "its retry_on" if row.retry_on is not None else "[retry] retry_on"
        return f"{tried}; {whose} ({', '.join(entries)}) {why_not}."
    return f"{tried}."


def history(facts: TaskFacts) -> str:
    """What came before, of a task that is to run again or does."""
    row, last = facts.row, facts.attempt
    left = f"{_retries(max(0, row.max_retries - row.failures))} left"
    if not row.failures:
        left = "nothing counts as a failure so far"
    if row.state in ON_PILOT:
        return f"This is attempt {row.attempt}; {left}." if row.attempt > 1 else ""
    how = f" ({_how(last)})" if _how(last) else ""
    return f"It was tried {times(row.attempt)} before{how}; {left}."


def _retries(count: int) -> str:
    return f"{count} retr{'y' if count == 1 else 'ies'}"


def _printed(last: AttemptRow | None) -> str:
    if last is None:
        return ""
    for label, tail in (("error output", last.stderr_tail), ("output", last.stdout_tail)):
        if line := last_line(tail):
            return f"Its {label} ended with: {line!r}."
    return ""


def _how(last: AttemptRow | None) -> str:
    if last is None:
        return ""
    if last.reason:
        return last.reason
    if last.exit_code is not None:
        return f"exit code {last.exit_code}"
    return f"signal {last.signal}" if last.signal is not None else last.outcome or ""


def _seconds(last: AttemptRow | None) -> float | None:
    if last is None or last.started is None or last.ended is None:
        return None
    return max(0.0, last.ended - last.started)
