"""Many clients, many tasks, many failures, much output."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest
from sqlalchemy import func, select

from balsam_celery.celeryapp import redis_client
from balsam_celery.states import State
from balsam_celery.store import queries, schema
from balsam_celery.store.queries import TaskFilter, count_tasks
from tests.acceptance.live import BIN, LiveSite
from tests.waiting import wait_until

Memory = Callable[[str], int]


def counts(live: LiveSite, workflow: str) -> dict[State, int]:
    """Number of tasks by state."""
    with live.store.read() as conn:
        return count_tasks(conn, TaskFilter(workflow=workflow))


def wait_counts(live: LiveSite, workflow: str, timeout: float, **wanted: int) -> None:
    """Wait until a workflow has just these numbers of tasks by state."""
    want = {State[name]: number for name, number in wanted.items()}
    wait_until(
        lambda: counts(live, workflow) == want,
        timeout,
        lambda: f"{workflow} is {want}: {counts(live, workflow)}",
    )


def end_all(processes: list[subprocess.Popen[str]]) -> None:
    """Of those that live nothing is left; pipes left open would hide why the test failed."""
    for process in processes:
        process.kill()
    for process in processes:
        with process:
            pass


CLIENTS = """
import json, sys, threading
from balsam_celery import program
clients, each = int(sys.argv[1]), 2
true = program("crowd", ["true"], workflow="crowd", wall_time="1m")
gate, ids, lock = threading.Barrier(clients), [], threading.Lock()
def client(number):
    gate.wait()
    for turn in range(each):
        id = true.s().set(name=f"{sys.argv[2]}-{number}-{turn}").apply_async().id
        with lock:
            ids.append(id)
threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps(ids))
"""


def test_200_clients_at_once(live: LiveSite, steady: Memory) -> None:
    """Four processes of fifty clients each; every call that returned is there once."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENTS, "50", str(number)],
            env=live.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(4)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=170) for process in processes]
    finally:
        end_all(processes)
    assert [err for _, err in said] == [""] * 4
    ids = [id for out, _ in said for id in json.loads(out)]
    assert len(ids) == len(set(ids)) == 400
    wait_counts(live, "crowd", 120, JOB_FINISHED=400)
    tasks = live.tasks(workflow="crowd")
    assert sorted(one.id for one in tasks) == sorted(ids)
    assert len({one.name for one in tasks}) == 400
    # one that was sent ahead of a free core may be taken back before it starts
    with live.store.read() as conn:
        begun = [
            sum(one.started is not None for one in queries.attempts(conn, task.id))
            for task in tasks
        ]
    assert set(begun) == {1}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_200_processes_of_the_command_at_once(live: LiveSite, steady: Memory) -> None:
    command = [str(BIN / "balsam"), "submit", "--json", "--workflow", "rush", "--", "true"]
    processes = [
        subprocess.Popen(
            command, env=live.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(200)
    ]
    try:
        said = [process.communicate(timeout=800) for process in processes]
    finally:
        end_all(processes)
    assert [process.returncode for process in processes] == [0] * 200, Counter(e for _, e in said)
    ids = {task["id"] for out, _ in said for task in json.loads(out)["tasks"]}
    assert len(ids) == 200
    wait_counts(live, "rush", 300, JOB_FINISHED=200)


BULK = """
import json, sys
from balsam_celery import program, submit_many
count, workflow = int(sys.argv[1]), sys.argv[2]
one = program(workflow, sys.argv[3:], workflow=workflow, wall_time="1m")
submit_many([one.s() for _ in range(count)])
print(json.dumps(count))
"""


def submit_bulk(live: LiveSite, count: int, workflow: str, *command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BULK, str(count), workflow, *command],
        env=live.environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "count", [5000, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(1200)])]
)
def test_a_large_backlog(live: LiveSite, steady: Memory, count: int) -> None:
    """Work starts, and all but what runs now waits in SQL: not in the service, not in Redis."""
    before = {name: steady(name) for name in ("service", "redis")}
    workflow = f"backlog-{count}"
    submit_bulk(live, count, workflow, "sleep", "0.5")
    wait_until(lambda: counts(live, workflow).get(State.JOB_FINISHED, 0) >= 20, 120, "it works")
    listed = live.balsam("ls", "--workflow", workflow)
    assert len(listed.splitlines()) < 2000
    shown = live.json("status")
    assert sum(shown["tasks"].values()) >= count
    on_pilots = sum(counts(live, workflow).get(state, 0) for state in (S.DISPATCHED, S.RUNNING))
    assert on_pilots < 100
    grown = {name: steady(name) - size for name, size in before.items()}
    assert grown["service"] < 100_000_000, grown
    assert grown["redis"] < 20_000_000, grown
    live.balsam("kill", "--workflow", workflow, "--yes")
    wait_until(
        lambda: set(counts(live, workflow)) <= {S.JOB_FINISHED, S.USER_KILLED}, 300, "all is over"
    )
    assert sum(counts(live, workflow).values()) == count
    with redis_client(live.site) as client:
        prefix = live.site.settings.key_prefix
        assert client.llen(f"{prefix}inbox") < 100


S = State


@pytest.mark.parametrize(
    "count", [500, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(1200)])]
)
def test_failures_in_a_row(live: LiveSite, steady: Memory, count: int) -> None:
    """Each is told with its reason; none is run again; the next good one runs."""
    before = steady("service")
    workflow = f"failures-{count}"
    submit_bulk(live, count, workflow, "sh", "-c", "echo broken >&2; exit 3")
    wait_counts(live, workflow, 900, FAILED=count)
    with live.store.read() as conn:
        task, attempt = schema.task.c, schema.attempt.c
        reasons = conn.execute(
            select(task.reason, func.count()).where(task.workflow == workflow).group_by(task.reason)
        ).all()
        runs = conn.scalar(
            select(func.count()).select_from(
                schema.attempt.join(schema.task, task.id == attempt.task)
            ).where(task.workflow == workflow)
        )  # fmt: skip
    assert [tuple(row) for row in reasons] == [("exit code 3", count)]
    assert runs == count
    assert steady("service") - before < 60_000_000
    (good,) = live.submit("--", "true")
    live.wait_for(good, "JOB_FINISHED")
