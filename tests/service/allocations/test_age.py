"""What the service reads at every turn costs no more the older its site is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, insert, text

from balsam_celery.service import givingback, poll
from balsam_celery.site import Site
from balsam_celery.store import allocations, schema
from balsam_celery.store.allocations import LIVE_PILOTS
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState, PilotState
from tests.service.allocations.making import dispatched, running_pilot
from tests.store.conftest import Clock
from tests.store.statements import statements

A_DAY = 86_400.0
SINCE = 1e6
Query = Callable[[Connection], object]


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(lambda conn: allocations.ended_since(conn, SINCE - 3600), id="sweep"),
        pytest.param(poll.to_reap, id="to reap"),
        pytest.param(lambda conn: allocations.list_pilots(conn, LIVE_PILOTS), id="live pilots"),
        pytest.param(lambda conn: givingback.refuses(conn, SINCE), id="giving back"),
        pytest.param(
            lambda conn: allocations.came_to_nothing(conn, SINCE - 3600), id="came to nothing"
        ),
    ],
)
def test_what_is_over_is_not_read(store: Store, site: Site, clock: Clock, query: Query) -> None:
    clock.now = SINCE
    for number in range(6):  # several, or their index alone would do
        running_pilot(store, site, f"live{number}")
        dispatched(store, f"task0{number}", f"live{number}", running=True)
    end_pilots(store, 0, 20)
    young = work(store, query)
    end_pilots(store, 20, 3000)
    assert work(store, query) <= 2 * young + 50


def end_pilots(store: Store, first: int, last: int) -> None:
    """Allocations that ended long ago, each with a pilot of it, one a minute."""
    jobs, pilots = [], []
    for number in range(first, last):
        ended = SINCE - 3 * A_DAY - 60 * number
        job = {"id": f"a{number:05}", "queue": "local", "nodes": 1, "wall_time": 60}
        job |= {"state": AllocationState.ENDED.value, "native_id": str(number), "run_dir": "/r"}
        jobs.append({**job, "created": ended - 60, "started": ended - 60, "ended": ended})
        one = {"id": f"p{number:05}", "allocation": job["id"], "state": PilotState.ENDED.value}
        one |= {"host": "h", "pid": 1, "nodes": [], "giving_back": {}}
        times = {"registered": ended - 50, "heartbeat": ended, "end_time": ended, "ended": ended}
        pilots.append({**one, **times})
    with store.write() as conn:
        conn.execute(insert(schema.allocation), jobs)
        conn.execute(insert(schema.pilot), pilots)
        if conn.dialect.name == "postgresql":
            conn.execute(text("ANALYZE"))  # what its autovacuum does by itself


def work(store: Store, query: Query) -> int:
    """What a query costs: steps of SQLite's machine, or rows that PostgreSQL reads."""
    return (_steps if store.engine.dialect.name == "sqlite" else _rows)(store, query)


def _steps(store: Store, query: Query) -> int:
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    with store.read() as conn:
        driver: Any = conn.connection.driver_connection
        driver.set_progress_handler(count, 1)
        try:
            query(conn)
        finally:
            driver.set_progress_handler(None, 1)
    return steps


def _rows(store: Store, query: Query) -> int:
    with statements(store) as said, store.read() as conn:
        query(conn)
    with store.read() as conn:
        plans = [
            conn.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values).scalar_one()
            for statement, values in said
        ]
    assert plans
    return sum(_rows_of(plan[0]["Plan"]) for plan in plans)


def _rows_of(node: dict[str, Any]) -> int:
    below = node.get("Plans", ())
    if below:
        return sum(map(_rows_of, below))
    read = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
    return int(read * node["Actual Loops"])
