"""Redis and disks that are full: the user is told, and all goes on when there is room again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from balsam_celery.celeryapp import redis_client
from tests.acceptance.live import LiveSite
from tests.pressure.conftest import SmallDisks
from tests.waiting import wait_until

Memory = Callable[[str], int]
#: Ends when its gate, which lies where there is room, is gone.
HELD = ["sh", "-c", 'while [ -e "$0" ]; do sleep 0.1; done; echo done > "$0.done"']


def start_held(live: LiveSite, place: Path) -> tuple[str, Path]:
    """A task that runs until its gate is removed; returns its id and the gate."""
    gate = place / "gate"
    gate.touch()
    (held,) = live.submit("--", *HELD, str(gate))
    live.wait_for(held, "RUNNING")
    return held, gate


def told(live: LiveSite, words: str) -> str:
    """What ``balsam status`` says, once it holds ``words``; its exit status is 1 by then."""
    wait_until(lambda: words in " ".join(live.status()["shortages"]), 60, f"status says {words!r}")
    said = live.balsam("status", status=1)
    assert words in said
    return said


def test_redis_takes_no_more(live: LiveSite, steady: Memory, tmp_path: Path) -> None:
    """Outcomes stay at the workers, and rows in SQL; nothing is lost, nothing runs twice."""
    held, gate = start_held(live, tmp_path)
    with redis_client(live.site) as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                client.set("more", "x")
            told(live, "takes no more")
            gate.unlink()
            wait_until((tmp_path / "gate.done").exists, 30, "it ends")
            (later,) = live.submit("--", "true")
            # time enough for a lost outcome to be noticed as such
            log = (live.site.log_dir / "service.log").read_text
            wait_until(lambda: "the service waits" in log(), 60, "the service says it")
            assert live.task(held).state == "RUNNING"
        finally:
            client.config_set("maxmemory", 0)
    for id in (held, later):
        assert live.wait_for(id, "JOB_FINISHED").attempt == 1
    wait_until(lambda: not live.status()["shortages"], 30, "status says no more of it")


def test_a_full_disk_under_sql_and_redis(
    live: LiveSite, disks: SmallDisks, steady: Memory, tmp_path: Path
) -> None:
    """The logs are there too."""
    held, gate = start_held(live, tmp_path)
    with disks.full("site"):
        # so many that pages which the database and its log have free cannot hold them
        said = live.balsam("submit", "--array", "1-20000", "--", "true", status=1)
        assert len(said.strip().splitlines()) == 1
        assert "full" in said
        assert "the disk is full under" in told(live, "database")
        gate.unlink()
        wait_until((tmp_path / "gate.done").exists, 30, "it ends")
        assert live.task(held).state == "RUNNING"
    assert live.wait_for(held, "JOB_FINISHED").attempt == 1
    (later,) = live.submit("--", "true")
    live.wait_for(later, "JOB_FINISHED")
    wait_until(lambda: live.status()["up"] and not live.status()["shortages"], 60, "all is well")


def test_a_full_disk_under_outboxes_and_work_directories(
    live: LiveSite, disks: SmallDisks, steady: Memory, tmp_path: Path
) -> None:
    """What ran is recorded though no outbox can keep it; what cannot start says why."""
    held, gate = start_held(live, tmp_path)
    with disks.full("run"):
        assert "outboxes" in told(live, "the disk is full under")
        gate.unlink()
        assert live.wait_for(held, "JOB_FINISHED").attempt == 1
        # short, so that it fits into the pilot that there is
        (writer,) = live.submit("-t", "5s", "--", "sh", "-c", "echo much")
        failed = live.wait_for(writer, "FAILED")
        assert "No space left on device" in failed.reason or failed.reason == "exit code 1"
        assert failed.reason in live.balsam("show", writer)
    live.balsam("retry", writer)
    live.wait_for(writer, "JOB_FINISHED")
    assert "much" in live.balsam("log", writer)
    wait_until(lambda: not live.status()["shortages"], 30, "status says no more of it")


def test_a_full_disk_for_what_is_staged(
    live: LiveSite, disks: SmallDisks, steady: Memory, tmp_path: Path
) -> None:
    """A task whose files find no room waits, and says why."""
    source = tmp_path / "input"
    source.write_bytes(b"x" * 1_000_000)
    with disks.full("run"):
        told(live, "the disk is full under")
        id = live.python(
            "import json\nfrom balsam_celery import program\n"
            f"one = program('staged', ['true'], stage_in=[{str(source)!r}])\n"
            "print(json.dumps(one.delay().id))"
        )
        reason = "stage_in: No space left on device"
        wait_until(lambda: reason in live.task(id).reason, 60, "it says why")
        assert live.task(id).state == "READY"
        assert reason in live.balsam("explain", id)
    row = live.wait_for(id, "JOB_FINISHED", timeout=120)
    assert (row.attempt, row.reason) == (1, "")


def test_an_allocation_that_finds_the_disk_full(
    live: LiveSite, disks: SmallDisks, steady: Memory
) -> None:
    """It comes to nothing with that reason; later ones work."""
    for allocation in live.json("allocations")["allocations"]:
        live.balsam("allocations", "cancel", allocation["id"])
    wait_until(lambda: not live.json("status")["pilots"], 60, "no pilot is left")
    with disks.full("run"):
        (waits,) = live.submit("--", "true")
        begun = time.time()

        def reason() -> str:
            rows = [
                *live.status()["failed"],
                *live.status()["allocations"],
            ]
            return " ".join(row["reason"] for row in rows)

        wait_until(lambda: "No space left" in reason(), 90, f"a reason, since {begun}")
        assert live.task(waits).state == "PREPROCESSED"
    live.wait_for(waits, "JOB_FINISHED", timeout=150)
