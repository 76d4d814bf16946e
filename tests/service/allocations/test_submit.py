"""Submission: never the same allocation twice, whatever the scheduler answers."""

from __future__ import annotations

import itertools
import shlex
import stat
from pathlib import Path

import pytest

from balsam_celery.errors import SchedulerError, SchedulerUnavailable
from balsam_celery.packing import Request
from balsam_celery.schedulers.base import Job, JobRequest, JobState, Scheduler
from balsam_celery.service import submit as module
from balsam_celery.service.alone import alone
from balsam_celery.service.submit import job_name, submit
from balsam_celery.site import Site
from balsam_celery.store import allocations
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState
from tests.service.allocations.making import allocation, requested
from tests.store.conftest import Clock
from tests.store.making import race


class Faulty(Scheduler):
    """The real scheduler behind a line that breaks: before or after it has done what was asked."""

    def __init__(self, real: Scheduler) -> None:
        self.real = real
        self.lose_answer = False
        self.is_away = False
        self.submissions = 0

    def submit(self, request: JobRequest) -> str:
        self.submissions += 1
        native_id = self.real.submit(request)
        if self.lose_answer:
            raise SchedulerUnavailable("the answer was lost")
        return native_id

    def jobs(self) -> dict[str, Job]:
        if self.is_away:
            raise SchedulerUnavailable("the controller does not answer")
        return self.real.jobs()

    def cancel(self, native_id: str) -> None:
        self.real.cancel(native_id)

    def inside(self, environment: object) -> object:  # type: ignore[override]
        raise NotImplementedError


def test_a_row_becomes_one_job(store: Store, site: Site, scheduler: Scheduler) -> None:
    id = requested(store, site)
    assert submit(store, scheduler, site) == [id]
    row = allocation(store, id)
    assert row.state is AllocationState.QUEUED
    [job] = scheduler.jobs().values()
    assert (job.name, job.native_id) == (job_name(site, id), row.native_id)
    assert submit(store, scheduler, site) == []
    script = Path(row.run_dir) / "job.sh"
    assert stat.S_IMODE(script.stat().st_mode) == 0o700
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/sh"
    assert shlex.split(lines[1]) == [
        "exec", module.PYTHON, "-m", "balsam_celery.pilot",
        "--site", str(site.directory), "--allocation", id,
    ]  # fmt: skip
    assert site.secret("redis") not in script.read_text()


def test_a_lost_answer_is_found_again(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    faulty = Faulty(scheduler)
    faulty.lose_answer = True
    id = requested(store, site)
    assert submit(store, faulty, site) == []
    row = allocation(store, id)
    assert (row.state, row.native_id) == (AllocationState.REQUESTED, None)
    assert "the answer was lost" in row.reason
    clock.now += 1
    assert submit(store, faulty, site) == []  # not yet: it backs off
    assert faulty.submissions == 1
    clock.now += 100
    assert submit(store, faulty, site) == [id]
    assert faulty.submissions == 1
    assert len(scheduler.jobs()) == 1
    assert allocation(store, id).native_id in scheduler.jobs()
    assert allocation(store, id).reason == ""


def test_pauses_grow_while_the_scheduler_is_away(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    faulty = Faulty(scheduler)
    faulty.is_away = True
    id = requested(store, site)
    tries = []
    for _ in range(500):
        submit(store, faulty, site)
        submitted = allocation(store, id).submitted
        assert submitted is not None
        if not tries or submitted > tries[-1]:
            tries.append(submitted)
        clock.now += 1
    pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert pauses == sorted(pauses)
    assert pauses[0] == module.FIRST_PAUSE
    assert module.LONGEST_PAUSE <= pauses[-1] <= module.LONGEST_PAUSE + 1
    assert allocation(store, id).state is AllocationState.REQUESTED
    faulty.is_away = False
    clock.now += 100
    assert submit(store, faulty, site) == [id]


def test_a_refusal_is_final_and_keeps_its_reason(
    store: Store, site: Site, scheduler: Scheduler
) -> None:
    refused = requested(store, site, Request("local", 99, 300, ""))
    good = requested(store, site)
    assert submit(store, scheduler, site) == [good]
    row = allocation(store, refused)
    assert row.state is AllocationState.FAILED
    assert "99 nodes" in row.reason
    assert row.ended is not None


def test_what_is_not_needed_any_more_is_never_sent(
    store: Store, site: Site, scheduler: Scheduler
) -> None:
    id = requested(store, site)
    store.run(
        lambda conn: allocations.update_allocation(
            conn, id, (AllocationState.REQUESTED,), cancel_requested=store.clock()
        )
    )
    assert submit(store, scheduler, site) == []
    assert allocation(store, id).state is AllocationState.ENDED
    assert scheduler.jobs() == {}


def test_several_at_once_submit_once(store: Store, site: Site, scheduler: Scheduler) -> None:
    faulty = Faulty(scheduler)
    ids = {requested(store, site) for _ in range(2)}
    done = race(4, lambda _: submit(store, faulty, site))
    assert {id for several in done for id in several} == ids
    assert faulty.submissions == 2


def test_a_turn_that_somebody_else_has_is_waited_for(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    id = requested(store, site)
    with alone(store, "submit", 60) as turn:
        assert turn is not None
        assert submit(store, scheduler, site) == []
        clock.now += 61  # as if that one had died
        assert submit(store, scheduler, site) == [id]
        assert not turn.keep(60)


def test_a_run_directory_that_cannot_be_used_is_named_and_tried_again(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    site.run_dir.write_text("a file in the way")
    id = requested(store, site)
    assert submit(store, scheduler, site) == []
    assert str(site.run_dir) in allocation(store, id).reason
    site.run_dir.unlink()
    clock.now += 100
    assert submit(store, scheduler, site) == [id]


def test_a_job_that_ended_before_it_was_found_is_left_to_the_poll(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    faulty = Faulty(scheduler)
    faulty.lose_answer = True
    id = requested(store, site)
    submit(store, faulty, site)
    [native_id] = scheduler.jobs()
    scheduler.cancel(native_id)
    clock.now += 100
    submit(store, faulty, site)
    assert allocation(store, id).native_id == native_id
    assert scheduler.jobs()[native_id].state in JobState
    with pytest.raises(SchedulerError):
        scheduler.cancel("no such job")
