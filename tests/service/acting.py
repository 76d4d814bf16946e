"""Short ways for tests of the service: pilots in SQL, attempts placed on them, their ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from balsam_celery.ledger import Ledger
from balsam_celery.lookahead import NO_LOOK_AHEAD, LookAhead
from balsam_celery.resources import Counts, NodeCapacity
from balsam_celery.service import hooks, place
from balsam_celery.service.cases import Batch
from balsam_celery.service.record import Recorded, record
from balsam_celery.store import allocations, effects
from balsam_celery.store.engine import Store
from balsam_celery.store.insert import NewTask
from balsam_celery.store.queries import attempts
from balsam_celery.store.rows import AllocationState, AttemptRow, EffectRow
from balsam_celery.wire import Ended, Outcome, Record, Registered, Started, StepEnded

LIMITS = place.Limits(Path("/run"), kill_grace=5, drain_margin=10)


def add_pilot(
    store: Store,
    cores: Sequence[int] = (2,),
    *,
    id: str = "pilot1",
    lasts: float = 3600.0,
    memory: int = 0,
    resources: Counts = (),
) -> None:
    """A pilot whose nodes have so many cores, registered as pilots do, in an allocation."""
    now = store.clock()
    nodes = tuple(
        NodeCapacity(f"n{i}", tuple(range(count)), memory=memory, resources=resources)
        for i, count in enumerate(cores)
    )
    one = Registered(id, f"a-{id}", "host", 1, now + lasts, nodes, now)

    def write(conn: Any) -> None:
        allocations.insert_allocation(
            conn, id=f"a-{id}", queue="q", nodes=len(cores), wall_time=3600, run_dir="/r", now=now
        )
        allocations.update_allocation(
            conn, f"a-{id}", (AllocationState.REQUESTED,), state=AllocationState.QUEUED
        )
        record(conn, [one], now=now)

    store.run(write)


def start(store: Store, ahead: LookAhead = NO_LOOK_AHEAD) -> list[place.Sent]:
    """Give slots to what waits, as a leader that has just started would."""
    return store.run(lambda conn: start_in(conn, store.clock(), ahead))


def start_in(conn: Connection, now: float, ahead: LookAhead = NO_LOOK_AHEAD) -> list[place.Sent]:
    """The same within a transaction."""
    started = place.start(conn, Ledger.empty(), LIMITS, now=now, who="test", ahead=ahead)
    return list(started.sent)


def advance(store: Store, out: Collection[hooks.StepKey] = ()) -> list[hooks.Pending]:
    """Move on what is READY; returns what waits for the transitions worker."""
    return store.run(lambda conn: hooks.advance(Batch(conn, store.clock(), "test"), out))


def tell(store: Store, *records: Record) -> Recorded:
    """Record what workers tell."""
    return store.run(lambda conn: record(conn, records, now=store.clock(), who="test"))


def started(id: str, attempt: int = 1, time: float = 1001.0) -> Started:
    """The program runs."""
    return Started(id, attempt, time, 4711)


def ended(
    id: str, outcome: Outcome = "exit", code: int | None = 0, *, attempt: int = 1, **fields: Any
) -> Ended:
    """The program ran from 1001 to 1003."""
    values: dict[str, Any] = {
        "reason": "",
        "ended": 1003.0,
        "started": 1001.0,
        "exit_code": code if outcome == "exit" else None,
        "stdout_tail": "out",
        "stderr_tail": "err",
        "user_time": 1.5,
        "max_memory": 4096,
    }
    return Ended(id, attempt, outcome, **{**values, **fields})


def step_ended(id: str, state: str = "SUCCESS", result: Any = None, attempt: int = 1) -> StepEnded:
    """A step is over."""
    return StepEnded(id, attempt, state, result, None, 1003.0)


def step(id: str, **values: Any) -> NewTask:
    """An ordinary Celery task of a canvas."""
    return NewTask(
        id=id, name=id, kind="celery", application="mod.add", celery={"options": {}}, **values
    )


def attempts_of(store: Store, id: str) -> list[AttemptRow]:
    """Attempts of a task."""
    with store.read() as conn:
        return attempts(conn, id)


def effects_of(store: Store, id: str) -> list[EffectRow]:
    """Effects of a task that are not performed yet."""
    with store.read() as conn:
        return [row for row in effects.due(conn, 1e12, 10_000) if row.task == id]
