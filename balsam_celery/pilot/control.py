"""Remote control of a pilot's workers: what ``celery inspect`` and ``celery control`` do here.

Revoke and terminate go to the service (R8): no result is written and no id remembered. What would
change a worker behind the service's back is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from celery.worker.control import Panel

from balsam_celery.pilot.attempt import Attempt
from balsam_celery.pilot.desk import Desk

_REFUSED = (
    "autoscale",
    "pool_grow",
    "pool_restart",
    "pool_shrink",
    "rate_limit",
    "time_limit",
    "add_consumer",
    "cancel_consumer",
    "election",
)


def _desk(state: Any) -> Desk:
    desk: Desk = state.consumer.controller.desk
    return desk


def _infos(state: Any, attempts: Iterable[Attempt]) -> list[dict[str, Any]]:
    return [attempt.info(state.hostname) for attempt in attempts]


def _ids(given: Any) -> list[str]:
    return [given] if isinstance(given, str) else [str(one) for one in given or ()]


def active(state: Any, **_: Any) -> list[dict[str, Any]]:
    """Attempts that run here."""
    return _infos(state, state.consumer.pool.running())


def reserved(state: Any, **_: Any) -> list[dict[str, Any]]:
    """Attempts that wait here for their cores."""
    return _infos(state, state.consumer.pool.waiting())


def query_task(state: Any, ids: Any, **_: Any) -> dict[str, Any]:
    """Attempts of these tasks."""
    wanted = set(_ids(ids))
    pool = state.consumer.pool
    return {
        attempt.spec.id: (name, attempt.info(state.hostname))
        for name, attempts in (("reserved", pool.waiting()), ("active", pool.running()))
        for attempt in attempts
        if attempt.spec.id in wanted
    }


def revoke(state: Any, task_id: Any, terminate: bool = False, **_: Any) -> dict[str, str]:
    """Ask the service to kill tasks (without terminate: those that have not started)."""
    ids = _ids(task_id)
    _desk(state).ask_kill(ids, bool(terminate), "celery")
    return {"ok": f"forwarded to the service: {', '.join(ids)}"}


def terminate(state: Any, signal: Any, task_id: Any, **_: Any) -> dict[str, str]:
    """Ask the service to kill tasks; the signal is its own affair (TERM, grace, KILL)."""
    return revoke(state, task_id, terminate=True)


def revoke_by_stamped_headers(state: Any, headers: Any, **_: Any) -> dict[str, str]:
    """Refused."""
    return {"error": "tasks of programs have no stamps: give ids"}


def hello(state: Any, from_node: Any, **_: Any) -> dict[str, Any] | None:
    """Answer another worker's greeting without taking over the ids it has seen revoked."""
    if from_node == state.hostname:
        return None
    return {"revoked": [], "clock": state.app.clock.forward()}


def _refuse(name: str) -> Callable[..., dict[str, str]]:
    def command(state: Any, **_: Any) -> dict[str, str]:
        """Refused: placement decides what a pilot's worker does."""
        return {"error": f"{name}: placement decides what a pilot's worker does"}

    return command


def install() -> None:
    """Put these commands into Celery's table, which every worker of this process uses."""
    panel: Any = Panel  # its stubs know fewer arguments than it takes
    inspect, ids = {"type": "inspect"}, {"variadic": "ids", "signature": "[id1 [id2 [... [idN]]]]"}
    task_ids = {**ids, "variadic": "task_id"}
    signed = {
        "variadic": "task_id",
        "args": [("signal", str)],
        "signature": "<signal> [id1 [id2 [... [idN]]]]",
    }
    panel.register(name="active", alias="dump_active", **inspect)(active)
    panel.register(name="reserved", alias="dump_reserved", **inspect)(reserved)
    panel.register(name="query_task", **inspect, **ids)(query_task)
    panel.register(name="hello", visible=False, **inspect)(hello)
    panel.register(name="revoke", **task_ids)(revoke)
    panel.register(name="terminate", **signed)(terminate)
    panel.register(name="revoke_by_stamped_headers", variadic="headers")(revoke_by_stamped_headers)
    for name in _REFUSED:
        panel.register(name=name)(_refuse(name))
