"""Workers that their pilot gives up: nothing more for them, and what waits for them comes back."""

from __future__ import annotations

from balsam_celery import keys
from balsam_celery.service.requests import request_kill
from balsam_celery.states import State
from balsam_celery.store import allocations
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import PilotState
from balsam_celery.wire import WorkerLost
from tests.service.acting import add_pilot, attempts_of, ended, start, tell
from tests.store.making import add, program, task

S = State


def lost(node: str, *, restarted: bool = False) -> WorkerLost:
    return WorkerLost("pilot1", node, "ended by signal 9", restarted, 1003.0)


def nodes_of(store: Store, id: str) -> list[str]:
    return [share["node"] for share in task(store, id).shares or ()]


def test_a_node_is_lost_for_every_later_leader(store: Store) -> None:
    add_pilot(store, (1, 1))
    add(store, program("t00001"), program("t00002"))
    assert len(start(store)) == 2
    [waits] = [id for id in ("t00001", "t00002") if nodes_of(store, id) == ["n0"]]
    [other] = {"t00001", "t00002"} - {waits}
    told = tell(store, lost("n0"))
    assert told.left == (("pilot1", waits, 1),)
    assert (task(store, waits).state, task(store, waits).failures) == (S.RESTART_READY, 0)
    [attempt] = attempts_of(store, waits)
    assert (attempt.outcome, attempt.ended) == ("lost", 1003.0)
    assert task(store, other).state is S.DISPATCHED
    assert not start(store), "the other node is busy, this one is lost"
    assert not tell(store, lost("n0")).changes, "told twice"
    tell(store, ended(other))
    [sent] = start(store)
    assert (sent.spec.id, sent.worker) == (waits, "n1")


def test_no_task_spans_a_lost_node(store: Store) -> None:
    add_pilot(store, (1, 1, 1))
    tell(store, lost("n1"))
    add(store, program("wide01", num_nodes=3), program("wide02", num_nodes=2))
    [sent] = start(store)
    assert sent.spec.id == "wide02"
    assert nodes_of(store, "wide02") == ["n0", "n2"]


def test_a_pilot_without_its_gang_worker_drains(store: Store) -> None:
    add_pilot(store, (1, 1, 1))
    add(store, program("wide01", num_nodes=2, priority=1), program("t00001"))
    assert len(start(store)) == 2
    tell(store, lost(keys.GANG))
    assert task(store, "wide01").state is S.RESTART_READY
    assert task(store, "t00001").state is S.DISPATCHED, "single nodes know nothing of it"
    with store.read() as conn:
        assert allocations.get_pilot(conn, "pilot1").state is PilotState.DRAINING
    assert not start(store)


def test_what_was_to_be_killed_is_killed(store: Store) -> None:
    add_pilot(store, (1,))
    add(store, program("t00001"))
    start(store)
    request_kill(store, ["t00001"], "x")
    tell(store, lost("n0"))
    assert task(store, "t00001").state is S.USER_KILLED


def test_a_worker_that_was_started_again_keeps_all(store: Store) -> None:
    add_pilot(store, (1,))
    add(store, program("t00001"))
    start(store)
    tell(store, lost("n0", restarted=True))
    assert task(store, "t00001").state is S.DISPATCHED
    tell(store, ended("t00001"))
    assert task(store, "t00001").state is S.JOB_FINISHED
