"""Whose kill order is due."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from balsam_celery.service import kill
from balsam_celery.states import State
from balsam_celery.store import schema
from balsam_celery.store.engine import Store
from tests.store.making import add, program, walk


def test_kills_that_cannot_be_done_yet_keep_none_waiting(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those whose pilot is silent may be more than one pass looks at."""
    monkeypatch.setattr(kill, "_LIMIT", 3)
    ids = [f"task-{number}" for number in range(8)]
    add(store, *map(program, ids))
    share = [{"node": "n0", "cores": [0]}]
    for id in ids:
        walk(store, id, [State.PREPROCESSED, State.DISPATCHED], pilot="p", shares=share)
    with store.write() as conn:
        # half of them at one time, as a kill of many writes them
        conn.execute(update(schema.task).values(kill_requested=5.0))
        conn.execute(
            update(schema.task).where(schema.task.c.id >= "task-4").values(kill_requested=6.0)
        )
    kills = kill.Kills()
    told = []
    for turn in range(3):
        with store.read() as conn:
            doomed = kills.due(conn, 100.0 + turn)
        kills.sent(doomed.programs, 100.0 + turn)
        told.append([row.id for row in doomed.programs])
    assert told == [ids[:3], ids[3:6], ids[6:]]
    # from the first on again, and an order is repeated when its time has come
    with store.read() as conn:
        assert kills.due(conn, 103.0).programs == []
    with store.read() as conn:
        assert [row.id for row in kills.due(conn, 107.0).programs] == ids[3:6]
