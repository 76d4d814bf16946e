"""Submissions whose answer was lost: found by name or by the pilot's claim, or held."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Collection
from pathlib import Path

import pytest
import redis

from balsam_celery import keys
from balsam_celery.resources import NodeCapacity
from balsam_celery.schedulers.base import Job, JobRequest, JobState, Scheduler
from balsam_celery.schedulers.slurm import SlurmScheduler
from balsam_celery.service.poll import Poller
from balsam_celery.service.record import Recorded, record
from balsam_celery.service.submit import IN_DOUBT, IN_DOUBT_PAUSE, in_doubt_for, submit
from balsam_celery.site import Site
from balsam_celery.store import allocations
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationState, PilotState
from balsam_celery.wire import Registered
from tests.redis_server import RedisServer
from tests.service.allocations.faulty import Faulty, Nameless
from tests.service.allocations.making import allocation, pilot, requested, set_allocation
from tests.store.conftest import Clock
from tests.waiting import wait_until

S = AllocationState


class Vanishing(Faulty):
    """The process that submits dies between the job and its answer."""

    def submit(self, request: JobRequest) -> str:
        """Submit, and die."""
        super().submit(request)
        raise KeyboardInterrupt


SLOW_SBATCH = """#!/bin/sh
# the controller's queue is full: it tries for a while, and then the job is taken
cd "$(dirname "$0")"
if [ ! -e asked ]; then
    touch asked
    until [ -e room ]; do sleep 0.05; done
fi
for script; do :; done
name=$(sed -n 's/^#SBATCH --job-name=//p' "$script")
number=$(($(cat jobs 2>/dev/null | wc -l) + 1))
echo "balsam:$number|PENDING|N/A|N/A||$name|Priority" >> jobs
echo "$number"
"""
SQUEUE = """#!/bin/sh
cat "$(dirname "$0")/jobs" 2>/dev/null || true
"""


def _submits(url: str, site: Site, redis_url: str) -> None:
    """The service of another life, as far as it goes."""
    with redis.Redis.from_url(redis_url) as client:
        slurm = SlurmScheduler(site.settings.site.id, site.settings.scheduler.command_timeout)
        submit(Store.open(url, clock=lambda: 1000.0), slurm, site, client)


def claim(client: redis.Redis, site: Site, id: str, native_id: str) -> None:
    client.set(keys.claim(site.settings.key_prefix, id), native_id)


def registers(store: Store, id: str, native_id: str, pilot_id: str = "p1") -> Recorded:
    now = store.clock()
    nodes = (NodeCapacity("n0", (0, 1)),)
    one = Registered(pilot_id, id, "here", 1, now + 300, nodes, now, native_id)
    return store.run(lambda conn: record(conn, [one], now=now))


def lost_answer(store: Store, scheduler: Scheduler, site: Site, client: redis.Redis) -> Nameless:
    """A nameless scheduler that has taken the one job that was requested, and did not say so."""
    nameless = Nameless(scheduler)
    nameless.lose_answer = True
    assert submit(store, nameless, site, client) == []
    assert len(scheduler.jobs()) == 1
    return nameless


def test_without_names_it_is_held_and_never_sent_again(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = requested(store, site)
    nameless = lost_answer(store, scheduler, site, client)
    for _ in range(5):
        row = allocation(store, id)
        assert (row.state, row.native_id) == (S.REQUESTED, IN_DOUBT)
        assert "the answer was lost" in row.reason
        assert f"balsam allocations cancel {id}" in row.reason
        clock.now += 1000
        assert submit(store, nameless, site, client) == []
    assert nameless.submissions == 1


def test_another_request_goes_on_beside_a_held_one(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    held = requested(store, site)
    nameless = lost_answer(store, scheduler, site, client)
    nameless.lose_answer = False
    other = requested(store, site)
    assert submit(store, nameless, site, client) == [other]
    assert allocation(store, held).state is S.REQUESTED


def test_a_held_one_is_found_by_its_claim(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = requested(store, site)
    nameless = lost_answer(store, scheduler, site, client)
    [native_id] = scheduler.jobs()
    claim(client, site, id, native_id)
    clock.now += 100
    assert submit(store, nameless, site, client) == [id]
    row = allocation(store, id)
    assert (row.state, row.native_id, row.reason) == (S.QUEUED, native_id, "")
    poller = Poller(store, nameless, site)
    poller.poll()
    assert allocation(store, id).state is S.RUNNING


def test_a_pilot_that_calls_makes_it_run(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    id = requested(store, site)
    lost_answer(store, scheduler, site, client)
    assert not registers(store, id, "local-1").unwanted
    row = allocation(store, id)
    assert (row.state, row.native_id, row.reason) == (S.RUNNING, "local-1", "")
    assert row.started is not None
    assert pilot(store, "p1").allocation == id


def test_a_pilot_that_does_not_know_its_job_leaves_the_doubt(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    id = requested(store, site)
    lost_answer(store, scheduler, site, client)
    registers(store, id, "")
    assert allocation(store, id).state is S.REQUESTED


def test_a_held_one_that_the_user_gives_up_is_over_and_its_pilot_is_sent_home(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    id = requested(store, site)
    nameless = lost_answer(store, scheduler, site, client)
    set_allocation(
        store, id, S.REQUESTED, cancel_requested=clock.now, reason="cancelled by the user"
    )
    clock.now += 100
    assert submit(store, nameless, site, client) == []
    row = allocation(store, id)
    assert (row.state, row.reason) == (S.ENDED, "cancelled by the user")
    told = registers(store, id, "local-1")
    assert told.unwanted == (("p1", "its allocation is over: cancelled by the user"),)
    with store.read() as conn:
        [pilot] = allocations.list_pilots(conn)
    assert (pilot.state, pilot.reason) == (PilotState.ENDED, told.unwanted[0][1])


def test_what_never_left_is_not_held(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    site.run_dir.write_text("a file in the way")
    id = requested(store, site)
    nameless = Nameless(scheduler)
    assert submit(store, nameless, site, client) == []
    assert allocation(store, id).native_id is None
    site.run_dir.unlink()
    clock.now += 100
    assert submit(store, nameless, site, client) == [id]


@pytest.mark.parametrize("named", [True, False], ids=["by name", "nameless"])
def test_the_service_dies_before_it_has_the_answer(
    store: Store,
    site: Site,
    scheduler: Scheduler,
    client: redis.Redis,
    clock: Clock,
    named: bool,
) -> None:
    id = requested(store, site)
    with pytest.raises(KeyboardInterrupt):
        submit(store, Vanishing(scheduler), site, client)
    assert allocation(store, id).native_id == IN_DOUBT
    clock.now += 1000
    again = Faulty(scheduler) if named else Nameless(scheduler)
    assert submit(store, again, site, client) == ([id] if named else [])
    assert again.submissions == 0
    assert len(scheduler.jobs()) == 1
    assert allocation(store, id).state is (S.QUEUED if named else S.REQUESTED)


def test_a_command_that_outlives_the_service_is_not_run_again_beside_itself(
    store: Store,
    url: str,
    site: Site,
    client: redis.Redis,
    redis_server: RedisServer,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, text in (("sbatch", SLOW_SBATCH), ("squeue", SQUEUE)):
        (bin / name).write_text(text, encoding="utf-8")
        (bin / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{bin}{os.pathsep}{os.environ['PATH']}")
    scheduler = dataclasses.replace(site.settings.scheduler, kind="slurm", command_timeout=20)
    site = dataclasses.replace(
        site, settings=dataclasses.replace(site.settings, scheduler=scheduler)
    )
    id = requested(store, site)
    service = multiprocessing.get_context("fork").Process(
        target=_submits, args=(url, site, redis_server.url)
    )
    service.start()
    try:
        wait_until((bin / "asked").exists, 30, "sbatch to be run")
        service.kill()
        service.join()
        again = SlurmScheduler(site.settings.site.id, scheduler.command_timeout)
        clock.now += scheduler.command_timeout + IN_DOUBT_PAUSE
        assert submit(store, again, site, client) == []
        assert not (bin / "jobs").exists()
    finally:
        (bin / "room").touch()
        wait_until((bin / "jobs").exists, 30, "the job to be taken")
    clock.now += in_doubt_for(site)
    assert submit(store, again, site, client) == [id]
    assert list(again.jobs()) == ["1"]
    assert allocation(store, id).native_id == "1"


def test_a_list_from_before_the_doubt_was_over_does_not_end_it(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    doubt, other = requested(store, site), requested(store, site)
    set_allocation(store, doubt, S.REQUESTED, native_id=IN_DOUBT, submitted=clock.now)
    clock.now += in_doubt_for(site) - 1

    class Slow(Faulty):
        def submit(self, request: JobRequest) -> str:
            clock.now += 2
            return super().submit(request)

        def jobs(self, ids: Collection[str] = ()) -> dict[str, Job]:
            clock.now += 2
            return super().jobs(ids)

    faulty = Slow(scheduler)
    assert submit(store, faulty, site, client) == [other]
    assert faulty.submissions == 1
    assert submit(store, faulty, site, client) == [doubt]


def test_a_job_that_came_and_went_unseen_is_known_by_its_claim(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis, clock: Clock
) -> None:
    """The scheduler has forgotten the job; its pilot has served, so it is not sent again."""
    id = requested(store, site)
    set_allocation(store, id, S.REQUESTED, native_id=IN_DOUBT, submitted=clock.now)
    claim(client, site, id, "local-77")
    clock.now += 100
    faulty = Faulty(scheduler)
    submit(store, faulty, site, client)
    assert faulty.submissions == 0
    assert allocation(store, id).native_id == "local-77"


def test_without_redis_a_doubt_stays_and_the_rest_goes_on(
    store: Store, site: Site, scheduler: Scheduler, clock: Clock
) -> None:
    away = redis.Redis(host="127.0.0.1", port=1)
    doubt, fresh = requested(store, site), requested(store, site)
    set_allocation(store, doubt, S.REQUESTED, native_id=IN_DOUBT, submitted=clock.now - 100)
    assert submit(store, Faulty(scheduler), site, away) == [fresh]
    assert allocation(store, doubt).state is S.REQUESTED


def test_a_second_incarnation_of_one_job_fences_the_first(store: Store, site: Site) -> None:
    id = requested(store, site)
    set_allocation(store, id, S.QUEUED, native_id="j1")
    registers(store, id, "j1")
    assert not registers(store, id, "j1", "p2").unwanted
    assert pilot(store, "p1").state is PilotState.DRAINING
    assert "p2" in pilot(store, "p1").reason
    assert pilot(store, "p2").state is PilotState.LIVE
    assert not registers(store, id, "j1").unwanted, "the first one's report again"
    assert pilot(store, "p2").state is PilotState.LIVE


def test_a_pilot_of_a_strange_allocation_is_sent_home(store: Store, site: Site) -> None:
    assert registers(store, "nothing", "j1").unwanted == (
        ("p1", "the site has no allocation nothing"),
    )


def test_the_job_of_an_allocation_in_doubt_is_not_a_stray(
    store: Store, site: Site, scheduler: Scheduler, client: redis.Redis
) -> None:
    both = {requested(store, site), requested(store, site)}
    faulty = Faulty(scheduler)
    faulty.lose_answer = True
    submit(store, faulty, site, client)
    faulty.lose_answer = False
    [sent] = submit(store, faulty, site, client)
    [doubt] = both - {sent}
    assert allocation(store, doubt).native_id == IN_DOUBT
    Poller(store, faulty, site).poll()
    states = [job.state for job in scheduler.jobs().values()]
    assert JobState.ENDED not in states
