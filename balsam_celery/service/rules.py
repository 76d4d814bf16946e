"""What the end of an attempt means for its task.  Pure: the table of DESIGN section 4 in use."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from balsam_celery.states import State
from balsam_celery.wire import Ended

#: Ends that are nobody's fault: they never count against ``max_retries``.
_TAKEN_BACK = frozenset({"killed", "fenced", "lost", "drained"})


@dataclass(frozen=True, slots=True)
class Policy:
    """What a task says about failures.

    Attributes:
        failures: attempts so far that count.
        max_retries: how many more attempts than one it may have.
        retry_on: which failures are tried again: of ``"error"`` (an exit code but 0),
            ``"signal"``, ``"timeout"``, ``"cannot-start"``; ``None``: all.
        hooks: its hooks by step.
        kill_asked: a user wants it killed.
    """

    failures: int
    max_retries: int
    retry_on: Sequence[str] | None
    hooks: dict[str, Any]
    kill_asked: bool


@dataclass(frozen=True, slots=True)
class Path:
    """The states a task passes, in order, and why.

    Attributes:
        states: the targets; the last one may be a state that waits for a hook.
        counts: the attempt counts as a failure.
    """

    states: tuple[State, ...]
    reason: str
    counts: bool = False


def path(state: State, policy: Policy, ended: Ended) -> Path:
    """Where the task goes whose attempt has ended.

    Args:
        state: DISPATCHED or RUNNING.
        policy: what the task says.
        ended: how the attempt ended.
    """
    reason = describe(ended)
    start = (State.RUNNING,) if state is State.DISPATCHED else ()
    if ended.outcome == "exit" and ended.exit_code == 0:
        return Path((*start, State.RUN_DONE, *after_success(policy)), "")
    if policy.kill_asked:
        return Path((State.USER_KILLED,), reason)
    if ended.outcome in _TAKEN_BACK:
        if state is State.DISPATCHED and ended.started is None:
            return Path((State.RESTART_READY,), reason)
        return Path((*start, State.RUN_TIMEOUT, State.RESTART_READY), reason)
    if ended.outcome == "cannot-start":
        start = ()
    failed = State.RUN_TIMEOUT if ended.outcome == "timeout" else State.RUN_ERROR
    return Path((*start, failed, *after_failure(policy, ended.outcome)), reason, counts=True)


def after_success(policy: Policy) -> tuple[State, ...]:
    """From RUN_DONE on; empty when a hook must run first."""
    if policy.hooks.get("postprocess") or policy.hooks.get("stage_out"):
        return (State.USER_KILLED,) if policy.kill_asked else ()
    return (State.POSTPROCESSED, State.JOB_FINISHED)


def after_failure(policy: Policy, outcome: str) -> tuple[State, ...]:
    """From RUN_ERROR or RUN_TIMEOUT on; empty when the handler must say."""
    kind = "error" if outcome == "exit" else outcome
    permitted = policy.retry_on is None or kind in policy.retry_on
    if policy.failures < policy.max_retries and permitted:
        return (State.RESTART_READY,)
    return () if policy.hooks.get("handler") else (State.FAILED,)


def describe(ended: Ended) -> str:
    """One line: how the attempt ended."""
    if ended.reason:
        return ended.reason
    if ended.outcome == "exit":
        return f"exit code {ended.exit_code}"
    if ended.outcome == "signal" and ended.signal is not None:
        return f"signal {ended.signal} ({_signal_name(ended.signal)})"
    return ended.outcome


def _signal_name(number: int) -> str:
    known = {s.value: s.name for s in signal.Signals}
    return known.get(number, "unknown")
