"""Leases, with a clock that the test sets."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from balsam_celery.holders import is_dead, new_holder
from balsam_celery.store import lease
from balsam_celery.store.engine import Store
from tests.store.conftest import Clock
from tests.store.making import race


def test_lease_is_one_holder_s_until_it_expires(store: Store, clock: Clock) -> None:
    assert lease.acquire(store, "service", "a", 15) == 1
    assert lease.acquire(store, "service", "b", 15) is None
    assert lease.holder(store, "service") == ("a", 1015.0)
    clock.now += 14.9
    assert lease.acquire(store, "service", "b", 15) is None
    clock.now += 0.1
    assert lease.holder(store, "service") is None
    assert lease.acquire(store, "service", "b", 15) == 2
    assert lease.holder(store, "service") == ("b", 1030.0)


def test_own_lease_is_taken_again_in_the_same_term(store: Store) -> None:
    assert lease.acquire(store, "service", "a", 15) == 1
    assert lease.acquire(store, "service", "a", 15) == 1


def test_names_do_not_meet(store: Store) -> None:
    assert lease.acquire(store, "service", "a", 15) == 1
    assert lease.acquire(store, "beat", "b", 15) == 1


def test_renewed_lease_lives_on(store: Store, clock: Clock) -> None:
    term = lease.acquire(store, "beat", "a", 15)
    assert term is not None
    for _ in range(5):
        clock.now += 10
        assert lease.renew(store, "beat", "a", term, 15)
        assert lease.acquire(store, "beat", "b", 15) is None


def test_lease_that_nobody_took_is_renewed_late(store: Store, clock: Clock) -> None:
    assert lease.acquire(store, "beat", "a", 15) == 1
    clock.now += 100
    assert lease.renew(store, "beat", "a", 1, 15)
    assert lease.acquire(store, "beat", "b", 15) is None


def test_lost_lease_is_not_renewed_nor_released(store: Store, clock: Clock) -> None:
    assert lease.acquire(store, "beat", "a", 15) == 1
    clock.now += 20
    assert lease.acquire(store, "beat", "b", 15) == 2
    assert not lease.renew(store, "beat", "a", 1, 15)
    lease.release(store, "beat", "a", 1)
    assert lease.holder(store, "beat") == ("b", 1035.0)


def test_released_lease_is_free_at_once_and_the_term_grows(store: Store) -> None:
    assert lease.acquire(store, "beat", "a", 15) == 1
    lease.release(store, "beat", "a", 1)
    assert lease.holder(store, "beat") is None
    assert lease.acquire(store, "beat", "b", 15) == 2
    lease.release(store, "beat", "b", 2)
    assert lease.acquire(store, "beat", "a", 15) == 3


def test_unknown_lease(store: Store) -> None:
    assert lease.holder(store, "nothing") is None
    assert not lease.renew(store, "nothing", "a", 1, 15)
    lease.release(store, "nothing", "a", 1)


def test_holds_tells_inside_a_transaction(store: Store, clock: Clock) -> None:
    assert lease.acquire(store, "service", "a", 15) == 1
    with store.write() as conn:
        assert lease.holds(conn, "service", "a", 1)
        assert not lease.holds(conn, "service", "a", 2)
        assert not lease.holds(conn, "service", "b", 1)
    clock.now += 20
    assert lease.acquire(store, "service", "b", 15) == 2
    with store.write() as conn:
        assert not lease.holds(conn, "service", "a", 1)


def test_takeover_waits_for_a_transaction_that_holds(store: Store, clock: Clock) -> None:
    assert lease.acquire(store, "service", "a", 15) == 1
    clock.now += 20
    taken: list[int | None] = []
    other = threading.Thread(
        target=lambda: taken.append(lease.acquire(store, "service", "b", 15)), daemon=True
    )
    with store.write() as conn:
        assert lease.holds(conn, "service", "a", 1)
        other.start()
        other.join(0.3)
        assert other.is_alive()
    other.join()
    assert taken == [2]


@pytest.mark.parametrize("expired", [False, True], ids=["new", "expired"])
def test_of_racing_holders_exactly_one_leads(store: Store, clock: Clock, expired: bool) -> None:
    if expired:
        assert lease.acquire(store, "service", "before", 15) == 1
        clock.now += 20
    terms = race(8, lambda index: lease.acquire(store, "service", f"holder-{index}", 15))
    assert [term for term in terms if term is not None] == [2 if expired else 1]


def held_elsewhere(store: Store) -> subprocess.Popen[str]:
    """A process that holds the lease ``service`` for an hour, as this process is told."""
    code = (
        "import sys; from balsam_celery.holders import new_holder; "
        "print(new_holder(), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert lease.acquire(store, "service", process.stdout.readline().strip(), 3600) == 1
    return process


def test_the_lease_of_a_process_that_was_killed_is_free_at_once(store: Store) -> None:
    with held_elsewhere(store) as process:
        assert lease.acquire(store, "service", new_holder(), 15) is None, "it lives"
        process.kill()
        process.wait()
        assert lease.acquire(store, "service", new_holder(), 15) == 2


def test_a_paused_process_is_not_a_dead_one(store: Store) -> None:
    with held_elsewhere(store) as process:
        process.send_signal(signal.SIGSTOP)
        try:
            assert lease.acquire(store, "service", new_holder(), 15) is None
        finally:
            process.kill()


@pytest.mark.parametrize("field", [0, 3])
def test_of_another_machine_nobody_knows(store: Store, field: int) -> None:
    """Another host's name, or another start of this one: only time tells."""
    parts = new_holder().split(":")
    parts[1] = "4194305"  # above the highest pid
    parts[field] = "another"
    assert not is_dead(":".join(parts))
    assert lease.acquire(store, "service", ":".join(parts), 15) == 1
    assert lease.acquire(store, "service", new_holder(), 15) is None
