"""Tasks of the site: reading and acting in bulk.  Names load on first use (PEP 562).

``tasks.filter(state="FAILED", workflow="water")`` → :class:`TaskPage`; ``tasks.get(id)``,
``tasks.attempts(id)``, ``tasks.events(id)``, ``tasks.explain(id)``, ``tasks.kill(…)``,
``tasks.retry(…)``, ``tasks.remove(…)``. Celery imports ``tasks.base`` in every process of the
site, so this module must not load SQLAlchemy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balsam_celery.tasks.query import (
        Answer,
        Attempt,
        Event,
        Task,
        TaskPage,
        attempts,
        children,
        count,
        events,
        explain,
        filter,
        get,
        ids,
        kill,
        parents,
        remove,
        retry,
    )

__all__ = [
    "Answer",
    "Attempt",
    "Event",
    "Task",
    "TaskPage",
    "attempts",
    "children",
    "count",
    "events",
    "explain",
    "filter",
    "get",
    "ids",
    "kill",
    "parents",
    "remove",
    "retry",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.query"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
