"""Steps: ordinary Celery tasks of a canvas, run by the tasks worker, tracked as rows."""

from __future__ import annotations

from typing import Any

from balsam_celery.service.cases import Batch, Case
from balsam_celery.service.ended import policy_of
from balsam_celery.service.outcome import outcome
from balsam_celery.service.rules import after_failure, after_success, failure_of, is_cut, path
from balsam_celery.states import ON_PILOT, State
from balsam_celery.store.rows import EffectKind
from balsam_celery.wire import Ended, StepEnded

#: Characters of a traceback kept in the attempt's row.
_TAIL = 4096


def dispatch(batch: Batch, case: Case, message: str = "") -> None:
    """Send a step that is READY or RESTART_READY: a new attempt and the effect ``send``.

    Args:
        batch: the transaction.
        case: a task of kind ``celery`` whose time has come.
        message: for the event.
    """
    number = case.attempt + 1
    if case.state is State.READY:
        batch.go(case, State.PREPROCESSED)
    batch.go(case, State.DISPATCHED, message=message, attempt=number)
    batch.new_attempt(task=case.row.id, number=number, nodes=[], argv=[], reason="")
    batch.effect(case.row.id, EffectKind.SEND, {"attempt": number})


def ended(batch: Batch, one: StepEnded) -> None:
    """Write the end of a step's attempt, as its worker told it."""
    reason = _reason(one)
    batch.attempt_ended(
        one.id,
        one.attempt,
        ended=one.time,
        outcome=one.state,
        stderr_tail=(one.traceback or "")[-_TAIL:],
        reason=reason,
    )
    case = batch.cases.get(one.id)
    if case is None or case.attempt != one.attempt or case.state not in ON_PILOT:
        return
    policy = policy_of(case, batch.retry)
    if one.state == "SUCCESS":
        _ran(batch, case)
        states = (State.RUN_DONE, *after_success(policy))
        batch.go(case, *states, result=one.result)
    elif one.state == "REVOKED" or policy.kill_asked:
        _kill(batch, case, reason)
    elif one.state == "FAILURE":
        _ran(batch, case)
        further = after_failure(policy, failure_of("exit", None, None, reason))
        values: dict[str, Any] = {"failures": case.failures + 1}
        if further[-1:] == (State.FAILED,):
            values["result"] = {**_encoded(one), "traceback": one.traceback}
        batch.go(case, State.RUN_ERROR, *further, message=reason, **values)
        if case.state is State.RESTART_READY:
            dispatch(batch, case)


def lost(batch: Batch, id: str, attempt: int, reason: str) -> None:
    """No worker knows an attempt of a step any more: try it again, but not for ever.

    It counts as no failure; one that had begun was cut short, as a program is.
    """
    batch.load([id])
    case = batch.cases.get(id)
    if case is None or case.attempt != attempt or case.state not in ON_PILOT:
        return
    began = batch.now if case.state is State.RUNNING else None
    end = Ended(id, attempt, "lost", reason, batch.now, started=began)
    batch.attempt_ended(id, attempt, ended=batch.now, outcome="lost", reason=reason)
    way = path(case.state, policy_of(case, batch.retry), end)
    if way.states[-1] is State.USER_KILLED:
        _kill(batch, case, reason)
        return
    values: dict[str, Any] = {"cuts": case.row.cuts + is_cut(end)}
    if way.states[-1] is State.FAILED:
        values["result"] = outcome(case.row, None, state=State.FAILED, reason=way.reason)
    batch.go(case, *way.states, message=way.reason, **values)
    if case.state is State.RESTART_READY:
        dispatch(batch, case, reason)


def cannot_send(batch: Batch, id: str, attempt: int, reason: str) -> None:
    """The message of a step's attempt can never be sent: the task is FAILED."""
    batch.load([id])
    case = batch.cases.get(id)
    if case is None or case.attempt != attempt or case.state is not State.DISPATCHED:
        return
    batch.attempt_ended(id, attempt, ended=batch.now, outcome="cannot-start", reason=reason)
    if case.row.kill_requested is not None:
        _kill(batch, case, reason)
        return
    result = outcome(case.row, None, state=State.FAILED, reason=reason)
    batch.go(case, State.RUN_ERROR, State.FAILED, message=reason, result=result)


def _ran(batch: Batch, case: Case) -> None:
    if case.state is State.DISPATCHED:
        batch.go(case, State.RUNNING)


def _kill(batch: Batch, case: Case, reason: str) -> None:
    why = case.row.kill_reason or reason
    result = outcome(case.row, None, state=State.USER_KILLED, reason=why)
    batch.go(case, State.USER_KILLED, message=why, result=result)


def _encoded(one: StepEnded) -> dict[str, Any]:
    """The exception as Celery's backend encodes it."""
    if isinstance(one.result, dict) and "exc_type" in one.result:
        return dict(one.result)
    return {"exc_type": "Exception", "exc_message": [str(one.result)], "exc_module": "builtins"}


def _reason(one: StepEnded) -> str:
    if one.state == "SUCCESS":
        return ""
    if one.state == "REVOKED":
        return "revoked"
    encoded = _encoded(one)
    message = encoded.get("exc_message")
    if isinstance(message, (list, tuple)):
        message = ", ".join(str(part) for part in message)
    return f"{encoded['exc_type']}: {message}".splitlines()[0][:500]
