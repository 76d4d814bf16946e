"""What ``celery inspect`` and ``celery control`` tell of a pilot's workers, and bad messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kombu.serialization import registry

from balsam_celery import keys, wire
from tests.pilot.service import Pilot
from tests.waiting import wait_until


def test_inspect(pilot: Pilot) -> None:
    pilot.run(
        pilot.spec("shown", "/bin/sleep", "60", shares=(pilot.whole("n0"),)),
        pilot.spec("queued", "/bin/true"),
    )

    def started() -> list[dict[str, Any]]:
        return [one for one in pilot.inspect("active") or () if one["worker_pid"]]

    [active] = wait_until(started, 20, "it runs")
    assert active["id"] == "shown"
    assert active["name"] == "name of shown"
    assert active["args"] == ["/bin/sleep", "60"]
    assert active["kwargs"]["nodes"] == ["n0"]
    assert active["kwargs"]["cores"] == {"n0": [0, 1]}
    assert active["hostname"] == keys.worker_name(pilot.id, "n0")
    assert active["worker_pid"] > 0
    assert active["time_start"] > 0
    assert [one["id"] for one in pilot.inspect("reserved")] == ["queued"]
    name = keys.worker_name(pilot.id, "n0")
    found = pilot.service.app.control.inspect([name]).query_task("shown", "queued", "none")
    assert {task: state for task, (state, _) in found[name].items()} == {
        "shown": "active",
        "queued": "reserved",
    }
    assert pilot.inspect("ping") == {"ok": "pong"}
    assert pilot.inspect("scheduled") == []
    pilot.kill(wire.KillOrder("shown", 1, "seen enough"))
    assert pilot.service.ended("queued").exit_code == 0


def test_concurrency_follows_the_limits(pilot: Pilot) -> None:
    def concurrency() -> int:
        stats = pilot.inspect("stats")
        return int(stats["pool"]["max-concurrency"])

    assert concurrency() == 2
    limits = keys.limits(pilot.service.prefix, pilot.id)
    for limit in (0, 1, 2):
        pilot.service.client.hset(limits, "n0", limit)
        wait_until(lambda limit=limit: concurrency() == limit, 10, f"concurrency {limit}")


def test_no_secret_is_told(pilot: Pilot) -> None:
    told = json.dumps([pilot.inspect(what) for what in ("stats", "conf", "report")])
    assert pilot.service.server.password not in told


@pytest.mark.parametrize("command", ["pool_grow", "pool_shrink", "pool_restart", "autoscale"])
def test_commands_that_placement_forbids(pilot: Pilot, command: str) -> None:
    name = keys.worker_name(pilot.id, "n0")
    [answer] = pilot.service.app.control.broadcast(command, destination=[name], reply=True)
    assert "placement decides" in answer[name]["error"]


def message(body: Any = None, **headers: Any) -> dict[str, Any]:
    """A message as kombu writes it; a well-formed one of ours with values changed."""
    text = json.dumps([[[]], {}, {}] if body is None else body)
    return {
        "body": text,
        "content-encoding": "utf-8",
        "content-type": headers.pop("content_type", "application/json"),
        "headers": {"task": keys.RUN, "id": "x", "lang": "py", **headers},
        "properties": {
            "delivery_tag": "t",
            "delivery_info": {"exchange": "", "routing_key": "q"},
            "body_encoding": "plain",
        },
    }


SPEC: dict[str, Any] = {"id": "forged", "attempt": 1, "argv": ["/bin/true"]}


@pytest.mark.parametrize(
    "raw",
    [
        b"not json",
        b"\xff\xfe\x00",
        b"5",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        json.dumps({"properties": {}}),
        json.dumps(message(task="celery.backend_cleanup")),
        json.dumps(message(task="unknown")),
        json.dumps(message(task=None)),
        json.dumps(message(task=keys.KILL, body=[[[{"id": 5}]], {}, {}])),
        json.dumps(message(body={"args": 3})),
        json.dumps(message(body=[[], {}, {}])),
        json.dumps(message(body=[[5], {}, {}])),
        json.dumps(message(body=[[[5, None, SPEC]], {}, {}])),
        json.dumps(message(content_type="application/x-python-serialize")),
        json.dumps({**message(), "body": "{"}),
        json.dumps({**message(), "headers": None}),
    ],
)
def test_messages_that_are_not_ours(pilot: Pilot, raw: str | bytes) -> None:
    """Refused and logged; the worker goes on, and is still the same process."""
    assert "pickle" in registry.name_to_type
    pid = pilot.pid_of("n0")
    log = pilot.directory / "n0.log"
    before = log.stat().st_size
    queue = pilot.service.prefix + keys.pilot_queue(pilot.id, "n0")
    pilot.service.client.lpush(queue, raw)
    task = f"after-{abs(hash(raw))}"
    pilot.run(pilot.spec(task, "/bin/true"))
    assert pilot.service.ended(task).exit_code == 0
    assert pilot.pid_of("n0") == pid
    assert log.stat().st_size > before, "it is logged"


def test_specs_that_could_not_be_run(pilot: Pilot) -> None:
    good = wire.to_plain(pilot.spec("good-among-bad", "/bin/true"))
    bad = [
        {**good, "argv": []},
        {**good, "shares": []},
        {**good, "work_dir": "relative"},
        {**good, "wall_time": "1"},
        {**good, "extra": 1},
    ]
    bad = [{**plain, "id": f"bad-{index}"} for index, plain in enumerate(bad)]
    queue = keys.pilot_queue(pilot.id, "n0")
    pilot.service.app.send_task(
        keys.RUN, args=[queue, [*bad, good]], queue=queue, ignore_result=True
    )
    assert pilot.service.ended("good-among-bad").exit_code == 0
    assert "refused a task" in (pilot.directory / "n0.log").read_text()
    assert not [e for e in pilot.service.all(wire.Ended) if e.id.startswith("bad-")]


def test_workers_load_no_database(pilot: Pilot) -> None:
    """Compute nodes never open SQL (R2)."""
    for pid in (pilot.process.pid, pilot.pid_of("n0")):
        loaded = Path(f"/proc/{pid}/maps").read_text()
        assert "celery" in loaded or "python" in loaded
        assert not [name for name in ("sqlalchemy", "psycopg", "_sqlite3") if name in loaded]
