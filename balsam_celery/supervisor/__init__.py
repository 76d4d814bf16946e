"""The processes of a site on the login node: starting, watching, stopping, telling.

    up(site, progress)      start what is missing; return when all answer
    down(site, progress)    stop everything, allocations of the local scheduler too
    status(site)            what runs and what waits, as a :class:`SiteStatus`

``up`` starts one daemon (:mod:`balsam_celery.supervisor.daemon`), which starts the other processes
(:mod:`balsam_celery.supervisor.children`) and starts again those that end. Every process is known
by a pid file with its start time and the machine's boot, and by a mark in its environment, so that
``down`` and the next ``up`` find them also after a kill -9 of the daemon.

The names load on first use, so that the daemon stays small.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balsam_celery.supervisor.reporting import ProcessStatus, SiteStatus, status
    from balsam_celery.supervisor.starting import up
    from balsam_celery.supervisor.stopping import down

_WHERE = {
    "up": "starting",
    "down": "stopping",
    "status": "reporting",
    "SiteStatus": "reporting",
    "ProcessStatus": "reporting",
}

__all__ = ["ProcessStatus", "SiteStatus", "down", "status", "up"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
