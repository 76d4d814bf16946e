"""Reading tasks and acting on them, typed and paged.

Where a selection is asked for, give ids (or the first six characters or more of one), Celery
results, :class:`Task` rows, or any mix of those in a list.
"""

from __future__ import annotations

import builtins
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack

from celery import Celery
from celery.result import AsyncResult, ResultSet

from balsam_celery.celeryapp import app as site_app
from balsam_celery.errors import InvalidInput
from balsam_celery.service import requests
from balsam_celery.service.explain import explain_task
from balsam_celery.service.explained import plain_task
from balsam_celery.service.requests import Answer
from balsam_celery.states import State
from balsam_celery.store import prune, queries
from balsam_celery.store.queries import Cursor, TaskFilter, cursor
from balsam_celery.store.rows import AttemptRow as Attempt
from balsam_celery.store.rows import EventRow as Event
from balsam_celery.store.rows import TaskRow as Task
from balsam_celery.tasks.connect import site_of, store_of
from balsam_celery.tasks.submit import user, wake

__all__ = [
    "Answer", "Attempt", "Event", "Selection", "Task", "TaskPage", "attempts", "children", "count",
    "events", "explain", "filter", "get", "ids", "kill", "make_filter", "parents", "remove",
    "retry", "select_ids",
]  # fmt: skip

Selection = Any
_PAGE = 500


class Criteria(TypedDict, total=False):
    """What tasks must fit; every criterion given must hold.  Times: seconds since the epoch."""

    state: str | State | Iterable[str | State]  # any of them
    name: str  # * stands for any text
    workflow: str
    tags: str | Iterable[str]  # all of them
    kind: str  # program | celery
    application: str
    created_after: float
    created_before: float
    finished_after: float
    finished_before: float


def make_filter(criteria: Criteria) -> TaskFilter:
    """The store's filter for ``criteria``.

    Raises:
        InvalidInput: an unknown criterion or state; names the nearest.
    """
    plain: dict[str, Any] = {key: value for key, value in criteria.items() if value is not None}
    for key in plain:
        if key not in Criteria.__annotations__:
            near = difflib.get_close_matches(key, Criteria.__annotations__, n=1, cutoff=0.0)[0]
            raise InvalidInput(f"unknown criterion {key!r}: did you mean {near!r}?")
    state = plain.pop("state", ())
    states = [state] if isinstance(state, str) else list(state)
    tags = plain.pop("tags", ())
    kind = plain.get("kind")
    if kind not in (None, "program", "celery"):
        raise InvalidInput(f"kind is {kind!r}: give 'program' or 'celery'")
    return TaskFilter(
        states=tuple(_state(value) for value in states),
        tags=(tags,) if isinstance(tags, str) else tuple(tags),
        **plain,
    )


def _state(value: str) -> State:
    try:
        return State(str(value).upper())
    except ValueError:
        near = difflib.get_close_matches(str(value).upper(), list(State), n=1, cutoff=0.0)[0]
        raise InvalidInput(f"unknown state {value!r}: did you mean {str(near)!r}?") from None


@dataclass(frozen=True)
class TaskPage:
    """Tasks that fit a filter; iterating reads them page by page, as many as there are.

    Attributes:
        filter: what they fit.
        limit: at most so many; ``None``: all.
        newest_first: by time of creation.
        after: where an earlier page ended.
        app: whose site.
    """

    filter: TaskFilter
    limit: int | None = None
    newest_first: bool = False
    after: Cursor | None = None
    app: Celery[Any] = field(default=site_app, repr=False, compare=False)

    def __iter__(self) -> Iterator[Task]:
        left, after = self.limit, self.after
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            with store_of(self.app).read() as conn:
                rows = queries.select_tasks(
                    conn, self.filter, limit=size, after=after, newest_first=self.newest_first
                )
            yield from rows
            if len(rows) < size:
                return
            after = cursor(rows[-1])
            left = None if left is None else left - len(rows)

    def count(self) -> dict[State, int]:
        """How many fit, by state; paging aside."""
        with store_of(self.app).read() as conn:
            return queries.count_tasks(conn, self.filter)


def filter(
    *,
    limit: int | None = None,
    newest_first: bool = False,
    after: Cursor | None = None,
    app: Celery[Any] = site_app,
    **criteria: Unpack[Criteria],
) -> TaskPage:
    """Tasks that fit ``criteria``, by time of creation.

    Raises:
        InvalidInput: an unknown criterion, state or kind.
    """
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise InvalidInput(f"limit is {limit!r}: give a whole number of 1 or more")
    return TaskPage(make_filter(criteria), limit, newest_first, after, app)


def count(*, app: Celery[Any] = site_app, **criteria: Unpack[Criteria]) -> dict[State, int]:
    """How many tasks fit ``criteria``, by state."""
    return TaskPage(make_filter(criteria), app=app).count()


def ids(*, app: Celery[Any] = site_app, **criteria: Unpack[Criteria]) -> list[str]:
    """Ids of all tasks that fit ``criteria``, oldest first."""
    with store_of(app).read() as conn:
        return queries.select_ids(conn, make_filter(criteria))


def get(id: str, *, app: Celery[Any] = site_app) -> Task:
    """The task of that id, or the only one whose id starts so.

    Raises:
        NotFound: there is none.
        InvalidInput: several ids start so.
    """
    with store_of(app).read() as conn:
        return queries.get_task(conn, _id(id))


def attempts(id: str, *, app: Celery[Any] = site_app) -> list[Attempt]:
    """Attempts of a task, oldest first.

    Raises:
        NotFound: no such task.
    """
    with store_of(app).read() as conn:
        return queries.attempts(conn, queries.get_task(conn, _id(id)).id)


def events(id: str, *, app: Celery[Any] = site_app) -> list[Event]:
    """Events of a task, oldest first.

    Raises:
        NotFound: no such task.
    """
    with store_of(app).read() as conn:
        return queries.events(conn, queries.get_task(conn, _id(id)).id)


def explain(id: str, *, app: Celery[Any] = site_app) -> dict[str, Any]:
    """Why a task is where it is: the JSON value of ``balsam explain`` (``docs/cli-json.md``).

    ``["text"]`` holds one or two sentences, ``["code"]`` a word for programs.

    Raises:
        NotFound: no such task.
    """
    return plain_task(*explain_task(store_of(app), site_of(app), _id(id)))


def parents(id: str, *, app: Celery[Any] = site_app) -> list[Task]:
    """Tasks that this one waits or waited for, in the order of their results.

    Raises:
        NotFound: no such task.
    """
    with store_of(app).read() as conn:
        return queries.parents(conn, queries.get_task(conn, _id(id)).id)


def children(id: str, *, app: Celery[Any] = site_app) -> list[Task]:
    """Tasks that wait or waited for this one.

    Raises:
        NotFound: no such task.
    """
    with store_of(app).read() as conn:
        return queries.children(conn, queries.get_task(conn, _id(id)).id)


def kill(
    selection: Selection,
    *,
    reason: str = "killed by the user",
    descendants: bool = True,
    app: Celery[Any] = site_app,
) -> Answer:
    """Kill tasks: at once where they run nowhere, else as soon as all their processes are gone.

    Args:
        selection: ids, results or rows.
        reason: one line, kept with the task.
        descendants: also kill what depends on them.
        app: whose site.

    Raises:
        NotFound: one of them does not exist.
    """
    answer = requests.request_kill(
        store_of(app), select_ids(selection, app=app), reason, who=user(), descendants=descendants
    )
    wake(app)
    return answer


def retry(selection: Selection, *, app: Celery[Any] = site_app) -> Answer:
    """Give FAILED and USER_KILLED tasks another go.

    Raises:
        NotFound: one of them does not exist.
    """
    answer = requests.retry(store_of(app), select_ids(selection, app=app), who=user())
    wake(app)
    return answer


def remove(selection: Selection, *, app: Celery[Any] = site_app) -> list[prune.Removed]:
    """Delete final tasks from the database; their directories stay.

    Raises:
        NotFound: one of them does not exist.
        InvalidInput: one of them, or one that waits for it, is not final, or an error callback of
            it is still to be called.
    """
    chosen = select_ids(selection, app=app)
    return store_of(app).run(lambda conn: prune.remove(conn, chosen))


def select_ids(selection: Selection, *, app: Celery[Any] = site_app) -> list[str]:
    """Whole ids of ``selection``, in order, without doubles.

    Raises:
        NotFound: one of them does not exist.
        InvalidInput: several ids start so, or something that names no task.
    """
    named = builtins.list(dict.fromkeys(_names(selection)))
    with store_of(app).read() as conn:
        found = queries.find_tasks(conn, named)
        return [id if id in found else queries.get_task(conn, id).id for id in named]


def _names(selection: Selection) -> Iterator[str]:
    if isinstance(selection, ResultSet):
        for result in selection.results or ():
            yield from _names(result)
    elif isinstance(selection, str | Task | AsyncResult):
        yield _id(selection)
    elif isinstance(selection, Iterable):
        for item in selection:
            yield from _names(item)
    else:
        raise InvalidInput(f"{selection!r} names no task: give an id, a result or a task")


def _id(named: str | Task | Any) -> str:
    id = named if isinstance(named, str) else getattr(named, "id", None)
    if not isinstance(id, str) or not id:
        raise InvalidInput(f"{named!r} names no task: give an id, a result or a task")
    return id
