"""Reports of steps' ends: workers on the login node → the service's inbox."""

from __future__ import annotations

import time
from typing import Any

from celery import Celery

from balsam_celery.tasks.connect import push, until_done
from balsam_celery.wire import StepEnded


def report_end(
    app: Celery[Any], id: str, attempt: int, state: str, result: Any, traceback: str | None
) -> None:
    """Report a step's end, as often as it takes: nobody else knows of it.

    Args:
        app: the worker's application.
        id: the task.
        attempt: number of the attempt.
        state: Celery's: SUCCESS, FAILURE or REVOKED.
        result: the JSON value, or the exception as Celery's backend encodes it.
        traceback: text.
    """
    ended = StepEnded(
        id=id,
        attempt=attempt,
        state=state,
        result=result,
        traceback=None if traceback is None else str(traceback),
        time=time.time(),
    )
    until_done(f"the end of step {id}", lambda: push(app, ended))
