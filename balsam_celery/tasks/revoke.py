"""Control commands of our workers on the login node: kills go through SQL (R8).

Stock ``revoke`` makes every worker that hears it store REVOKED, whether it holds the task or not,
and refuse the task's id for hours, a later retry included. So ``revoke`` and ``terminate``, by
whomever they are sent (``AsyncResult.revoke``, ``celery control``, Flower), are forwarded to the
service. For a task that has no row the service sends ``revoke_ordinary``, which is Celery's own.

Celery knows requests by id, and forgets a running one when a copy of its message, or the message
that it was retried from, is done. Then stock ``query_task`` does not tell of it, so that it would
be taken for lost, and stock ``revoke`` cannot end it: here both look among what really runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from celery.utils.functional import maybe_list
from celery.worker import control
from celery.worker import state as worker_state

from balsam_celery.tasks.base import attempt_of
from balsam_celery.tasks.connect import push
from balsam_celery.tasks.steps import remember_revoked
from balsam_celery.wire import KillAsked


def _forward(state: Any, task_id: Any, terminate: bool, command: str) -> dict[str, Any]:
    ids = tuple(str(id) for id in maybe_list(task_id) or ())
    push(state.app, KillAsked(ids=ids, terminate=terminate, who=f"celery {command}"))
    return {"ok": f"the service was asked to {command} {', '.join(ids)}"}


def revoke(
    state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **_: Any
) -> dict[str, Any]:
    """Kill tasks by id; those that run only with terminate."""
    return _forward(state, task_id, bool(terminate), "terminate" if terminate else "revoke")


def terminate(state: Any, signal: Any, task_id: Any, **_: Any) -> dict[str, Any]:
    """Kill tasks by id, also those that run."""
    return _forward(state, task_id, True, "terminate")


def revoke_ordinary(
    state: Any,
    task_id: Any,
    terminate: bool = False,
    signal: Any = None,
    attempts: dict[str, int] | None = None,
    **_: Any,
) -> Any:
    """Celery's own revoke, for tasks of its own and for attempts of steps."""
    ids = {str(id) for id in maybe_list(task_id) or ()}
    requests = _held(ids)
    worker_state.requests.update(requests)
    held = {id: attempt_of(request._context) for id, request in requests.items()}
    known = {id: attempt for id, attempt in held.items() if attempt is not None}
    for id, attempt in {**known, **(attempts or {})}.items():
        remember_revoked(id, attempt)
    return _stock_revoke(state, list(ids), terminate=terminate, signal=signal)


def query_task(state: Any, ids: Any, **_: Any) -> Any:
    """As Celery's own, of all that this worker has."""
    held = _held({str(id) for id in maybe_list(ids) or ()})
    return {id: (_state_of(request), request.info()) for id, request in held.items()}


def _held(ids: Collection[str]) -> dict[str, Any]:
    """Requests of those among ``ids`` that this worker has; of copies the one that runs."""
    found: dict[str, Any] = {}
    for kind in ("scheduled_requests", "reserved_requests", "active_requests"):
        requests = _listed(vars(worker_state)[kind])
        found |= {request.id: request for request in requests if request.id in ids}
    return found


def _listed(requests: Iterable[Any]) -> list[Any]:
    while True:
        try:
            return list(requests)
        except RuntimeError:
            continue  # another thread has put one in


_stock_revoke: Any = vars(control)["revoke"]  # missing in the stubs, both
_state_of: Any = vars(control)["_state_of_task"]


def install() -> None:
    """Put the commands in the place of Celery's, in this process."""
    control.control_command(name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")(
        revoke
    )
    control.control_command(
        name="terminate",
        args=[("signal", str)],
        signature="<signal> [id1 [id2 [... [idN]]]]",
        variadic="task_id",
    )(terminate)
    control.inspect_command(name="query_task", variadic="ids", signature="[id1 [id2 [... [idN]]]]")(
        query_task
    )
    control.control_command(
        name="revoke_ordinary", variadic="task_id", signature="[id1 [id2 [... [idN]]]]"
    )(revoke_ordinary)
