"""The JSON value that ``AsyncResult.get()`` returns for a task, or that its error carries."""

from __future__ import annotations

from typing import Any, Protocol

from balsam_celery.errors import TaskFailed, TaskKilled, TaskTimeout
from balsam_celery.states import FINAL, State, celery_state


class TaskFacts(Protocol):
    """The columns of a task row that an outcome is made of."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def work_dir(self) -> str | None: ...
    @property
    def reason(self) -> str: ...
    @property
    def created(self) -> float: ...


class AttemptFacts(Protocol):
    """The columns of an attempt row that an outcome is made of."""

    @property
    def outcome(self) -> str | None: ...
    @property
    def exit_code(self) -> int | None: ...
    @property
    def signal(self) -> int | None: ...
    @property
    def work_dir(self) -> str | None: ...
    @property
    def stdout_tail(self) -> str | None: ...
    @property
    def stderr_tail(self) -> str | None: ...
    @property
    def started(self) -> float | None: ...
    @property
    def ended(self) -> float | None: ...
    @property
    def reason(self) -> str: ...


class ResultFacts(Protocol):
    """The columns of a task row that its Celery result is made of."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def result(self) -> Any: ...


def outcome(
    task: TaskFacts,
    attempt: AttemptFacts | None,
    *,
    state: str | None = None,
    reason: str | None = None,
) -> dict[str, Any]:
    """The outcome of ``task``, whose latest attempt is ``attempt`` (``None`` if it never ran).

    Args:
        task: its row.
        attempt: the row of its latest attempt.
        state: the state it is about to enter, instead of the row's.
        reason: why, instead of the row's.

    Returns:
        A dict of JSON values with the keys ``task_id``, ``name``, ``state``, ``outcome`` (how the
        attempt ended, as in ``wire.Outcome``), ``exit_code``, ``signal``, ``work_dir``,
        ``output_tail``, ``error_tail``, ``reason``, ``attempts`` (their number), ``created``,
        ``started``, ``ended`` (seconds since the epoch) and ``seconds`` (between the two).
    """
    started = attempt.started if attempt else None
    ended = attempt.ended if attempt else None
    return {
        "task_id": task.id,
        "name": task.name,
        "state": str(state or task.state),
        "outcome": attempt.outcome if attempt else None,
        "exit_code": attempt.exit_code if attempt else None,
        "signal": attempt.signal if attempt else None,
        "work_dir": attempt.work_dir if attempt else task.work_dir,
        "output_tail": (attempt.stdout_tail or "") if attempt else "",
        "error_tail": (attempt.stderr_tail or "") if attempt else "",
        "reason": task.reason if reason is None else reason,
        "attempts": task.attempt,
        "created": task.created,
        "started": started,
        "ended": ended,
        "seconds": ended - started if started is not None and ended is not None else None,
    }


def celery_result(task: ResultFacts) -> tuple[str, Any]:
    """Celery's state of ``task`` and its result.

    Returns:
        ``(state, result)``. For SUCCESS the JSON value; for FAILURE and REVOKED of a program, or
        of a step that never ran, an exception of the :class:`TaskFailed` family; for a step that
        raised, the dict ``{"exc_type", "exc_message", "exc_module"}`` (plus ``"traceback"``)
        that Celery's ``Backend.exception_to_python`` takes; ``None`` while not final.
    """
    state = State(task.state)
    word = celery_state(state)
    if state not in FINAL:
        return word, None
    if state is State.JOB_FINISHED:
        return word, task.result
    facts = task.result if isinstance(task.result, dict) else {}
    if state is State.USER_KILLED:
        return word, TaskKilled(f"task {task.name} was killed: {task.reason}", facts)
    if "exc_type" in facts:
        return word, facts
    cls = TaskTimeout if facts.get("outcome") == "timeout" else TaskFailed
    return word, cls(f"task {task.name} failed: {task.reason}", facts)
