"""Reaping: finished runs are kept, the rest starts again, every attempt is completed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from kombu.transport.redis import Channel

from balsam_celery import keys
from balsam_celery.outbox import Outbox
from balsam_celery.service.housekeep import sweep
from balsam_celery.service.patience import Hangs, Patient
from balsam_celery.service.reap import Read, reap
from balsam_celery.service.record import record
from balsam_celery.service.requests import request_kill
from balsam_celery.site import Site
from balsam_celery.states import State
from balsam_celery.store.engine import Store
from balsam_celery.store.queries import attempts
from balsam_celery.store.rows import AllocationState, AttemptRow, PilotState
from balsam_celery.wire import Ended
from tests.service.allocations.making import (
    allocation,
    dispatched,
    pilot,
    running_pilot,
    set_allocation,
)
from tests.store.conftest import Clock
from tests.store.making import history, task
from tests.waiting import wait_until


class Recorder:
    """Records as the engine does; counts the calls."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.seen: list[Ended] = []

    def __call__(self, outcomes: Sequence[Ended]) -> None:
        self.seen += outcomes
        self.store.run(lambda conn: record(conn, outcomes, now=self.store.clock()))


def end(store: Store, id: str) -> Path:
    """The allocation has ended; returns the directory of its pilot ``p1``."""
    set_allocation(
        store, id, AllocationState.ENDED, ended=store.clock(), reason="its node was lost"
    )
    directory = Path(allocation(store, id).run_dir) / "p1"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def attempt(store: Store, id: str) -> AttemptRow:
    with store.read() as conn:
        [row] = attempts(conn, id)
    return row


def finished(id: str, **values: object) -> Ended:
    done = Ended(id, 1, "exit", "", ended=1005.0, started=1001.0, exit_code=0, stdout_tail="out")
    return replace(done, **values)  # type: ignore[arg-type]


def write_outbox(path: Path, *outcomes: Ended) -> None:
    outbox = Outbox(path)
    outbox.receive([(one.id, one.attempt) for one in outcomes])
    outbox.end(outcomes)
    outbox.close()


def test_outcomes_first_then_the_rest(store: Store, site: Site, clock: Clock) -> None:
    id = running_pilot(store, site)
    for name in ("done01", "failed", "runs01", "gang01"):
        dispatched(store, name, "p1", running=True)
    dispatched(store, "sent01", "p1")
    dispatched(store, "killed", "p1", running=True)
    request_kill(store, ["killed"], "enough of it")
    clock.now += 10
    directory = end(store, id)
    write_outbox(
        directory / "n0.outbox",
        finished("done01"),
        finished("failed", exit_code=3),
        finished("done01", attempt=7),  # of no attempt that we know
        finished("strange"),
    )
    write_outbox(directory / "gang.outbox", finished("gang01"))
    with (directory / "n0.outbox").open("ab") as file:
        file.write(b'00000000 ["ended",9,{"torn')
    recorder = Recorder(store)
    assert reap(store, site, id, record=recorder, client=None) == ["p1"]
    states = {name: task(store, name).state for name in ("done01", "failed", "gang01")}
    assert states == {
        "done01": State.JOB_FINISHED, "failed": State.FAILED, "gang01": State.JOB_FINISHED,
    }  # fmt: skip
    assert attempt(store, "done01").stdout_tail == "out"
    assert history(store, "runs01")[-3:] == [
        State.RUNNING, State.RUN_TIMEOUT, State.RESTART_READY,
    ]  # fmt: skip
    assert history(store, "sent01")[-2:] == [State.DISPATCHED, State.RESTART_READY]
    for name in ("runs01", "sent01"):
        row = task(store, name)
        assert (row.failures, row.pilot, row.shares) == (0, None, None)
        assert "its node was lost" in attempt(store, name).reason
        assert attempt(store, name).ended == clock.now
    assert attempt(store, "sent01").started is None
    assert task(store, "killed").state is State.USER_KILLED
    assert attempt(store, "killed").ended is not None
    assert pilot(store, "p1").state is PilotState.ENDED
    # once more changes nothing, and asks for nothing
    before = len(recorder.seen)
    assert reap(store, site, id, record=recorder, client=None) == ["p1"]
    assert len(recorder.seen) == before


def test_an_unreachable_outbox_is_named(store: Store, site: Site) -> None:
    id = running_pilot(store, site)
    dispatched(store, "runs01", "p1", running=True)
    directory = end(store, id)
    directory.rmdir()
    reap(store, site, id, record=Recorder(store), client=None)
    reason = attempt(store, "runs01").reason
    assert str(directory) in reason
    assert "No such file" in reason
    assert task(store, "runs01").state is State.RESTART_READY


def test_only_what_has_ended_is_reaped(store: Store, site: Site) -> None:
    id = running_pilot(store, site)
    dispatched(store, "runs01", "p1", running=True)
    with pytest.raises(ValueError, match="not ENDED"):
        reap(store, site, id, record=Recorder(store), client=None)
    assert task(store, "runs01").state is State.RUNNING


#: kombu's own names of where it keeps bindings, and again those that do not expire.
TABLE = Channel.keyprefix_queue.removesuffix(".%s")
PERMANENT = Channel.keyprefix_binding_permanent.removesuffix(".%s")


def test_the_keys_of_a_dead_pilot_are_deleted(
    store: Store, site: Site, client: redis.Redis
) -> None:
    id = running_pilot(store, site)
    end(store, id)
    prefix = site.settings.key_prefix
    mailbox = f"{keys.worker_name('p1', 'n0')}.celery.pidbox"
    for key in (
        keys.control(prefix, "p1"),
        keys.acks(prefix, "p1", "n1"),
        keys.acks(prefix, "p1", "pilot"),
        prefix + keys.pilot_queue("p1", "n0"),
        prefix + keys.pilot_queue("p1", keys.GANG),
        prefix + mailbox,
    ):
        client.rpush(key, "x")
    client.hset(keys.heartbeats(prefix, "p1"), "n0", "x")
    client.hset(keys.limits(prefix, "p1"), "n0", "1")
    others = (b"\x06\x16\x06\x16service@here.celery.pidbox",)
    bindings = [f"{prefix}{kind}." for kind in (TABLE, PERMANENT)]
    for kind in bindings:
        client.sadd(kind + keys.pilot_queue("p1", "n0"), "x")
        client.sadd(f"{kind}celery.pidbox", f"\x06\x16\x06\x16{mailbox}", *others)
    reap(store, site, id, record=Recorder(store), client=client)
    left = set(client.scan_iter(match=f"{prefix}*"))
    assert left == {f"{kind}celery.pidbox".encode() for kind in bindings}
    assert all(client.smembers(key) == set(others) for key in left)


def test_keys_that_come_late_are_swept_however_long_ago_the_job_ended(
    store: Store, site: Site, client: redis.Redis, clock: Clock
) -> None:
    """The service was stopped for a day; what it writes while it reaps comes late too."""
    id = running_pilot(store, site)
    end(store, id)
    clock.now += 86400
    reap(store, site, id, record=Recorder(store), client=client)
    prefix = site.settings.key_prefix
    order = prefix + keys.pilot_queue("p1", "n0")
    client.rpush(order, "an order to kill")
    client.hset(keys.limits(prefix, "p1"), "n0", "1")
    try:
        clock.now += 60
        sweep(store, client, site)
        assert not client.exists(order, keys.limits(prefix, "p1"))
    finally:
        client.delete(order, keys.limits(prefix, "p1"))


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_an_outbox_on_a_file_system_that_hangs(store: Store, site: Site) -> None:
    """A pipe that nobody writes to hangs as it does; one that comes back loses nothing."""
    for pilot_id, patience in (("p1", 60.0), ("p2", 0.0)):
        id = running_pilot(store, site, pilot_id)
        name = f"of-{pilot_id}"
        dispatched(store, name, pilot_id, running=True)
        directory = end(store, id).with_name(pilot_id)
        directory.mkdir(exist_ok=True)
        os.mkfifo(directory / "n0.outbox")
        read = Patient(wait=0.05, patience=patience).read
        recorder = Recorder(store)
        if patience:
            for _ in range(2):
                with pytest.raises(Hangs, match=str(directory)):
                    reap(store, site, id, record=recorder, client=None, read=read)
            assert task(store, name).state is State.RUNNING
            write_outbox(directory / "aside", finished(name))
            (directory / "n0.outbox").write_bytes((directory / "aside").read_bytes())

            def reaped(id: str = id, recorder: Recorder = recorder, read: Read = read) -> bool:
                try:
                    return bool(reap(store, site, id, record=recorder, client=None, read=read))
                except Hangs:
                    return False

            wait_until(reaped, 10, "it answers")
            assert task(store, name).state is State.JOB_FINISHED
        else:
            reap(store, site, id, record=recorder, client=None, read=read)
            assert task(store, name).state is State.RESTART_READY
            reason = attempt(store, name).reason
            assert f"{directory}: the file system does not answer" in reason
            # let the thread go
            (directory / "n0.outbox").write_bytes(b"")
