"""Waiting for tasks by looking into SQL: it needs neither Redis nor a Celery result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

from celery import Celery

from balsam_celery.celeryapp import app as site_app
from balsam_celery.durations import format_duration
from balsam_celery.errors import InvalidInput
from balsam_celery.states import FINAL, State
from balsam_celery.store import queries
from balsam_celery.store.queries import TaskFilter
from balsam_celery.tasks.connect import store_of
from balsam_celery.tasks.query import Criteria, Selection, make_filter, select_ids

#: Seconds between two looks: short at first, for tasks of a moment.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
#: So many times as long as a look took: of thousands of tasks it takes milliseconds, and while they
#: end, their number changes from look to look.
_REST = 5


@dataclass(frozen=True)
class Progress:
    """How far the tasks are.

    Attributes:
        states: how many are in each state; states without any are left out.
    """

    states: dict[State, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.states.values())

    @property
    def finished(self) -> int:
        """JOB_FINISHED."""
        return self.states.get(State.JOB_FINISHED, 0)

    @property
    def unsuccessful(self) -> int:
        """FAILED or USER_KILLED."""
        return self.states.get(State.FAILED, 0) + self.states.get(State.USER_KILLED, 0)

    @property
    def running(self) -> int:
        """RUNNING."""
        return self.states.get(State.RUNNING, 0)

    @property
    def done(self) -> bool:
        """Every one is final."""
        return all(state in FINAL for state in self.states)

    @property
    def successful(self) -> bool:
        """Every one is JOB_FINISHED."""
        return self.finished == self.total


def wait(
    selection: Selection | None = None,
    timeout: float | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    *,
    app: Celery[Any] = site_app,
    **criteria: Unpack[Criteria],
) -> Progress:
    """Wait until tasks are final, whether they succeed or not.

    Args:
        selection: results, ids or rows; or leave it out and give ``criteria``.
        timeout: seconds; ``None``: as long as it takes.
        on_progress: called with the first counts and whenever they change.
        app: whose site.
        criteria: as for ``tasks.filter``; tasks that fit when the call begins.

    Returns:
        The last counts.

    Raises:
        TimeoutError: not all were final in time; they go on.
        NotFound: one of them does not exist.
        InvalidInput: neither or both of ``selection`` and ``criteria``.
    """
    if (selection is None) == (not criteria):
        raise InvalidInput("wait for what? give tasks, or criteria such as workflow='water'")
    store = store_of(app)
    if selection is not None:
        chosen = select_ids(selection, app=app)
    else:
        with store.read() as conn:
            chosen = queries.select_ids(conn, make_filter(criteria))
    wanted = TaskFilter(ids=tuple(chosen))
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = _FIRST_PAUSE
    last: Progress | None = None
    while True:
        begun = time.monotonic()
        with store.read() as conn:
            progress = Progress(queries.count_tasks(conn, wanted))
        took = time.monotonic() - begun
        if progress != last:
            if on_progress is not None:
                on_progress(progress)
            last, pause = progress, _FIRST_PAUSE
        if progress.done:
            return progress
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                ended = progress.finished + progress.unsuccessful
                raise TimeoutError(
                    f"{progress.total - ended} of {progress.total} tasks are not final after"
                    f" {format_duration(timeout or 0)}: they go on"
                )
        rest = min(max(pause, _REST * took), _LONGEST_PAUSE)
        time.sleep(rest if deadline is None else min(rest, left))
        pause = min(pause * 1.5, _LONGEST_PAUSE)
