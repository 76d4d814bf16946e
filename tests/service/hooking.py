"""What tests of staging and hooks share: tasks that wait, reports, and where messages go."""

from __future__ import annotations

import dataclasses
from typing import Any

from kombu.exceptions import OperationalError
from sqlalchemy import Connection

from balsam_celery.service import kill
from balsam_celery.service.cases import Batch
from balsam_celery.store.engine import Store
from balsam_celery.store.insert import NewTask
from balsam_celery.store.rows import TaskRow
from balsam_celery.wire import TransitionEnded
from tests.store.making import program


def hooked(id: str, **values: Any) -> NewTask:
    """A program with hooks."""
    return dataclasses.replace(program(id), **values)


def done(
    id: str, step: str, *, ok: bool = True, attempt: int = 0, reason: str = "",
    verdict: str | None = None,
) -> TransitionEnded:  # fmt: skip
    return TransitionEnded(id, attempt, step, ok, reason, verdict, 1001.0)


class Publisher:
    """Takes orders of hooks; of the next ones so many get no answer."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.deaf = 0

    def task(self, queue: str, name: str, args: list[dict[str, Any]], *, id: str) -> None:
        """Take the message, whether it answers or not."""
        self.taken += args
        if self.deaf:
            self.deaf -= 1
            raise OperationalError("timed out")


def doomed(store: Store) -> list[TaskRow]:
    with store.read() as conn:
        return kill.Kills().due(conn, store.clock()).between


def batch(store: Store, conn: Connection) -> Batch:
    return Batch(conn, store.clock(), "service")
