"""Balsam on Celery: programs of any size, run inside a supercomputer's allocations.

The public names load on first use (PEP 562), so that a pilot on a compute node, which imports
``balsam_celery.pilot``, loads neither SQLAlchemy nor the rest of the login node's side (R2).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balsam_celery import tasks
    from balsam_celery.celeryapp import app
    from balsam_celery.errors import (
        BalsamError,
        InvalidInput,
        NotFound,
        SiteError,
        TaskFailed,
        TaskKilled,
        TaskTimeout,
    )
    from balsam_celery.tasks.program import Program, program
    from balsam_celery.tasks.submit import RedisDown, submit_many
    from balsam_celery.tasks.waiting import Progress, wait

_WHERE = {
    "app": "celeryapp",
    "BalsamError": "errors",
    "InvalidInput": "errors",
    "NotFound": "errors",
    "SiteError": "errors",
    "TaskFailed": "errors",
    "TaskKilled": "errors",
    "TaskTimeout": "errors",
    "Program": "tasks.program",
    "program": "tasks.program",
    "RedisDown": "tasks.submit",
    "submit_many": "tasks.submit",
    "Progress": "tasks.waiting",
    "wait": "tasks.waiting",
}

__all__ = [
    "BalsamError",
    "InvalidInput",
    "NotFound",
    "Program",
    "Progress",
    "RedisDown",
    "SiteError",
    "TaskFailed",
    "TaskKilled",
    "TaskTimeout",
    "app",
    "program",
    "submit_many",
    "tasks",
    "wait",
]


def __getattr__(name: str) -> Any:
    if name == "tasks":
        return importlib.import_module(f"{__name__}.tasks")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
