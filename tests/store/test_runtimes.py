"""Learned runtimes in the table: added up, read again, kept."""

from __future__ import annotations

import pytest

from balsam_celery.runtimes import MEMORY, Run
from balsam_celery.states import State
from balsam_celery.store import runtimes
from balsam_celery.store.engine import Store
from balsam_celery.store.prune import prune
from tests.store.making import add, program, race, walk


def learn(store: Store, *runs: Run) -> None:
    store.run(lambda conn: runtimes.add(conn, runs))


def test_runs_add_up(store: Store) -> None:
    learn(store)
    learn(store, Run("a", "s", 10.0), Run("a", "s", 10.1), Run("a", "t", 500.0), Run("é", "s", 1.0))
    learn(store, Run("a", "s", 10.0))
    with store.read() as conn:
        known = runtimes.learned(conn)
    counts = {key: found.count for key, found in known.shapes.items()}
    assert counts == {("a", "s"): 3, ("a", "t"): 1, ("é", "s"): 1}
    assert known.applications["a"].count == 4
    assert known.shapes["a", "s"].mean == pytest.approx(10, rel=0.1)
    assert known.applications["a"].quantile(1) == pytest.approx(500, rel=0.1)


def test_of_several_at_once_none_is_lost(store: Store) -> None:
    """Also in orders that would make them wait for each other, were the rows locked as given."""
    runs = [Run("a", "s", 2.0**power) for power in range(8)]

    def body(number: int) -> None:
        for _ in range(5):
            learn(store, *(runs if number % 2 else reversed(runs)))

    race(4, body)
    with store.read() as conn:
        assert runtimes.learned(conn).applications["a"].count == 8 * 5 * 4


def test_pruned_tasks_stay_counted(store: Store) -> None:
    add(store, program("task-1"))
    walk(store, "task-1", [State.PREPROCESSED, State.USER_KILLED])
    learn(store, Run("task-1", "s", 10.0))
    assert [row.id for row in store.run(lambda conn: prune(conn, 1e9))] == ["task-1"]
    with store.read() as conn:
        assert runtimes.learned(conn).applications["task-1"].count == 1


def test_old_runs_fade(store: Store) -> None:
    """A program that became ten times as fast is believed after as many runs as are kept."""
    learn(store, *[Run("a", "s", 100.0)] * MEMORY, *[Run("b", "s", 5.0)] * 3)
    assert store.run(runtimes.fade) == 0
    learn(store, Run("a", "s", 1e6))
    assert store.run(runtimes.fade) == 1
    with store.read() as conn:
        known = runtimes.learned(conn)
    assert known.shapes["a", "s"].count == MEMORY // 2
    assert known.shapes["a", "s"].quantile(1) == pytest.approx(100, rel=0.1)
    assert known.shapes["b", "s"].count == 3
    for _ in range(4):
        learn(store, *[Run("a", "s", 10.0)] * (MEMORY // 2 + 1))
        store.run(runtimes.fade)
    with store.read() as conn:
        assert runtimes.learned(conn).shapes["a", "s"].quantile(0.9) < 12
