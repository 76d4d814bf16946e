"""What every scheduler adapter must do, whatever the scheduler: one set of tests over all kinds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery import schedulers
from balsam_celery.errors import SchedulerError, SchedulerUnavailable
from balsam_celery.schedulers.base import JobState
from balsam_celery.site import config_file
from tests.schedulers.harness import SECRET, SECRET_VALUE, Harness
from tests.schedulers.harness_local import LocalHarness
from tests.schedulers.harness_pbs import PbsHarness
from tests.schedulers.harness_psij import PsijHarness
from tests.schedulers.harness_slurm import SlurmHarness
from tests.slurm_cluster import SlurmCluster
from tests.waiting import wait_until

ENDED, QUEUED, RUNNING = JobState.ENDED, JobState.QUEUED, JobState.RUNNING


def make_harness(kind: str, root: Path, request: pytest.FixtureRequest) -> Harness:
    """The harness of a kind; a kind that has none fails."""
    if kind == "slurm":
        cluster: SlurmCluster = request.getfixturevalue("slurm_cluster")
        monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        return SlurmHarness(root, cluster)
    made: dict[str, type[Harness]] = {
        "local": LocalHarness,
        "pbs": PbsHarness,
        "psij": PsijHarness,
    }
    assert kind in made, f"the scheduler {kind!r} has no harness: nobody knows what it does"
    return made[kind](root)


@pytest.fixture(params=schedulers.kinds())
def harness(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Harness]:
    monkeypatch.setenv(SECRET, SECRET_VALUE)
    made = make_harness(request.param, tmp_path, request)
    try:
        yield made
    finally:
        made.stop()


def test_the_template_of_its_batch_script_is_there(harness: Harness) -> None:
    assert config_file(f"jobs/{harness.scheduler.template}").is_file()


def test_a_job_runs_and_ends(harness: Harness) -> None:
    before = time.time()
    request = harness.request()
    native_id = harness.scheduler.submit(request)
    told = harness.wait_for(native_id, RUNNING)
    assert told is not None
    assert told.native_id == native_id
    assert told.name in (request.name, "")
    assert told.ended is None
    assert not told.impossible
    harness.finish(request)
    ended = harness.wait_for(native_id, ENDED)
    if ended is not None:  # else the scheduler forgets a job as it ends
        assert ended.native_id == native_id
        assert ended.ended is None or ended.ended >= int(before)
        assert not ended.nodes


def test_another_process_of_the_site_sees_the_same(harness: Harness) -> None:
    """Nothing that counts is kept in the adapter: the service may be started anew."""
    native_id = harness.scheduler.submit(harness.request())
    harness.wait_for(native_id, RUNNING)
    assert harness.scheduler.jobs([native_id])[native_id].state is RUNNING
    harness.scheduler.cancel(native_id)
    harness.wait_for(native_id, ENDED)


def test_a_bad_end_is_told(harness: Harness) -> None:
    request = harness.request()
    native_id = harness.scheduler.submit(request)
    harness.finish(request, status=3)
    ended = harness.wait_for(native_id, ENDED)
    assert ended is None or ended.reason not in ("", "exit status 0")


def test_a_job_whose_submission_was_not_answered_is_found_by_its_name(harness: Harness) -> None:
    if not harness.scheduler.capabilities.finds_by_name:
        pytest.skip("it cannot be asked: the pilot's claim tells")
    request = harness.request()
    native_id = harness.scheduler.submit(request)
    names = {job.name: id for id, job in harness.scheduler.jobs().items()}
    assert names == {request.name: native_id}


def test_jobs_of_other_sites_are_not_its(harness: Harness) -> None:
    if not harness.scheduler.capabilities.finds_by_name:
        pytest.skip("it tells only of jobs whose ids it was given")
    other = harness.make(harness.settings(site=f"{harness.site}x"))
    native_id = harness.scheduler.submit(harness.request())
    assert other.jobs() == {}
    harness.scheduler.cancel(native_id)


def test_an_unknown_job_is_missing(harness: Harness) -> None:
    native_id = harness.scheduler.submit(harness.request())
    told = harness.scheduler.jobs([native_id, harness.unknown_id])
    assert set(told) == {native_id}
    assert harness.unknown_id not in harness.scheduler.jobs([harness.unknown_id])


def test_a_job_is_cancelled_and_again(harness: Harness) -> None:
    native_id = harness.scheduler.submit(harness.request())
    harness.wait_for(native_id, RUNNING)
    harness.scheduler.cancel(native_id)
    harness.scheduler.cancel(native_id)
    ended = harness.wait_for(native_id, ENDED)
    assert ended is None or ended.reason not in ("", "exit status 0")
    harness.scheduler.cancel(native_id)


def test_to_cancel_an_unknown_job_is_harmless_or_refused(harness: Harness) -> None:
    try:
        harness.scheduler.cancel(harness.unknown_id)
    except SchedulerError as error:
        assert not isinstance(error, SchedulerUnavailable), "it is known that there is none"
    with pytest.raises(SchedulerError):
        harness.scheduler.cancel("--all")


def test_what_is_refused_is_told_in_one_line(harness: Harness) -> None:
    request = harness.refused()
    if request is None:
        pytest.skip("it refuses nothing at once")
    with pytest.raises(SchedulerError) as caught:
        harness.scheduler.submit(request)
    assert not isinstance(caught.value, SchedulerUnavailable), "it is known that it has no such job"
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_can_never_start_is_told(harness: Harness) -> None:
    request = harness.impossible()
    if request is None:
        pytest.skip("it accepts nothing that can never start")
    native_id = harness.scheduler.submit(request)

    def told() -> bool:
        job = harness.scheduler.jobs([native_id])[native_id]
        assert job.state is QUEUED
        return job.impossible

    wait_until(told, 60, "the job to be told impossible")
    assert harness.scheduler.jobs([native_id])[native_id].reason


def test_no_answer_is_not_known(harness: Harness) -> None:
    """Never an empty list, which would mean that all jobs have ended."""
    native_id = harness.scheduler.submit(harness.request())
    request = harness.request()
    with harness.unavailable() as scheduler:
        with pytest.raises(SchedulerUnavailable) as caught:
            scheduler.jobs([native_id])
        with pytest.raises(SchedulerUnavailable):
            scheduler.submit(request)
        with pytest.raises(SchedulerUnavailable):
            scheduler.cancel(native_id)
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    assert native_id in harness.scheduler.jobs([native_id]), "it answers again, and forgot nothing"


def test_a_pilot_learns_its_nodes(harness: Harness) -> None:
    request = harness.request(nodes=2)
    native_id = harness.scheduler.submit(request)
    environment = harness.environment(request)
    inside = harness.scheduler.inside(environment)
    assert inside.native_id == native_id
    assert len({node.name for node in inside.nodes}) == 2
    assert all(node.cores for node in inside.nodes)
    assert time.time() < inside.end_time <= time.time() + request.wall_time + 60
    told = harness.scheduler.jobs([native_id])[native_id]
    assert not told.nodes or set(told.nodes) == {node.name for node in inside.nodes}
    assert harness.scheduler.down_nodes([node.name for node in inside.nodes]) == frozenset()


def test_a_node_of_a_running_job_is_given_back_and_again(harness: Harness) -> None:
    if not harness.scheduler.capabilities.releases_nodes:
        pytest.skip("its jobs keep their nodes")
    request = harness.request(nodes=2)
    native_id = harness.scheduler.submit(request)
    head, other = (
        node.name for node in harness.scheduler.inside(harness.environment(request)).nodes
    )
    harness.scheduler.release(native_id, [other], [head])
    with contextlib.suppress(SchedulerUnavailable):  # another answer is no harm
        harness.scheduler.release(native_id, [other], [head])

    def is_back() -> bool:
        told = harness.scheduler.jobs([native_id])[native_id]
        assert told.state is RUNNING
        return other not in told.nodes

    wait_until(is_back, 30, "the job goes on without it")
    harness.finish(request)
    harness.wait_for(native_id, ENDED)


def test_a_node_is_lost_under_a_job_that_goes_on(harness: Harness) -> None:
    if not harness.loses_nodes:
        pytest.skip("its harness takes no node away")
    request = harness.request(nodes=2)
    native_id = harness.scheduler.submit(request)
    nodes = [node.name for node in harness.scheduler.inside(harness.environment(request)).nodes]
    harness.lose(nodes[1])
    scheduler = harness.scheduler
    wait_until(lambda: scheduler.down_nodes(nodes) == {nodes[1]}, 60, "it is given up")
    assert harness.scheduler.jobs([native_id])[native_id].state is RUNNING
    harness.finish(request)
    harness.wait_for(native_id, ENDED)


def test_outside_a_job_there_is_nothing_inside(harness: Harness) -> None:
    with pytest.raises(SchedulerError, match="not inside a job") as caught:
        harness.scheduler.inside({"PATH": "/usr/bin"})
    assert not isinstance(caught.value, SchedulerUnavailable)


def test_a_job_sees_no_secret(harness: Harness) -> None:
    request = harness.request()
    harness.scheduler.submit(request)
    environment = harness.environment(request)
    assert SECRET not in environment
    assert SECRET_VALUE not in environment.values()


def test_queues_are_described(harness: Harness) -> None:
    queues = harness.scheduler.queues()
    if not harness.scheduler.capabilities.tells_queues:
        assert queues == ()
        return
    assert queues
    for queue in queues:
        assert 1 <= queue.min_nodes <= queue.max_nodes
        assert queue.cores_per_node >= 1
        assert queue.max_wall_time is None or queue.max_wall_time > 0
    assert len({queue.name for queue in queues}) == len(queues)


def test_idle_nodes_are_of_its_queues(harness: Harness) -> None:
    idle = harness.scheduler.idle()
    if not harness.scheduler.capabilities.tells_idle:
        assert idle == ()
        return
    queues = {queue.name: queue for queue in harness.scheduler.queues()}
    assert idle, "no job runs"
    assert all(0 < window.nodes <= queues[window.queue].max_nodes for window in idle)
