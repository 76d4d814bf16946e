"""Runtimes are learned from what ended well, and used where the user says nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from balsam_celery.runtimes import ENOUGH, SURE, Learned, Run, counted, shape_of
from balsam_celery.service import window
from balsam_celery.service.estimates import KEEP, Estimates, estimates
from balsam_celery.service.requests import request_kill
from balsam_celery.states import State
from balsam_celery.store import runtimes, scans
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import TaskRow
from tests.service.acting import add_pilot, attempts_of, ended, start, started, tell
from tests.store.conftest import Clock
from tests.store.making import add, program, task

S = State
SERIAL = shape_of(1, 1, 1, 0.0)


def learned(store: Store) -> Learned:
    with store.read() as conn:
        return runtimes.learned(conn)


def teach(store: Store, application: str, *seconds: float, shape: str = SERIAL) -> None:
    runs = [Run(application, shape, one) for one in seconds]
    store.run(lambda conn: runtimes.add(conn, runs))


def test_what_ended_well_is_counted_once(store: Store) -> None:
    """From the program's start, not from when it was sent."""
    add_pilot(store)
    add(store, program("t00001", application="relax", threads_per_rank=2))
    start(store)
    over = ended("t00001", started=1010.0, ended=1050.0)
    tell(store, started("t00001", time=1010.0), over, over)
    tell(store, over)
    known = learned(store)
    assert {key: found.count for key, found in known.shapes.items()} == {
        ("relax", shape_of(1, 1, 2, 0.0)): 1
    }
    assert known.applications["relax"].mean == pytest.approx(40, rel=0.06)


@pytest.mark.parametrize(
    "end",
    [
        {"code": 1},
        {"outcome": "timeout"},
        {"outcome": "killed"},
        {"outcome": "drained"},
        {"outcome": "cannot-start", "started": None},
    ],
)
def test_what_ended_otherwise_tells_nothing(store: Store, end: dict[str, Any]) -> None:
    add_pilot(store)
    add(store, program("t00001"))
    start(store)
    tell(store, started("t00001"), ended("t00001", **end))
    assert attempts_of(store, "t00001")[0].ended is not None
    assert not learned(store).applications


def test_the_attempt_of_a_killed_task_that_was_over_before_counts_once(store: Store) -> None:
    add_pilot(store)
    add(store, program("t00001"))
    start(store)
    tell(store, started("t00001"))
    request_kill(store, ["t00001"], "enough")
    tell(store, ended("t00001"))
    tell(store, ended("t00001"))
    assert learned(store).applications["t00001"].count == 1


def test_they_are_read_again_after_a_while(store: Store, clock: Clock) -> None:
    teach(store, "relax", *[60.0] * ENOUGH)
    add(store, program("t00001", application="relax"))
    with store.read() as conn:
        first = estimates(conn, clock.now)
        assert first.fits(task(store, "t00001")) == pytest.approx(60, rel=0.1)
        teach(store, "relax", *[600.0] * ENOUGH)
        assert estimates(conn, clock.now + KEEP - 1) is first
    with store.read() as conn:
        later = estimates(conn, clock.now + KEEP)
    assert later.fits(task(store, "t00001")) == pytest.approx(600, rel=0.1)
    assert later.mean(task(store, "t00001")) == pytest.approx(330, rel=0.06)


def known(*seconds: float) -> Estimates:
    return Estimates(Learned.of(counted(Run("relax", SERIAL, one) for one in seconds)))


def row(store: Store, state: State, **values: Any) -> TaskRow:
    """A task of an hour at most, since 1001."""
    one = program("t00001", application="relax", **values)
    add_pilot(store)
    add(store, one)
    start(store)
    if state is S.RUNNING:
        tell(store, started("t00001"))
    found = task(store, "t00001")
    assert found.state is state
    return found


@pytest.mark.parametrize(
    ("seconds", "expected", "elapsed", "rest"),
    [
        ((), None, 10, 55),  # nothing is known: the limit, of 60 s and 5 s of grace
        ((), 30.0, 10, 20),
        ((), 8.0, 10, 10),  # outlived: as long again
        ((), 8.0, 40, 25),  # … and never beyond the limit
        ([30.0] * ENOUGH, None, 10, 20),
        ([5.0] * ENOUGH, None, 10, 10),
        ([5.0] * ENOUGH + [50.0], None, 10, 40),
        ([30.0] * ENOUGH, 8.0, 10, 20),  # the user erred, others ran longer
        ([1000.0] * ENOUGH, None, 10, 55),
    ],
)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_how_long_a_running_task_goes_on(
    store: Store, seconds: list[float], expected: float | None, elapsed: float, rest: float
) -> None:
    running = row(store, S.RUNNING, expected_time=expected)
    found = known(*seconds).remaining(running, 5, running.changed + elapsed)
    assert found == pytest.approx(rest, abs=3)


@pytest.mark.parametrize(
    ("seconds", "expected", "elapsed", "rest"),
    [
        ([5.0] * ENOUGH, None, 10, 30),  # twice the time of the run that was cut
        ((), 8.0, 10, 30),
        ([5.0] * ENOUGH, None, 45, 20),  # outlived that too: as long again, to its limit
        ([60.0] * ENOUGH, None, 10, 50),
        ((), None, 10, 55),
    ],
)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_task_that_was_cut_is_known_to_run_longer(
    store: Store, seconds: list[float], expected: float | None, elapsed: float, rest: float
) -> None:
    running = dataclasses.replace(row(store, S.RUNNING, expected_time=expected), ran=20.0)
    found = known(*seconds).remaining(running, 5, running.changed + elapsed)
    assert found == pytest.approx(rest, abs=3)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_task_that_has_not_started_has_all_before_it(store: Store) -> None:
    sent = row(store, S.DISPATCHED)
    found = known(*[30.0] * ENOUGH).remaining(sent, 5, sent.changed + 20)
    assert found == pytest.approx(30, rel=0.06)


def test_a_backlog_is_counted_by_known_application_and_what_users_expect(store: Store) -> None:
    add(
        store,
        *(program(f"a{n:05}", application="a", expected_time=20.0 + n) for n in (-1, 0, 1)),
        program("a00009", application="a"),
        *(program(f"b{n:05}", application=f"b{n}") for n in range(9)),
    )
    with store.read() as conn:
        found = {
            (one.application, one.expected_time): one.count
            for one in scans.backlog(conn, now=2000.0, applications=["a", "other"])
        }
        whole = {
            (one.application, one.expected_time): one.count
            for one in scans.backlog(conn, now=2000.0)
        }
    assert found == {("a", 20.0): 3, ("a", None): 1, ("", None): 9}
    assert whole == {("", 20.0): 3, ("", None): 10}


def test_times_of_other_steps_are_counted_apart_whatever_their_number(store: Store) -> None:
    times = (30.0, 31.0, 180.0, 1800.0, 10800.0)
    add(
        store,
        *(
            program(f"t{number:05}", expected_time=expected)
            for number, expected in enumerate(times)
        ),
    )
    with store.read() as conn:
        found = scans.backlog(conn, now=2000.0)
    assert sorted((one.expected_time, one.longest, one.count) for one in found) == [
        (30.5, 31.0, 2),
        (180.0, 180.0, 1),
        (1800.0, 1800.0, 1),
        (10800.0, 10800.0, 1),
    ]


def test_a_task_that_was_cut_gets_twice_the_time_at_most_its_limit(
    store: Store, clock: Clock
) -> None:
    add(store, program("t00001", expected_time=50.0, restartable=True))
    store.run(lambda conn: conn.exec_driver_sql("UPDATE task SET wall_time = 3600"))
    seen = []
    for number, ran in enumerate((60.0, 20.0, 1000.0, 3000.0), 1):
        add_pilot(store, id=f"pilot{number}", lasts=9000.0)
        [sent] = start(store)
        begin, clock.now = clock.now, clock.now + ran
        tell(store, started("t00001", number, time=begin))
        over = ended("t00001", "drained", attempt=number, started=begin, ended=clock.now)
        tell(store, over, over)
        assert sent.spec.attempt == number
        store.run(lambda conn: conn.exec_driver_sql("UPDATE pilot SET state = 'ENDED'"))
        with store.read() as conn:
            [shape] = scans.backlog(conn, now=clock.now)
            [waiting] = scans.placeable(conn, now=clock.now, limit=9)
            known = estimates(conn, clock.now)
        assert known.fits(waiting) == known.fits(shape) == known.mean(shape)
        seen.append(known.fits(waiting))
    assert seen == [120.0, 120.0, 2000.0, 3600.0]
    assert task(store, "t00001").expected_time == 50.0


def test_an_attempt_that_never_started_tells_nothing_of_its_length(store: Store) -> None:
    add_pilot(store)
    add(store, program("t00001", expected_time=50.0))
    start(store)
    tell(store, ended("t00001", outcome="drained", started=None))
    assert task(store, "t00001").ran is None


def test_what_ran_too_seldom_is_not_even_read(store: Store, clock: Clock) -> None:
    teach(store, "often", *[10.0] * (ENOUGH - 2), shape="one")
    teach(store, "often", *[10.0] * 2, shape="two")
    teach(store, "seldom", *[10.0] * (ENOUGH - 1))
    with store.read() as conn:
        assert set(estimates(conn, clock.now).learned.applications) == {"often"}


def test_a_restartable_task_starts_where_earlier_runs_would_have_ended(
    store: Store, clock: Clock
) -> None:
    """It outlives that estimate, and goes on: the worker knows nothing of it."""
    add_pilot(store, lasts=100.0)  # 90 s but for the drain margin; its limit would not fit
    values: dict[str, Any] = {"application": "relax", "restartable": True}
    add(store, program("t00001", **values), program("t00002", **values | {"restartable": False}))
    store.run(lambda conn: conn.exec_driver_sql("UPDATE task SET wall_time = 3600"))
    assert not start(store)
    teach(store, "relax", *[20.0] * 20)
    clock.now += KEEP
    [sent] = start(store)
    assert (sent.spec.id, sent.spec.wall_time) == ("t00001", 3600)
    tell(store, started("t00001", time=clock.now))
    clock.now += 60
    assert not start(store)
    assert task(store, "t00001").state is S.RUNNING
    tell(store, ended("t00001", started=clock.now - 60, ended=clock.now))
    assert task(store, "t00001").state is S.JOB_FINISHED
    assert learned(store).applications["relax"].count == 21


@pytest.mark.parametrize("restartable", [False, True])
def test_room_for_the_checkpoint_is_counted(store: Store, restartable: bool) -> None:
    """By placement and packing alike; what ends within its limit is never told."""
    values: dict[str, Any] = {"wall_time": 900, "expected_time": 100.0, "checkpoint_grace": 60}
    add(store, program("t00001", restartable=restartable, **values))
    with store.read() as conn:
        [row] = scans.placeable(conn, now=2e9, limit=9)
        [shape] = scans.backlog(conn, now=2e9)
        known = estimates(conn, 0.0)
    sure = SURE * 100.0 + 60 * restartable
    assert known.fits(row) == known.fits(shape) == sure
    candidate = window.candidates_of([row], 5, 9, known)["t00001"]
    assert candidate.least_time == (sure + 5 if restartable else 905)
