"""States of a task and the only moves between them.

The table is DESIGN section 4. Nothing in the package changes a state except through
:data:`TRANSITIONS`, enforced by the guarded update in ``store.transitions``.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """State of a task, in Balsam's words."""

    CREATED = "CREATED"
    AWAITING_PARENTS = "AWAITING_PARENTS"
    READY = "READY"
    STAGED_IN = "STAGED_IN"
    PREPROCESSED = "PREPROCESSED"
    DISPATCHED = "DISPATCHED"
    RUNNING = "RUNNING"
    RUN_DONE = "RUN_DONE"
    RUN_ERROR = "RUN_ERROR"
    RUN_TIMEOUT = "RUN_TIMEOUT"
    RESTART_READY = "RESTART_READY"
    POSTPROCESSED = "POSTPROCESSED"
    JOB_FINISHED = "JOB_FINISHED"
    FAILED = "FAILED"
    USER_KILLED = "USER_KILLED"


FINAL = frozenset({State.JOB_FINISHED, State.FAILED, State.USER_KILLED})
#: A pilot may hold a message or a process of the task.
ON_PILOT = frozenset({State.DISPATCHED, State.RUNNING})
#: Waiting for slots; the partial indexes of ``store.schema`` name these two literally.
PLACEABLE = frozenset({State.PREPROCESSED, State.RESTART_READY})

_S = State
TRANSITIONS: dict[State, frozenset[State]] = {
    _S.CREATED: frozenset({_S.AWAITING_PARENTS, _S.READY}),
    _S.AWAITING_PARENTS: frozenset({_S.READY, _S.FAILED}),
    # a task without staging or hooks passes from READY to PREPROCESSED in one step
    _S.READY: frozenset({_S.STAGED_IN, _S.PREPROCESSED, _S.FAILED}),
    _S.STAGED_IN: frozenset({_S.PREPROCESSED, _S.FAILED}),
    _S.PREPROCESSED: frozenset({_S.DISPATCHED, _S.FAILED}),
    _S.RESTART_READY: frozenset({_S.DISPATCHED, _S.FAILED}),
    _S.DISPATCHED: frozenset({_S.RUNNING, _S.RUN_ERROR, _S.RESTART_READY}),
    _S.RUNNING: frozenset({_S.RUN_DONE, _S.RUN_ERROR, _S.RUN_TIMEOUT}),
    _S.RUN_DONE: frozenset({_S.POSTPROCESSED, _S.FAILED}),
    _S.RUN_ERROR: frozenset({_S.RESTART_READY, _S.POSTPROCESSED, _S.FAILED}),
    _S.RUN_TIMEOUT: frozenset({_S.RESTART_READY, _S.POSTPROCESSED, _S.FAILED}),
    _S.POSTPROCESSED: frozenset({_S.JOB_FINISHED, _S.FAILED}),
    _S.JOB_FINISHED: frozenset(),
    # a child that failed because of a parent goes back to waiting when that parent is retried
    _S.FAILED: frozenset({_S.RESTART_READY, _S.AWAITING_PARENTS}),
    _S.USER_KILLED: frozenset({_S.RESTART_READY, _S.AWAITING_PARENTS}),
}
TRANSITIONS = {
    state: (targets if state in FINAL else targets | {State.USER_KILLED})
    for state, targets in TRANSITIONS.items()
}

_CELERY: dict[State, str] = {
    _S.RUNNING: "STARTED",
    _S.RUN_DONE: "STARTED",
    _S.POSTPROCESSED: "STARTED",
    _S.RUN_ERROR: "RETRY",
    _S.RUN_TIMEOUT: "RETRY",
    _S.RESTART_READY: "RETRY",
    _S.JOB_FINISHED: "SUCCESS",
    _S.FAILED: "FAILURE",
    _S.USER_KILLED: "REVOKED",
}


def is_legal(source: State, target: State) -> bool:
    """Tell whether the table allows ``source`` → ``target``."""
    return target in TRANSITIONS[source]


def celery_state(state: State) -> str:
    """Celery's name for a task in ``state`` (PENDING up to DISPATCHED)."""
    return _CELERY.get(state, "PENDING")
