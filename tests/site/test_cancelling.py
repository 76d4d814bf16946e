"""``down --cancel`` with schedulers that list their jobs, and with one that knows only ids."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from balsam_celery.errors import SchedulerError, SchedulerUnavailable, SiteError
from balsam_celery.schedulers import make_scheduler
from balsam_celery.schedulers.base import Capabilities, Job, JobRequest, JobState
from balsam_celery.schedulers.local import LocalScheduler
from balsam_celery.service.backoff import pauses
from balsam_celery.service.submit import IN_DOUBT
from balsam_celery.settings import LocalSettings
from balsam_celery.site import Site
from balsam_celery.siteinit import init
from balsam_celery.store.allocations import (
    insert_allocation,
    list_allocations,
    update_allocation,
)
from balsam_celery.store.engine import Store
from balsam_celery.store.migrate import upgrade
from balsam_celery.store.rows import AllocationState
from balsam_celery.supervisor import cancelling
from balsam_celery.supervisor.cancelling import cancel_allocations
from tests.waiting import wait_until


class ById(LocalScheduler):
    """The local scheduler as one that tells only of jobs whose ids it is given."""

    capabilities = Capabilities(finds_by_name=False)

    def jobs(self, ids: Collection[str] = ()) -> dict[str, Job]:
        return {id: job for id, job in super().jobs().items() if id in ids}


class Stuttering(LocalScheduler):
    """One that answers every second time."""

    asked = 0

    def jobs(self, ids: Collection[str] = ()) -> dict[str, Job]:
        type(self).asked += 1
        if self.asked % 2:
            raise SchedulerUnavailable("squeue did not end within 30 s")
        return super().jobs(ids)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = init(tmp_path / "site", local=LocalSettings(nodes=2, cores_per_node=1))
    made.pid_dir.mkdir(mode=0o700)
    upgrade(made.database_url(), None)
    return made


@pytest.fixture
def store(site: Site) -> Iterator[Store]:
    opened = Store.open(site.database_url())
    yield opened
    opened.close()


def use(monkeypatch: pytest.MonkeyPatch, site: Site, kind: type[LocalScheduler]) -> LocalScheduler:
    real = make_scheduler("local", settings=site.settings, local_dir=site.local_dir)
    real.__class__ = kind
    assert isinstance(real, LocalScheduler)
    monkeypatch.setattr(cancelling, "make_scheduler", lambda *_, **__: real)
    return real


def submit(scheduler: LocalScheduler, directory: Path, name: str) -> str:
    script = directory / "job.sh"
    script.write_text("#!/bin/sh\nexec sleep 1000\n")
    return scheduler.submit(JobRequest(name, "local", 2, 3600, script, directory))


def allocate(store: Store, id: str, native_id: str, state: AllocationState) -> None:
    with store.write() as conn:
        insert_allocation(conn, id=id, queue="local", nodes=2, wall_time=3600, run_dir="", now=1.0)
        update_allocation(
            conn, id, (AllocationState.REQUESTED,), native_id=native_id, state=state.value
        )


def test_ids_come_from_the_database(
    site: Site, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = use(monkeypatch, site, ById)
    ids = [submit(scheduler, tmp_path, f"job-{number}") for number in range(2)]
    allocate(store, "a1", ids[0], AllocationState.RUNNING)
    allocate(store, "a2", ids[1], AllocationState.QUEUED)
    wait_until(lambda: scheduler.jobs(ids)[ids[0]].state is JobState.RUNNING, 30, "the job runs")
    said: list[str] = []
    assert cancel_allocations(site, said.append) is None
    # the one that waits first, or it would start
    assert said == [
        f"cancelling allocation {ids[1]}",
        f"cancelling allocation {ids[0]}",
        "the cancelled allocations have ended",
    ]
    assert [scheduler.jobs(ids)[id].state for id in ids] == [JobState.ENDED] * 2


def test_what_only_a_person_can_know_is_told(
    site: Site, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate(store, "a3", IN_DOUBT, AllocationState.REQUESTED)
    use(monkeypatch, site, ById)
    trouble = cancel_allocations(site, lambda line: None)
    assert isinstance(trouble, SiteError)
    assert "it is not known whether the scheduler has jobs of a3" in str(trouble)
    use(monkeypatch, site, LocalScheduler)  # which would have listed it
    assert cancel_allocations(site, lambda line: None) is None


def test_a_scheduler_that_does_not_answer_is_asked_again(
    site: Site, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stuttering.asked = 0
    scheduler = use(monkeypatch, site, Stuttering)
    id = submit(scheduler, tmp_path, "job")
    assert cancel_allocations(site, lambda line: None) is None
    assert Stuttering.asked >= 4
    plain = make_scheduler("local", settings=site.settings, local_dir=site.local_dir)
    assert plain.jobs()[id].state is JobState.ENDED


def test_silence_is_told_in_the_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancelling, "CANCEL_TIMEOUT", -3600.0)
    Stuttering.asked = 0
    use(monkeypatch, site, Stuttering)
    trouble = cancel_allocations(site, lambda line: None)
    assert isinstance(trouble, SchedulerUnavailable)


def test_before_the_first_up_there_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = init(tmp_path / "site")
    use(monkeypatch, site, ById)
    assert cancel_allocations(site, lambda line: None) is None
    assert not site.database_path.exists()


class Stubborn(LocalScheduler):
    """One that cancels some jobs not at all, and is silent about others a few times."""

    refused: ClassVar[set[str]] = set()
    silent: ClassVar[dict[str, int]] = {}
    asked: ClassVar[list[str]] = []

    def cancel(self, native_id: str) -> None:
        self.asked.append(native_id)
        if native_id in self.refused:
            raise SchedulerError(f"{native_id} is not yours")
        if self.silent.get(native_id, 0):
            self.silent[native_id] -= 1
            raise SchedulerUnavailable("scancel did not end within 30 s")
        super().cancel(native_id)


@pytest.fixture
def stubborn(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubborn]:
    for name, empty in (("refused", set()), ("silent", {}), ("asked", [])):
        monkeypatch.setattr(Stubborn, name, empty)
    scheduler = use(monkeypatch, site, Stubborn)
    assert isinstance(scheduler, Stubborn)
    yield scheduler
    plain = make_scheduler("local", settings=site.settings, local_dir=site.local_dir)
    for id in plain.jobs():
        plain.cancel(id)
    wait_until(lambda: all(j.state is JobState.ENDED for j in plain.jobs().values()), 30, "the end")


def test_one_that_is_refused_stops_none_of_the_others(
    site: Site, stubborn: Stubborn, tmp_path: Path
) -> None:
    ids = [submit(stubborn, tmp_path, f"job-{number}") for number in range(3)]
    wait_until(lambda: stubborn.jobs()[ids[0]].state is JobState.RUNNING, 30, "the job runs")
    stubborn.refused.add(ids[1])
    trouble = cancel_allocations(site, lambda line: None)
    assert isinstance(trouble, SchedulerError)
    assert str(trouble) == (f"allocations could not be cancelled: {ids[1]} ({ids[1]} is not yours)")
    states = {id: job.state is JobState.ENDED for id, job in stubborn.jobs().items()}
    assert states == {ids[0]: True, ids[1]: False, ids[2]: True}
    assert sorted(stubborn.asked) == sorted(ids), "each was asked for once"


def test_those_that_get_no_answer_go_to_the_end_of_the_line(
    site: Site, stubborn: Stubborn, tmp_path: Path
) -> None:
    ids = [submit(stubborn, tmp_path, f"job-{number}") for number in range(4)]
    wait_until(lambda: stubborn.jobs()[ids[0]].state is JobState.RUNNING, 30, "the job runs")
    stubborn.silent.update({ids[1]: 1, ids[2]: 1})
    assert cancel_allocations(site, lambda line: None) is None
    # after two silences the rest has its turn first
    assert stubborn.asked[:2] == [ids[1], ids[2]]
    assert stubborn.asked[2:] == [ids[3], ids[0], ids[1], ids[2]]


def test_all_are_marked_and_what_was_never_sent_ends_at_once(
    site: Site, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = use(monkeypatch, site, LocalScheduler)
    allocate(store, "a1", submit(scheduler, tmp_path, "job"), AllocationState.QUEUED)
    allocate(store, "a2", IN_DOUBT, AllocationState.REQUESTED)
    with store.write() as conn:
        for id in ("a3", "a4"):
            insert_allocation(
                conn, id=id, queue="local", nodes=2, wall_time=60, run_dir="", now=1.0
            )
        update_allocation(
            conn, "a4", (AllocationState.REQUESTED,), cancel_requested=2.0, reason="by the user"
        )
    assert cancel_allocations(site, lambda line: None) is None
    with store.read() as conn:
        rows = {row.id: row for row in list_allocations(conn)}
    assert {id: (row.state, row.reason) for id, row in rows.items()} == {
        "a1": (AllocationState.QUEUED, cancelling.REASON),
        "a2": (AllocationState.REQUESTED, cancelling.REASON),
        "a3": (AllocationState.ENDED, cancelling.REASON),
        "a4": (AllocationState.ENDED, "by the user"),
    }
    assert all(row.cancel_requested is not None for row in rows.values())
    update = {"state": AllocationState.ENDED, "ended": store.clock()}
    with store.write() as conn:
        update_allocation(conn, "a1", (AllocationState.QUEUED,), **update)
    with store.read() as conn:
        assert pauses(conn, "local", store.clock()) is None, "the next up asks again at once"
