"""The tasks worker: steps report to the service, kills go to it, all else is Celery's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chord

from balsam_celery import keys
from balsam_celery.celeryapp import redis_client
from balsam_celery.service.publish import Publisher
from balsam_celery.site import Site
from balsam_celery.states import State
from balsam_celery.supervisor.children import CELERY_COMMAND
from balsam_celery.wire import KillAsked, Record, StepEnded, StepStarted
from tests.api.conftest import Played
from tests.waiting import wait_until

MODULE = """
import time
from pathlib import Path
from celery import shared_task
from celery import Task
from celery.exceptions import Ignore, Reject
from balsam_celery import program

inner = program("inner", ["inner.x", "{0}"])


@shared_task
def add(x, y=0):
    return x + y


@shared_task
def total(values):
    return sum(values)


@shared_task(ignore_result=True)
def silent():
    return "said"


@shared_task
def fail():
    raise ValueError("on purpose", 7)


@shared_task
def unserializable():
    return object()


@shared_task
def nested():
    value = []
    for _ in range(400):
        value = [value]
    return value


@shared_task
def ignore():
    raise Ignore()


@shared_task
def reject():
    raise Reject("no", requeue=False)


@shared_task(bind=True, max_retries=2)
def flaky(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return self.request.retries


@shared_task(bind=True)
def replaced(self):
    return self.replace(add.s(20, 22))


@shared_task(bind=True)
def replaced_by_chain(self):
    return self.replace(add.s(1) | add.s(2))


@shared_task
def sleeper(path):
    Path(path).touch()
    time.sleep(600)


class Plain(Task):
    abstract = True


@shared_task(bind=True, base=Plain)
def plain(self, path):
    hold(self, path)


@shared_task(bind=True)
def held(self, path):
    hold(self, path)


def hold(self, path):
    with open(path, "a") as file:
        file.write(f"{self.request.balsam_attempt}\\n")
    while not Path(path + ".go").exists():
        time.sleep(0.02)


@shared_task
def start_program():
    return inner.delay("from a task").id


@shared_task
def on_error(request, exc, traceback, path):
    Path(path).write_text(f"{request.id} {type(exc).__name__} {exc}")
"""


@pytest.fixture
def worker(site: Site, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A tasks worker as ``balsam up`` starts it."""
    path = site.directory / "site.toml"
    text = path.read_text(encoding="utf-8").replace("imports = []", 'imports = ["user_steps"]')
    assert "user_steps" in text
    path.write_text(text, encoding="utf-8")
    (site.directory / "user_steps.py").write_text(MODULE, encoding="utf-8")
    environment = {**os.environ, "BALSAM_SITE": str(site.directory), "BALSAM_ROLE": "tasks"}
    command = [
        sys.executable, "-P", "-m", CELERY_COMMAND, "worker", "-Q", keys.TASKS_QUEUE,
        "-n", "tasks@here", "-c", "2", "--without-gossip", "--without-mingle", "-l", "INFO",
    ]  # fmt: skip
    log = tmp_path / "worker.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: b" ready." in log.read_bytes(), 60, "the worker is ready")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            # a step that a failed test has left goes on for ever
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
            raise
        print(log.read_text(errors="replace"))


class Service:
    """Sends steps and gathers what is reported."""

    def __init__(self, play: Played) -> None:
        self.play = play
        self.publisher = Publisher(play.app)
        self.records: list[Record] = []

    def send(self, name: str, *args: Any, id: str, attempt: int = 1, **kwargs: Any) -> None:
        headers = {"balsam_attempt": attempt}
        name = f"user_steps.{name}" if "." not in name else name
        self.publisher.task(keys.TASKS_QUEUE, name, args, kwargs, id=id, headers=headers)

    def gather(self, kind: type[Any], id: str, attempt: int = 1) -> Any:
        """The report of that kind."""

        def look() -> Any:
            self.records += self.play.inbox()
            fitting = [
                one
                for one in self.records
                if isinstance(one, kind) and (one.id, one.attempt) == (id, attempt)
            ]
            assert len(fitting) <= 1, fitting
            return fitting[0] if fitting else None

        return wait_until(look, 30, f"{kind.__name__} of {id}")

    def end(self, id: str, attempt: int = 1) -> StepEnded:
        ended: StepEnded = self.gather(StepEnded, id, attempt)
        return ended


@pytest.fixture
def service(play: Played) -> Iterator[Service]:
    made = Service(play)
    yield made
    made.publisher.close()


def test_steps(worker: object, service: Service, tmp_path: Path) -> None:
    send, end = service.send, service.end
    send("add", 1, y=2, id="s-add")
    send("silent", id="s-silent")
    send("fail", id="s-fail", attempt=4)
    send("unserializable", id="s-object")
    send("nested", id="s-nested")
    send("ignore", id="s-ignore")
    send("reject", id="s-reject")
    send("flaky", id="s-flaky")
    send("replaced", id="s-replaced")
    send("replaced_by_chain", id="s-chain")
    send("start_program", id="s-program")
    failure = {"task_id": "some-task", "name": "relax", "reason": "exit code 3", "outcome": "exit"}
    plain = {
        "task": "user_steps.on_error", "args": (), "kwargs": {"path": str(tmp_path / "errback")},
        "options": {}, "subtask_type": None, "immutable": False,
    }  # fmt: skip
    send("balsam.errback", failure, plain, id="s-errback")

    assert (end("s-add").state, end("s-add").result) == ("SUCCESS", 3)
    assert service.gather(StepStarted, "s-add").worker == "tasks@here"
    assert end("s-silent").result == "said"
    failed = end("s-fail", 4)
    assert (failed.state, failed.result["exc_type"]) == ("FAILURE", "ValueError")
    assert failed.result["exc_message"] == ["on purpose", 7]
    assert "on purpose" in (failed.traceback or "")
    assert end("s-object").state == "FAILURE"
    assert end("s-object").result["exc_type"] == "EncodeError"
    assert end("s-nested").result["exc_type"] == "EncodeError"
    assert (end("s-ignore").state, end("s-reject").state) == ("FAILURE", "FAILURE")
    assert (end("s-flaky").state, end("s-flaky").result) == ("SUCCESS", 2)
    assert (end("s-replaced").state, end("s-replaced").result) == ("SUCCESS", 42)
    assert end("s-chain").state == "FAILURE"
    made = service.play.task(end("s-program").result)
    assert (made.argv, made.state) == (["inner.x", "from a task"], State.PREPROCESSED)
    assert end("s-errback").state == "SUCCESS"
    assert (tmp_path / "errback").read_text() == "some-task TaskFailed exit code 3"
    with redis_client(service.play.site) as client:
        assert list(client.keys("*celery-task-meta-s-*")) == []


def test_ordinary_tasks_are_celerys(worker: object, play: Played) -> None:
    app = play.app

    def sign(name: str, *args: Any) -> Any:
        return app.signature(f"user_steps.{name}", args=args)

    assert sign("add", 1, 2).apply_async().get(timeout=30) == 3
    assert (
        chord([sign("add", n, 0) for n in range(4)], sign("total"), app=app)().get(timeout=30) == 6
    )
    with pytest.raises(ValueError, match="on purpose"):
        sign("fail").apply_async().get(timeout=30)
    assert (sign("add", 1) | sign("add", 2)).apply_async().get(timeout=30) == 3
    assert play.rows() == []


def test_kills_go_to_the_service(worker: object, service: Service, tmp_path: Path) -> None:
    app = service.play.app
    app.AsyncResult("some-id").revoke()
    app.AsyncResult("other-id").revoke(terminate=True)
    app.control.terminate("third-id")

    def asked() -> list[KillAsked]:
        service.records += service.play.inbox()
        return [one for one in service.records if isinstance(one, KillAsked)]

    wait_until(lambda: len(asked()) == 3, 20, "three kills asked")
    assert {(one.ids, one.terminate) for one in asked()} == {
        (("some-id",), False), (("other-id",), True), (("third-id",), True),
    }  # fmt: skip
    # the worker remembers none of these ids
    service.send("add", 1, id="some-id")
    assert service.end("some-id").state == "SUCCESS"
    with redis_client(service.play.site) as client:
        prefix = service.play.site.settings.key_prefix
        assert list(client.keys(f"{prefix}celery-task-meta-*")) == []


def revoke(service: Service, id: str, **arguments: Any) -> None:
    """What the service sends for a step, or a task that is no row."""
    replies = service.play.app.control.broadcast(
        "revoke_ordinary", arguments={"task_id": [id], **arguments}, reply=True, timeout=10, limit=1
    )
    assert replies, "the worker answers"


def test_a_step_is_killed_and_its_retry_runs(
    worker: object, service: Service, tmp_path: Path
) -> None:
    began = tmp_path / "began"
    service.send("sleeper", str(began), id="s-kill")
    wait_until(began.exists, 20, "the step runs")
    revoke(service, "s-kill", terminate=True)
    assert service.end("s-kill").state == "REVOKED"
    revoke(service, "s-kill", terminate=True, attempts={"s-kill": 1})  # an order sent again
    service.send("add", 1, id="s-kill", attempt=2)
    assert service.end("s-kill", 2).state == "SUCCESS"
    # before it arrives
    revoke(service, "s-early", terminate=True, attempts={"s-early": 1})
    service.send("add", 1, id="s-early", attempt=1)
    assert service.end("s-early").state == "REVOKED"
    service.send("add", 1, id="s-early", attempt=2)
    assert service.end("s-early", 2).state == "SUCCESS"


@pytest.mark.parametrize("name", ["held", "plain"])
def test_a_message_that_comes_twice_or_late_runs_no_step(
    worker: object, service: Service, tmp_path: Path, name: str
) -> None:
    """Sent again by a service that was killed before it noted it, or restored by the broker.

    Also of a task whose base is Celery's own.
    """
    step = f"s-{name}"
    ran, go = tmp_path / "ran", tmp_path / "ran.go"

    def again(attempt: int, **options: Any) -> None:
        service.publisher.task(
            keys.TASKS_QUEUE, f"user_steps.{name}", [str(ran)], id=step,
            headers={"balsam_attempt": attempt}, **options,
        )  # fmt: skip

    def pass_by(number: int) -> None:
        """What comes after has run, so what was sent before has been looked at."""
        service.send("add", 1, id=f"{step}-after{number}")
        service.end(f"{step}-after{number}")

    again(2)
    wait_until(lambda: ran.exists() and ran.read_text() == "2\n", 20, "the step runs")
    again(2)
    again(1)
    again(2, expires=-5)
    pass_by(1)
    go.touch()
    assert service.end(step, 2).state == "SUCCESS"
    again(2)
    again(2, expires=-5)
    pass_by(2)
    assert ran.read_text() == "2\n"
    # the worker still knows the one that runs: it is not taken for lost, and can be killed
    go.unlink()
    again(3)
    wait_until(lambda: ran.read_text() == "2\n3\n", 20, "the next attempt runs")
    again(3)
    pass_by(3)
    [held] = service.play.app.control.inspect().query_task(step).values()
    assert held[step][0] == "active"
    revoke(service, step, terminate=True, attempts={step: 3})
    assert service.end(step, 3).state == "REVOKED"
    told = [one for one in service.records if isinstance(one, StepEnded) and one.id == step]
    assert [(one.attempt, one.state) for one in told] == [(2, "SUCCESS"), (3, "REVOKED")]


def test_an_ordinary_task_is_revoked_as_in_celery(
    worker: object, service: Service, tmp_path: Path
) -> None:
    app = service.play.app
    began = tmp_path / "began"
    result = app.send_task("user_steps.sleeper", (str(began),))
    wait_until(began.exists, 20, "the task runs")
    revoke(service, result.id, terminate=True)
    wait_until(lambda: result.state == "REVOKED", 20, "revoked")
    # a row that this worker does not hold is none of its business
    row = service.play.program("p", ["p"]).delay()
    revoke(service, row.id, terminate=True)
    assert row.state == "PENDING"
