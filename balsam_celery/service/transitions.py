"""Staging and hooks: which step a task waits for, and what its end means."""

from __future__ import annotations

from sqlalchemy import update

from balsam_celery.service.cases import Batch, Case
from balsam_celery.service.ended import policy_of
from balsam_celery.service.outcome import outcome
from balsam_celery.service.release import fail
from balsam_celery.service.rules import given_up, is_last_cut
from balsam_celery.states import State
from balsam_celery.store import schema
from balsam_celery.store.queries import last_attempts
from balsam_celery.store.rows import TaskRow
from balsam_celery.wire import TransitionEnded

#: Seconds until a step is tried again for which there was no disk or no memory.
UNFIT_PAUSE = 30.0
#: States in which a task may wait for a step, with the steps, in order.
WAITING: dict[State, tuple[str, ...]] = {
    State.READY: ("stage_in", "preprocess"),
    State.STAGED_IN: ("preprocess",),
    State.RUN_DONE: ("postprocess", "stage_out"),
    State.POSTPROCESSED: ("stage_out",),
    State.RUN_ERROR: ("handler",),
    State.RUN_TIMEOUT: ("handler",),
}


def awaited(row: TaskRow) -> str | None:
    """The step that a task waits for, ``None`` when it waits for none."""
    return next((s for s in WAITING.get(row.state, ()) if row.hooks.get(s)), None)


def waits_since(row: TaskRow) -> float:
    """When the wait for a task's next step began, in seconds since the epoch.

    It tells this wait from an earlier one for the same step of the same attempt: a step may be put
    off, and a task that never ran is retried as attempt 0.
    """
    return max(row.changed, row.not_before)


def ended(batch: Batch, one: TransitionEnded) -> None:
    """Write the end of a step; a step that the task does not wait for changes nothing."""
    case = batch.cases.get(one.id)
    if case is None or case.attempt != one.attempt or case.row.state is not case.state:
        return
    if awaited(case.row) != one.step:
        return
    if case.row.kill_requested is not None:
        # whatever it did, no process of it lives any more
        end_killed(batch, case)
        return
    if one.unfit:
        _put_off(batch, case, one)
        return
    if not one.ok and one.step != "handler":
        fail(batch, case, one.reason or f"{one.step} failed")
        return
    _go_on(batch, case, one)


def _put_off(batch: Batch, case: Case, one: TransitionEnded) -> None:
    """Try a step again later: what was in its way is in the way of all others, too."""
    values: dict[str, object] = {"not_before": batch.now + UNFIT_PAUSE}
    if one.step != "handler":  # which is told why its program failed
        values["reason"] = one.reason
    batch.conn.execute(update(schema.task).where(schema.task.c.id == case.row.id).values(**values))


def cut(batch: Batch, id: str, attempt: int, step: str, reason: str, begun: float) -> str:
    """Count that a step which had begun was lost with its worker.

    Args:
        batch: has the task.
        id: the task.
        attempt: the attempt.
        step: the step.
        reason: why it was lost.
        begun: the time that the message carried which had begun; one of an earlier wait does not
            count.

    Returns:
        Why it must not begin again, if it must not.
    """
    case = batch.cases.get(id)
    if case is None or case.attempt != attempt or awaited(case.row) != step:
        return ""
    if begun < waits_since(case.row):
        return ""
    batch.conn.execute(
        update(schema.task).where(schema.task.c.id == id).values(cuts=case.row.cuts + 1)
    )
    policy = policy_of(case, batch.retry)
    return given_up(policy, reason) if is_last_cut(policy) else ""


def end_killed(batch: Batch, case: Case) -> None:
    """End a task that is to be killed, waits for a step, and of which nothing runs."""
    _finish(batch, case, State.USER_KILLED, case.row.kill_reason)


def _go_on(batch: Batch, case: Case, one: TransitionEnded) -> None:
    hooks = case.row.hooks
    if one.step == "stage_in":
        further = () if hooks.get("preprocess") else (State.PREPROCESSED,)
        batch.go(case, State.STAGED_IN, *further, reason="")
    elif one.step == "preprocess":
        batch.go(case, State.PREPROCESSED, reason="")
    elif one.step == "handler" and one.ok and one.verdict == "restart":
        batch.go(case, State.RESTART_READY, message=one.reason or "the handler says restart")
    elif one.step == "handler" and not (one.ok and one.verdict == "finish"):
        _finish(batch, case, State.FAILED, one.reason or case.row.reason or "the handler says fail")
    elif one.step != "stage_out" and hooks.get("stage_out"):
        batch.go(case, State.POSTPROCESSED, message=one.reason)
    else:
        if case.state is not State.POSTPROCESSED:
            batch.go(case, State.POSTPROCESSED, message=one.reason)
        _finish(batch, case, State.JOB_FINISHED, one.reason)


def _finish(batch: Batch, case: Case, state: State, reason: str) -> None:
    attempt = last_attempts(batch.conn, [case.row.id]).get(case.row.id)
    result = outcome(case.row, attempt, state=state, reason=reason)
    batch.go(case, state, message=reason, result=result)
