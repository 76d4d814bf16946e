"""Celery results: from Redis, from SQL, and waiting for them."""

from __future__ import annotations

import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import group
from celery.app.task import Context
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import GroupResult, ResultSet

from balsam_celery.celeryapp import redis_client
from balsam_celery.errors import InvalidInput, NotFound, TaskFailed, TaskKilled, TaskTimeout
from balsam_celery.states import State
from balsam_celery.store import queries
from balsam_celery.tasks import query, waiting
from balsam_celery.tasks.connect import close, site_of
from balsam_celery.tasks.waiting import Progress, wait
from balsam_celery.wire import Ended, StepEnded
from tests.api.conftest import Played, make_app, use_redis
from tests.redis_server import RedisServer
from tests.waiting import wait_until

S = State


def keys_of(play: Played, id: str) -> list[bytes]:
    with redis_client(play.site) as client:
        return list(client.keys(f"*{id}*"))


def later(function: Any) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_success_from_redis_and_from_sql(play: Played) -> None:
    result = play.program("p", ["p"]).delay()
    play.run(result.id, out="hello\n")
    from_sql = play.app.AsyncResult(result.id).get(timeout=5)
    assert keys_of(play, result.id) == []
    play.perform()
    (key,) = keys_of(play, result.id)
    assert key.decode().startswith(play.site.settings.key_prefix)
    from_redis = play.app.AsyncResult(result.id).get(timeout=5)
    assert from_redis == from_sql
    assert from_redis["output_tail"] == "hello\n"
    assert (from_redis["exit_code"], from_redis["state"]) == (0, "JOB_FINISHED")
    with redis_client(play.site) as client:
        assert 0 < client.ttl(key) <= play.site.settings.results.copy_expires
        client.delete(key)
    assert play.app.AsyncResult(result.id).state == "SUCCESS"
    assert play.app.AsyncResult(result.id).successful()


@pytest.mark.parametrize("performed", [False, True], ids=["sql", "redis"])
def test_failures(play: Played, performed: bool) -> None:
    p = play.program("p", ["p"])
    failed, timed_out, killed = (p.delay() for _ in range(3))
    play.run(failed.id, code=3)
    play.start(timed_out.id)
    play.record(Ended(timed_out.id, 1, "timeout", "wall_time over", 2.0, started=1.0))
    query.kill(killed, reason="enough", app=play.app)
    if performed:
        play.perform()
    for result, cls, state in (
        (failed, TaskFailed, "FAILURE"),
        (timed_out, TaskTimeout, "FAILURE"),
        (killed, TaskKilled, "REVOKED"),
    ):
        with pytest.raises(cls) as caught:
            result.get(timeout=5)
        assert type(caught.value) is cls
        assert caught.value.outcome["task_id"] == result.id
        assert result.state == state
        assert "\n" not in str(caught.value)
    with pytest.raises(TaskFailed, match="exit code 3") as caught:
        failed.get()
    assert caught.value.outcome["exit_code"] == 3
    assert failed.get(propagate=False).outcome["work_dir"] == f"/work/{failed.id}/1"


def test_states_on_the_way(play: Played) -> None:
    result = play.program("p", ["p"], max_retries=1, retry_delay=0).delay()
    assert result.state == "PENDING"
    play.start(result.id)
    assert result.state == "STARTED"
    play.end(result.id, code=1)
    assert result.state == "RETRY"
    assert not result.ready()
    play.run(result.id)
    assert result.state == "SUCCESS"


def test_a_retry_by_hand_takes_the_failure_back(play: Played) -> None:
    p = play.program("p", ["p"])
    result = p.delay()
    play.run(result.id, code=1)
    play.perform()
    assert play.app.AsyncResult(result.id).state == "FAILURE"
    query.retry(result.id, app=play.app)
    play.perform()
    assert play.app.AsyncResult(result.id).state == "RETRY"
    play.run(result.id)
    assert play.app.AsyncResult(result.id).get(timeout=5)["attempts"] == 2


def test_waiting(play: Played) -> None:
    p = play.program("p", ["p"])
    result = p.delay()
    start = time.monotonic()
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=0.3)
    assert time.monotonic() - start > 0.25
    play.start(result.id)
    seen: list[Any] = []

    def finish() -> None:
        wait_until(lambda: seen, 10, "the wait has begun")
        play.end(result.id, out="x")
        play.perform()

    thread = later(finish)
    got = result.get(timeout=20, on_interval=lambda: seen.append(1), on_message=seen.append)
    thread.join()
    assert got["output_tail"] == "x"
    assert seen[-1]["status"] == "SUCCESS"


def test_groups(play: Played) -> None:
    p = play.program("p", ["p", "{0}"])
    results = group(p.s(n) for n in range(4)).apply_async()
    assert not results.ready()
    for number, result in enumerate(results):
        play.run(result.id, out=str(number))
        if number == 1:
            play.perform()  # some are in Redis, some in SQL alone
    assert [r["output_tail"] for r in results.get(timeout=5)] == ["0", "1", "2", "3"]
    assert [r["output_tail"] for r in results.join(timeout=5)] == ["0", "1", "2", "3"]
    assert [r["output_tail"] for r in ResultSet(list(results)).get(timeout=5)] == list("0123")
    assert results.successful()
    assert results.completed_count() == 4
    results.save()
    again = GroupResult.restore(results.id, app=play.app)
    assert [r.id for r in again] == [r.id for r in results]
    bad = group(p.s(1), p.s(2)).apply_async()
    play.run(bad[0].id, code=1)
    with pytest.raises(TaskFailed):
        bad.get(timeout=5)


def test_forget_leaves_the_row(play: Played) -> None:
    result = play.program("p", ["p"]).delay()
    play.run(result.id)
    play.perform()
    result.forget()
    assert keys_of(play, result.id) == []
    assert play.app.AsyncResult(result.id).state == "SUCCESS"


def test_ordinary_results_are_celerys(play: Played) -> None:
    backend = play.app.backend
    backend.store_result("ordinary", {"a": 1}, "SUCCESS")
    assert play.app.AsyncResult("ordinary").get(timeout=5) == {"a": 1}
    backend.store_result("bad", ValueError("no"), "FAILURE")
    with pytest.raises(ValueError, match="no"):
        play.app.AsyncResult("bad").get(timeout=5)
    assert play.app.AsyncResult("unknown").state == "PENDING"
    with pytest.raises(CeleryTimeoutError):
        play.app.AsyncResult("unknown").get(timeout=0.1)


def test_redis_down(deaf: Played, recwarn: pytest.WarningsRecorder) -> None:
    p = deaf.program("p", ["p"])
    results = group(p.s(), p.s()).apply_async()
    for result in results:
        deaf.run(result.id)
    assert [r["exit_code"] for r in results.get(timeout=10)] == [0, 0]
    assert results[0].state == "SUCCESS"
    with pytest.raises(redis.exceptions.ConnectionError):
        deaf.app.AsyncResult("ordinary").get(timeout=5)
    with pytest.raises(redis.exceptions.ConnectionError):
        _ = deaf.app.AsyncResult("ordinary").state


def test_redis_restarts_while_a_client_waits(
    bare_site: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "own-redis"
    directory.mkdir()
    server = RedisServer(directory)
    server.start()
    site = use_redis(bare_site, server.url)
    app = make_app(site, monkeypatch)
    from_site = Played(site, app, query.store_of(app))
    try:
        result = from_site.program("p", ["p"]).delay()
        looks: list[int] = []

        def outage() -> None:
            wait_until(lambda: looks, 10, "the wait has begun")
            server.stop(kill=True)
            from_site.run(result.id, out="during the outage")

        thread = later(outage)
        got = result.get(timeout=30, on_interval=lambda: looks.append(1))
        thread.join()
        assert got["output_tail"] == "during the outage"
        # a step that ends now is reported as soon as Redis is back
        thread = later(lambda: app.backend.mark_as_done("step-1", 7, step_request(1)))
        server.start()
        thread.join(20)
        from_site.perform()
        assert app.AsyncResult(result.id).get(timeout=5) == got
        ends = [one for one in from_site.inbox() if isinstance(one, StepEnded)]
        assert [(one.id, one.result) for one in ends] == [("step-1", 7)]
    finally:
        app.backend.client.close()
        app.close()
        close(app)
        server.stop()


def counted_silences(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Grows with each answer of Redis that is waited for in vain."""
    found: list[BaseException] = []
    read = redis.Connection.read_response

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return read(self, *args, **kwargs)
        except redis.exceptions.TimeoutError as error:
            found.append(error)
            raise

    monkeypatch.setattr(redis.Connection, "read_response", counted)
    return found


def test_redis_hangs(bare_site: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "own-redis"
    directory.mkdir()
    server = RedisServer(directory)
    server.start()
    app = make_app(use_redis(bare_site, server.url), monkeypatch)
    from_site = Played(site_of(app), app, query.store_of(app))
    try:
        result = from_site.program("p", ["p"]).delay()
        assert result.state == "PENDING"
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        silences = counted_silences(monkeypatch)
        # one silence each, not two: the row answers then
        assert result.state == "PENDING"
        assert len(silences) == 1
        with pytest.raises(CeleryTimeoutError):
            result.get(timeout=0.5)
        assert len(silences) == 2
    finally:
        assert server.process is not None
        server.process.send_signal(signal.SIGCONT)
        app.backend.client.close()
        app.close()
        close(app)
        server.stop()


def step_request(attempt: int) -> Any:
    """What Celery hands its backend for a step."""
    return Context(id="step-1", balsam_attempt=attempt, headers={"balsam_attempt": attempt})


def test_steps_report_to_the_service(play: Played) -> None:
    backend = play.app.backend
    backend.mark_as_done("step-1", {"x": [1]}, step_request(2))
    backend.mark_as_failure("step-1", ValueError("no", 3), "Traceback…", step_request(3))
    backend.mark_as_revoked("step-1", "terminated", step_request(4))
    done, failed, revoked = play.inbox()
    assert isinstance(done, StepEnded)
    assert (done.id, done.attempt, done.state, done.result) == ("step-1", 2, "SUCCESS", {"x": [1]})
    assert isinstance(failed, StepEnded)
    assert failed.result["exc_type"] == "ValueError"
    assert failed.traceback == "Traceback…"
    assert isinstance(revoked, StepEnded)
    assert revoked.state == "REVOKED"
    assert keys_of(play, "step-1") == []


def test_wait(play: Played) -> None:
    p = play.program("p", ["p"], workflow="w")
    results = [p.delay() for _ in range(3)]
    seen: list[Progress] = []
    with pytest.raises(TimeoutError, match="3 of 3 tasks are not final"):
        wait(results, timeout=0.05, app=play.app)
    play.run(results[0].id)
    play.run(results[1].id, code=1)
    thread = later(lambda: (wait_until(lambda: seen, 10), play.run(results[2].id)))
    progress = wait(workflow="w", timeout=20, on_progress=seen.append, app=play.app)
    thread.join()
    assert (progress.finished, progress.unsuccessful, progress.total) == (2, 1, 3)
    assert (progress.done, progress.successful) == (True, False)
    assert seen[0].finished == 1
    assert seen[-1] == progress
    mixed = [results[0].id[:8], query.get(results[1].id, app=play.app), GroupResult("g", results)]
    assert wait(mixed, app=play.app).total == 3
    with pytest.raises(NotFound):
        wait(["nowhere"], app=play.app)
    for call in ({}, {"selection": results, "workflow": "w"}, {"flow": "w"}):
        with pytest.raises(InvalidInput):
            wait(app=play.app, **call)  # type: ignore[arg-type]


def test_one_that_waits_for_many_does_not_spend_its_time_looking(
    play: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look of 40 ms is followed by a rest of 200 ms, one that takes no time by the shortest."""
    result = play.program("p", ["p"]).delay()
    now, looks, rests = [0.0], [0.0, 0.04, 5.0], list[float]()
    count = queries.count_tasks

    def slow(*args: Any) -> Any:
        now[0] += looks[min(len(rests), 2)]
        return count(*args)

    def sleep(seconds: float) -> None:
        rests.append(seconds)
        if len(rests) == len(looks):
            play.run(result.id)

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(waiting, "time", clock)
    monkeypatch.setattr(queries, "count_tasks", slow)
    assert wait([result], app=play.app).finished == 1
    assert rests == pytest.approx([0.02, 0.2, 0.5])
