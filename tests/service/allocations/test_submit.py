"""Submission: never the same allocation twice, whatever the scheduler answers."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import stat
from pathlib import Path

import pytest
import redis

from balsam_celery.errors import SchedulerError
from balsam_celery.packing import Request
from balsam_celery.schedulers.base import JobState, Scheduler
from balsam_celery.service import submit as module
from balsam_celery.service.alone import alone
from balsam_celery.service.submit import job_name, submit
from balsam_celery.site import Site
from balsam_celery.store import allocations
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState
from tests.service.allocations.faulty import Faulty
from tests.service.allocations.making import allocation, requested
from tests.store.conftest import Clock
from tests.store.making import race


def test_a_row_becomes_one_job(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    id = requested(store, site)
    assert submit(store, scheduler, site, client) == [id]
    row = allocation(store, id)
    assert row.state is AllocationState.QUEUED
    [job] = scheduler.jobs().values()
    assert (job.name, job.native_id) == (job_name(site, id), row.native_id)
    assert submit(store, scheduler, site, client) == []
    script = Path(row.run_dir) / "job.sh"
    assert stat.S_IMODE(script.stat().st_mode) == 0o700
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/sh"
    assert shlex.split(lines[1]) == [
        "exec", site.settings.pilot.python, "-m", "balsam_celery.pilot",
        "--site", str(site.directory), "--allocation", id, "--queue", "local",
    ]  # fmt: skip
    assert site.secret("redis") not in script.read_text()


def test_a_lost_answer_is_found_again(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    faulty = Faulty(scheduler)
    faulty.lose_answer = True
    id = requested(store, site)
    assert submit(store, faulty, site, client) == []
    row = allocation(store, id)
    assert (row.state, row.native_id) == (AllocationState.REQUESTED, module.IN_DOUBT)
    assert "the answer was lost" in row.reason
    clock.now += 1
    assert submit(store, faulty, site, client) == []  # not yet: it backs off
    assert faulty.submissions == 1
    clock.now += 100
    assert submit(store, faulty, site, client) == [id]
    assert faulty.submissions == 1
    assert len(scheduler.jobs()) == 1
    assert allocation(store, id).native_id in scheduler.jobs()
    assert allocation(store, id).reason == ""


def test_pauses_grow_while_the_scheduler_is_away(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    faulty = Faulty(scheduler)
    faulty.is_away = True
    id = requested(store, site)
    tries = []
    for _ in range(500):
        submit(store, faulty, site, client)
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
    assert submit(store, faulty, site, client) == [id]


def test_a_refusal_is_final_and_keeps_its_reason(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    refused = requested(store, site, Request("local", 99, 300, ""))
    good = requested(store, site)
    assert submit(store, scheduler, site, client) == [good]
    row = allocation(store, refused)
    assert row.state is AllocationState.FAILED
    assert "99 nodes" in row.reason
    assert row.ended is not None


def test_what_is_not_needed_any_more_is_never_sent(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    id = requested(store, site)
    store.run(
        lambda conn: allocations.update_allocation(
            conn, id, (AllocationState.REQUESTED,), cancel_requested=store.clock()
        )
    )
    assert submit(store, scheduler, site, client) == []
    assert allocation(store, id).state is AllocationState.ENDED
    assert scheduler.jobs() == {}


def test_several_at_once_submit_once(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    faulty = Faulty(scheduler)
    ids = {requested(store, site) for _ in range(2)}
    done = race(4, lambda _: submit(store, faulty, site, client))
    assert {id for several in done for id in several} == ids
    assert faulty.submissions == 2


def test_a_turn_that_somebody_else_has_is_waited_for(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = requested(store, site)
    with alone(store, "submit", 60) as turn:
        assert turn is not None
        assert submit(store, scheduler, site, client) == []
        clock.now += 61  # as if that one had died
        assert submit(store, scheduler, site, client) == [id]
        assert not turn.keep(60)


def test_a_run_directory_that_cannot_be_used_is_named_and_tried_again(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    site.run_dir.write_text("a file in the way")
    id = requested(store, site)
    assert submit(store, scheduler, site, client) == []
    assert str(site.run_dir) in allocation(store, id).reason
    site.run_dir.unlink()
    clock.now += 100
    assert submit(store, scheduler, site, client) == [id]


def test_a_job_that_ended_before_it_was_found_is_left_to_the_poll(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    faulty = Faulty(scheduler)
    faulty.lose_answer = True
    id = requested(store, site)
    submit(store, faulty, site, client)
    [native_id] = scheduler.jobs()
    scheduler.cancel(native_id)
    clock.now += 100
    submit(store, faulty, site, client)
    assert allocation(store, id).native_id == native_id
    assert scheduler.jobs()[native_id].state in JobState
    with pytest.raises(SchedulerError):
        scheduler.cancel("no such job")


def test_a_template_that_fails_is_named_and_tried_again(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    template = site.directory / "job.sh.j2"
    template.write_text("#!/bin/sh\n{{ nothing }}\n")
    settings = dataclasses.replace(site.settings.scheduler, template="job.sh.j2")
    site = dataclasses.replace(
        site, settings=dataclasses.replace(site.settings, scheduler=settings)
    )
    id = requested(store, site)
    assert submit(store, scheduler, site, client) == []
    assert "job.sh.j2:2" in allocation(store, id).reason
    template.write_text("#!/bin/sh\nexec {{ command }}\n")
    clock.now += 100
    assert submit(store, scheduler, site, client) == [id]


def test_a_queue_that_left_the_settings_is_refused(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    id = requested(store, site, Request("gone", 1, 300, ""))
    assert submit(store, scheduler, site, client) == []
    row = allocation(store, id)
    assert (row.state, row.native_id) == (AllocationState.FAILED, None)
    assert "no queue 'gone'" in row.reason
