"""Short ways for tests of the store to make tasks and look at them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from balsam_celery.states import State
from balsam_celery.store.engine import Store
from balsam_celery.store.insert import NewTask, insert_tasks
from balsam_celery.store.queries import events, get_task
from balsam_celery.store.rows import TaskRow
from balsam_celery.store.transitions import Move, move

NOW = 1000.0
T = TypeVar("T")

#: From PREPROCESSED to the end of a success.
SUCCESS = (
    State.PREPROCESSED,
    State.DISPATCHED,
    State.RUNNING,
    State.RUN_DONE,
    State.POSTPROCESSED,
    State.JOB_FINISHED,
)


def program(id: str, **values: Any) -> NewTask:
    """A serial program without parents, ready to be placed; ids get to six characters."""
    values.setdefault("argv", None if values.get("parents") else ["/bin/true"])
    values.setdefault("name", id)
    values.setdefault("wall_time", 60)
    return NewTask(id=id, command=["/bin/true"], literal=True, **values)


def add(store: Store, *tasks: NewTask, now: float = NOW) -> None:
    """Insert tasks in one transaction."""
    store.run(lambda conn: insert_tasks(conn, tasks, now=now, who="test"))


def walk(store: Store, id: str, path: Sequence[State], now: float = NOW, **values: Any) -> None:
    """Take a task along ``path``, which begins with its state; every move must be done."""
    moves = [
        Move(id, source, target, values=values if target is path[-1] else {})
        for source, target in itertools.pairwise(path)
    ]
    done = store.run(lambda conn: move(conn, moves, now=now, who="test"))
    assert done == set(range(len(moves)))


def task(store: Store, id: str) -> TaskRow:
    """The task's row."""
    with store.read() as conn:
        return get_task(conn, id)


def history(store: Store, id: str) -> list[State]:
    """States of a task in the order of its events; each event must begin where the last ended."""
    with store.read() as conn:
        rows = events(conn, id)
    assert [row.from_state for row in rows] == [None, *(row.to_state for row in rows[:-1])]
    return [row.to_state for row in rows]


def race(number: int, body: Callable[[int], T]) -> list[T]:
    """Results of ``body(0)`` … run at once in as many threads."""
    start = threading.Barrier(number)
    results: dict[int, T] = {}

    def run(index: int) -> None:
        start.wait()
        results[index] = body(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == number, "a thread raised"
    return [results[index] for index in range(number)]
