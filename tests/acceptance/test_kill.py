"""Kill and retry by every road, and what Celery's own commands show meanwhile."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request

from balsam_celery import procs
from balsam_celery.store import queries
from tests.acceptance.live import LiveSite
from tests.waiting import wait_until

STUBBORN = "trap '' TERM; (setsid sh -c 'trap \"\" TERM; sleep 600' &) ; sleep 600"


def only(*workers: str) -> tuple[str, ...]:
    """Options of Celery's commands that ask these workers, and are content with their answers."""
    return ("--timeout", "30", "--destination", ",".join(workers))


def start(live: LiveSite, *options: str, script: str = "sleep 600") -> str:
    """A task that runs until it is killed."""
    (id,) = live.submit(*options, "--wall-time", "20m", "--", "/bin/sh", "-c", script)
    live.wait_for(id, "RUNNING")
    return id


def killed(live: LiveSite, id: str) -> None:
    """USER_KILLED, attempt completed, no process left."""
    live.wait_for(id, "USER_KILLED")
    assert not procs.marked([f"BALSAM_TASK_ID={id}"])
    with live.store.read() as conn:
        last = queries.attempts(conn, id)[-1]
    assert last.ended is not None
    assert last.outcome == "killed"


def test_kill_then_retry_runs_it_again(live: LiveSite) -> None:
    script = 'test "$BALSAM_ATTEMPT" -gt 1 || sleep 600'
    id = start(live, "--node-packing-count", "1", script=script)
    node = live.task(id).shares
    live.balsam("kill", id)
    killed(live, id)
    live.balsam("retry", id)
    live.wait_for(id, "JOB_FINISHED")
    assert live.task(id).attempt == 2
    assert node


def test_kill_reaches_processes_that_hide(live: LiveSite) -> None:
    id = start(live, script=STUBBORN)
    live.balsam("kill", id)
    killed(live, id)


def test_kill_of_a_task_over_nodes(live: LiveSite) -> None:
    id = start(live, "--num-nodes", "2", "--ranks-per-node", "2")
    assert id in live.celery("inspect", "active", "--json", *only(f"gang@{live.task(id).pilot}"))
    live.balsam("kill", id)
    killed(live, id)


def test_celery_commands_on_the_running_system(live: LiveSite) -> None:
    id = start(live, "--name", "shown")
    row = live.task(id)
    holder = f"{row.shares[0]['node']}@{row.pilot}"
    active = json.loads(live.celery("inspect", "active", "--json", *only(holder)))
    assert [request["id"] for request in active[holder]] == [id]
    stats = json.loads(live.celery("inspect", "stats", "--json", *only(holder)))
    assert stats[holder]["pool"]["max-concurrency"] == 2
    everybody = live.celery("inspect", "active", "--timeout", "3")
    assert id in everybody
    assert holder in live.celery("status", *only(holder))
    live.celery("control", "terminate", "SIGTERM", id)
    killed(live, id)


def test_concurrency_follows_the_free_slots(live: LiveSite) -> None:
    id = start(live, "--num-nodes", "2")
    pilot = live.task(id).pilot
    workers = [f"{share['node']}@{pilot}" for share in live.task(id).shares]

    def concurrency() -> dict[str, int]:
        stats = json.loads(live.celery("inspect", "stats", "--json", *only(*workers)))
        return {name: one["pool"]["max-concurrency"] for name, one in stats.items()}

    wait_until(lambda: concurrency() == dict.fromkeys(workers, 0), 60, "held nodes")
    live.balsam("kill", id)
    killed(live, id)


def test_limit_is_enforced(live: LiveSite) -> None:
    (id,) = live.submit("--wall-time", "2s", "--", "sleep", "600")
    row = live.wait_for(id, "FAILED")
    assert "wall_time" in row.reason
    (event,) = [e for e in live.json("show", id)["events"] if e["to"] == "RUN_TIMEOUT"]
    assert event


def test_flower(live: LiveSite) -> None:
    """A password is asked for; terminate kills the program and SQL says USER_KILLED."""
    settings = live.site.settings.flower
    base = f"http://127.0.0.1:{settings.port}"
    try:
        urllib.request.urlopen(f"{base}/api/workers", timeout=10)
        raise AssertionError("Flower answered without a password")
    except urllib.error.HTTPError as error:
        assert error.code == 401
        error.close()
    user = f"balsam:{live.site.secret('flower')}"
    header = {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()}

    def call(path: str, method: str = "GET") -> dict[str, object]:
        request = urllib.request.Request(base + path, headers=header, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            value: dict[str, object] = json.load(answer)
            return value

    id = start(live, "--name", "in-flower")

    def shown() -> dict[str, object]:
        tasks = call("/api/tasks?limit=50")
        found = tasks.get(id)
        return found if isinstance(found, dict) else {}

    wait_until(lambda: shown().get("state") == "STARTED", 60, "STARTED in Flower")
    assert str(shown()["worker"]).endswith(f"@{live.task(id).pilot}")
    call(f"/api/task/revoke/{id}?terminate=true", "POST")
    killed(live, id)
    wait_until(lambda: shown().get("state") == "REVOKED", 60, "REVOKED in Flower")
    (good,) = live.submit("--", "true")
    (bad,) = live.submit("--", "false")
    for one, state in ((good, "SUCCESS"), (bad, "FAILURE")):
        wait_until(
            lambda one=one, state=state: (
                call("/api/tasks?limit=50").get(one, {}).get("state") == state
            ),
            90,
            f"{state} in Flower",
        )
