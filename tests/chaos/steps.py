"""The ordinary Celery tasks of a run, for its tasks worker: steps of canvases, and an errback."""

from __future__ import annotations

import time
from typing import Any

from celery import shared_task

from balsam_celery.tasks.base import attempt_of
from tests.chaos.program import Pen

#: Names by which the submitter calls them.
STEP, ERRBACK = "chaos.step", "chaos.errback"


def _pen(task: Any, directory: str) -> Pen:
    pen = Pen(directory, task.request.id, str(attempt_of(task.request)))
    pen.start("0")
    return pen


@shared_task(name=STEP, bind=True)
def step(
    self: Any, *given: Any, directory: str, kind: str, seconds: float, inputs: int
) -> dict[str, int]:
    """Note the run; raise if that is its kind, or if other results came than those before it."""
    pen = _pen(self, directory)
    time.sleep(seconds)
    results = given[0] if given and isinstance(given[0], list) else given
    if len(results) != inputs or not all(isinstance(one, dict) for one in results):
        pen.end(2)
        raise ValueError(f"given {given!r}, not the results of {inputs} tasks")
    if kind == "broken-step":
        pen.end(1)
        raise ValueError("on purpose")
    pen.end(0)
    return {"inputs": inputs}


@shared_task(name=ERRBACK, bind=True)
def errback(self: Any, failed: str, *, directory: str) -> None:
    """Note which task has failed."""
    pen = _pen(self, directory)
    pen.note("told", failed)
    pen.end(0)
