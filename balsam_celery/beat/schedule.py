"""What beat sends, and how often."""

from __future__ import annotations

from typing import Any

from balsam_celery import keys
from balsam_celery.settings import Settings

#: Seconds between two runs of ``balsam.housekeep``.
HOUSEKEEP_INTERVAL = 5


def schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """Celery's ``beat_schedule``: names of Celery tasks, intervals in seconds.

    A message that the service does not take in time expires, so that none pile up while it is
    away: the next one does the same.
    """
    intervals = {
        "balsam.pack": settings.packing.interval,
        "balsam.poll": settings.scheduler.poll_interval,
        "balsam.housekeep": HOUSEKEEP_INTERVAL,
    }
    return {
        task.removeprefix("balsam."): {
            "task": task,
            "schedule": interval,
            "options": {
                "queue": keys.SERVICE_QUEUE,
                "expires": max(10, 2 * interval),
                "ignore_result": True,
                # the next run is near: rather none than a beat that hangs
                "retry": False,
            },
        }
        for task, interval in intervals.items()
    }
