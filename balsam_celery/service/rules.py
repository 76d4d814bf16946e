"""What the end of an attempt means for its task.  Pure: the table of DESIGN section 4 in use."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from balsam_celery.retrying import Failure, forbids, pause
from balsam_celery.states import State
from balsam_celery.wire import Ended

#: Ends that are nobody's fault: they never count against ``max_retries``.
_TAKEN_BACK = frozenset({"killed", "fenced", "lost", "drained", "cut", "unfit"})
#: Those of them that cut a program short which was not done, or a launcher before its ranks ran.
_CUT = frozenset({"drained", "lost", "cut", "unfit"})


@dataclass(frozen=True, slots=True)
class Policy:
    """What a task says about failures.

    Attributes:
        failures: attempts so far that count.
        max_retries: how many more attempts than one it may have.
        retry_on: which failures are tried again (:mod:`balsam_celery.retrying`); ``None``: all.
        hooks: its hooks by step.
        kill_asked: a user wants it killed.
        delay, max_delay: seconds before the first retry, and before any at the most.
        cuts: attempts so far that were cut short; of a restartable task, in a row.
        max_cuts: with so many it is given up; ``None``: never.
        cuts_setting: the setting that says so.
    """

    failures: int
    max_retries: int
    retry_on: Sequence[str] | None
    hooks: dict[str, Any]
    kill_asked: bool
    delay: float = 0.0
    max_delay: float = 0.0
    cuts: int = 0
    max_cuts: int | None = None
    cuts_setting: str = "[retry] max_cuts"


@dataclass(frozen=True, slots=True)
class Path:
    """The states a task passes, in order, and why.

    Attributes:
        states: the targets; the last one may be a state that waits for a hook.
        counts: the attempt counts as a failure.
        pause: seconds before the next attempt.
    """

    states: tuple[State, ...]
    reason: str
    counts: bool = False
    pause: float = 0.0


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
        # what could not be started may not be so yet: the disk is full, the batch system away
        unfit = ended.outcome == "unfit"
        wait = pause(policy.delay, policy.max_delay, policy.cuts + 1) if unfit else 0.0
        if state is State.DISPATCHED and ended.started is None:
            return Path((State.RESTART_READY,), reason, pause=wait)
        if is_cut(ended) and is_last_cut(policy):
            return Path((*start, State.RUN_TIMEOUT, State.FAILED), given_up(policy, reason))
        return Path((*start, State.RUN_TIMEOUT, State.RESTART_READY), reason, pause=wait)
    if ended.outcome == "cannot-start":
        start = ()
    failed = State.RUN_TIMEOUT if ended.outcome == "timeout" else State.RUN_ERROR
    after = after_failure(policy, failure_of(ended.outcome, ended.exit_code, ended.signal, reason))
    again = after == (State.RESTART_READY,)
    wait = pause(policy.delay, policy.max_delay, policy.failures + 1) if again else 0.0
    return Path((*start, failed, *after), reason, counts=True, pause=wait)


def is_cut(ended: Ended) -> bool:
    """Its program was cut short before it was done, without any fault of its own."""
    return ended.outcome in _CUT and ended.started is not None


def is_last_cut(policy: Policy) -> bool:
    """One more cut is one too many."""
    return policy.max_cuts is not None and policy.cuts + 1 >= policy.max_cuts


def given_up(policy: Policy, reason: str) -> str:
    """Why a task is given up that was cut short too often, for the last time by ``reason``."""
    times = "once" if policy.cuts == 0 else f"{policy.cuts + 1} times"
    return (
        f"cut short {times} before it was done, and {policy.cuts_setting} in site.toml is"
        f" {policy.max_cuts}; the last time: {reason}"
    )


def failure_of(
    outcome: str, exit_code: int | None, signal_number: int | None, reason: str
) -> Failure:
    """What ``retry_on`` is asked about the end of an attempt."""
    return Failure("error" if outcome == "exit" else outcome, exit_code, signal_number, reason)


def after_success(policy: Policy) -> tuple[State, ...]:
    """From RUN_DONE on; empty when a hook must run first."""
    if policy.hooks.get("postprocess") or policy.hooks.get("stage_out"):
        return (State.USER_KILLED,) if policy.kill_asked else ()
    return (State.POSTPROCESSED, State.JOB_FINISHED)


def after_failure(policy: Policy, failure: Failure) -> tuple[State, ...]:
    """From RUN_ERROR or RUN_TIMEOUT on; empty when the handler must say."""
    if policy.failures < policy.max_retries and not forbids(policy.retry_on, failure):
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
