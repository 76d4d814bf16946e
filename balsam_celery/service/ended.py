"""The end of a program's attempt → moves, attempt row, result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from balsam_celery.runtimes import Run, shape_of
from balsam_celery.service.cases import Batch, Case
from balsam_celery.service.outcome import outcome
from balsam_celery.service.rules import Policy, is_cut, path
from balsam_celery.settings import RetrySettings
from balsam_celery.states import FINAL, ON_PILOT, State
from balsam_celery.wire import Ended


@dataclass(frozen=True, slots=True)
class _Attempt:
    """The attempt's row as it will be, so far as an outcome needs it."""

    outcome: str
    exit_code: int | None
    signal: int | None
    work_dir: str | None
    stdout_tail: str
    stderr_tail: str
    started: float | None
    ended: float
    reason: str


def policy_of(case: Case, retry: RetrySettings) -> Policy:
    """What the task says about failures, as the batch has it, and where it is silent the site."""
    row = case.row
    return Policy(
        failures=case.failures,
        max_retries=row.max_retries,
        retry_on=row.retry_on if row.retry_on is not None else retry.retry_on,
        hooks=row.hooks,
        kill_asked=row.kill_requested is not None,
        delay=row.retry_delay if row.retry_delay is not None else float(retry.delay),
        max_delay=float(retry.max_delay),
        cuts=row.cuts,
        max_cuts=retry.max_restarts if row.restartable else retry.max_cuts,
        cuts_setting="[retry] max_restarts" if row.restartable else "[retry] max_cuts",
    )


def program_ended(batch: Batch, ended: Ended) -> str | None:
    """Write the end of an attempt; its row is completed whatever becomes of the task.

    Returns:
        The pilot that held the attempt, ``None`` when the task went on without it long ago.
    """
    _complete(batch, ended)
    case = batch.cases.get(ended.id)
    if case is None or case.attempt != ended.attempt or case.state not in ON_PILOT:
        return None
    _learn(batch, case, ended)
    way = path(case.state, policy_of(case, batch.retry), ended)
    states, reason = way.states, way.reason
    if states[-1] is State.USER_KILLED:
        reason = case.row.kill_reason or reason
    if states[0] is State.RUNNING:
        # its start was told together with its end
        batch.go(case, State.RUNNING, time=ended.started)
        states = states[1:]
    values: dict[str, Any] = {"pilot": None, "shares": None, "reason": reason}
    if is_cut(ended):
        # the next attempt gets more time (``runtimes.after_cut``)
        values["ran"] = max(case.row.ran or 0.0, ended.ended - (ended.started or ended.ended))
        values["cuts"] = case.row.cuts + 1
    elif case.row.restartable:
        values["cuts"] = 0  # only those in a row count
    if way.counts:
        values["failures"] = case.failures + 1
    if way.pause:
        values["not_before"] = batch.now + way.pause
    if states[-1] in FINAL:
        facts = _Attempt(
            outcome=ended.outcome,
            exit_code=ended.exit_code,
            signal=ended.signal,
            work_dir=case.row.work_dir,
            stdout_tail=ended.stdout_tail,
            stderr_tail=ended.stderr_tail,
            started=ended.started,
            ended=ended.ended,
            reason=ended.reason,
        )
        values["result"] = outcome(case.row, facts, state=states[-1], reason=reason)
    batch.go(case, *states, message=reason, **values)
    return case.row.pilot


def _learn(batch: Batch, case: Case, ended: Ended) -> None:
    """Note how long the program ran, if it ended well; the caller sees each attempt once."""
    if ended.outcome == "exit" and ended.exit_code == 0 and ended.started is not None:
        row = case.row
        shape = shape_of(row.num_nodes, row.ranks_per_node, row.threads_per_rank, row.gpus_per_rank)
        batch.runs.append(Run(row.application, shape, ended.ended - ended.started))


def _complete(batch: Batch, ended: Ended) -> None:
    values: dict[str, Any] = {
        "ended": ended.ended,
        "outcome": ended.outcome,
        "exit_code": ended.exit_code,
        "signal": ended.signal,
        "user_time": ended.user_time,
        "system_time": ended.system_time,
        "max_memory": ended.max_memory,
        "stdout_tail": ended.stdout_tail,
        "stderr_tail": ended.stderr_tail,
        "reason": ended.reason,
    }
    # what was never known at the end keeps what was written at the start
    if ended.started is not None:
        values["started"] = ended.started
    if ended.argv:
        values["argv"] = list(ended.argv)
    if ended.environment_digest:
        values["environment_digest"] = ended.environment_digest
    batch.attempt_ended(ended.id, ended.attempt, **values)
