"""Graceful ends on a live site: every way to drain a busy pilot, kills, broken nodes, pauses."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from balsam_celery.store import allocations, queries
from balsam_celery.store.rows import AttemptRow, PilotRow, PilotState
from tests.acceptance.live import LiveSite
from tests.waiting import wait_until

#: Its first attempt runs until it is told, writes a checkpoint then, and its second reads that.
CHECKPOINTS = """
trap 'echo "checkpoint of $BALSAM_ATTEMPT" >> state; exit 0' USR1
if [ -e state ]; then cat state; exit 0; fi
echo ready > ready
sleep 600 &
wait
"""
OPTIONS = ("--restartable", "--checkpoint-grace", "60s", "--end-signal", "USR1")


def start(live: LiveSite) -> str:
    """A task that is ready to be told."""
    (id,) = live.submit(*OPTIONS, "--", "/bin/sh", "-c", CHECKPOINTS)
    row = live.wait_for(id, "RUNNING")
    wait_until((Path(row.work_dir or "") / "ready").exists, 20, "its trap is set")
    return id


def pilot_of(live: LiveSite, id: str) -> PilotRow:
    return pilot(live, live.task(id).pilot or "")


def pilot(live: LiveSite, id: str) -> PilotRow:
    with live.store.read() as conn:
        return allocations.get_pilot(conn, id)


def attempts(live: LiveSite, id: str) -> list[AttemptRow]:
    with live.store.read() as conn:
        return queries.attempts(conn, id)


def drain(live: LiveSite, one: PilotRow, how: str) -> None:
    if how == "pilot drain":
        assert live.json("pilot", "drain", one.id, "--within", "0")["draining"] == [one.id]
    elif how == "allocations cancel":
        told = live.json("allocations", "cancel", one.allocation, "--drain", "--within", "0s")
        assert told["draining"] == [one.allocation]
    else:
        os.kill(one.pid, signal.Signals[how])


@pytest.mark.parametrize("how", ["pilot drain", "allocations cancel", "SIGTERM", "SIGUSR1"])
def test_a_busy_pilot_drains(live: LiveSite, how: str) -> None:
    """What it ran writes a checkpoint, and goes on from there in another pilot."""
    id = start(live)
    one = pilot_of(live, id)
    drain(live, one, how)
    row = live.wait_for(id, "JOB_FINISHED")
    first, second = attempts(live, id)
    assert (first.outcome, second.outcome, second.exit_code) == ("drained", "exit", 0)
    assert (first.pilot, first.work_dir) == (one.id, second.work_dir)
    assert second.pilot != one.id
    assert row.result["output_tail"] == "checkpoint of 1\n"
    assert (row.failures, row.attempt) == (0, 2)
    wait_until(lambda: pilot(live, one.id).state is PilotState.ENDED, 60, "it ends")


@pytest.mark.parametrize("how", ["pilot", "allocation"])
def test_a_drain_without_a_time_lets_what_runs_end(live: LiveSite, how: str) -> None:
    gate = live.site.directory / f"gate-drain-{how}"
    (id,) = live.submit("--", "/bin/sh", "-c", f'while [ ! -e "{gate}" ]; do sleep 0.1; done')
    live.wait_for(id, "RUNNING")
    one = pilot_of(live, id)
    if how == "pilot":
        live.balsam("pilot", "drain", one.id)
    else:
        live.balsam("allocations", "cancel", one.allocation, "--drain")
    (later,) = live.submit("--", "true")
    live.wait_for(later, "JOB_FINISHED")
    assert attempts(live, later)[0].pilot != one.id
    assert live.task(id).state == "RUNNING"
    assert pilot(live, one.id).state is PilotState.DRAINING
    gate.touch()
    assert live.wait_for(id, "JOB_FINISHED").attempt == 1
    wait_until(lambda: pilot(live, one.id).state is PilotState.ENDED, 60, "it ends")


def test_a_kill_leaves_time_for_a_checkpoint(live: LiveSite) -> None:
    id = start(live)
    live.balsam("kill", id)
    row = live.wait_for(id, "USER_KILLED")
    assert (Path(row.work_dir or "") / "state").read_text() == "checkpoint of 1\n"


def test_a_retry_waits_and_says_so(live: LiveSite) -> None:
    (id,) = live.submit(
        "--max-retries", "3", "--retry-delay", "1h", "--retry-on", "exit:7", "--", "/bin/sh", "-c",
        "exit 7",
    )  # fmt: skip
    live.wait_for(id, "RESTART_READY")
    told = live.json("explain", id)
    assert told["code"] == "retry-delay"
    assert "(exit code 7); 2 retries left" in told["text"]
    assert "exit code 7; tried again at " in live.balsam("ls", id)
    live.balsam("kill", id)
    (id,) = live.submit(
        "--max-retries", "3", "--retry-on", "!exit:7", "--", "/bin/sh", "-c", "exit 7"
    )
    assert live.wait_for(id, "FAILED").attempt == 1
    assert "its retry_on (!exit:7) names '!exit:7'" in live.json("explain", id)["text"]


def test_a_node_that_fails_all_is_put_aside(live: LiveSite) -> None:
    """The first node on which one of them starts is broken for all of them."""
    (id,) = live.submit("--num-nodes", "2", "--", "true")
    live.wait_for(id, "JOB_FINISHED")  # there is a node with which it can be compared
    broken = live.site.directory / "broken"
    script = (
        f'set -C; echo "$BALSAM_PILOT_NODE" > "{broken}" 2> /dev/null; read node < "{broken}";'
        ' if [ "$node" = "$BALSAM_PILOT_NODE" ]; then exit 9; fi; sleep 2'
    )
    ids = live.submit("--array", "1-40", "--name", "many", "--", "/bin/sh", "-c", script)
    # what failed before the others ran well elsewhere comes back then
    for id in ids:
        live.wait_for(id, "JOB_FINISHED")
    pilot_id, _, node = broken.read_text().strip().partition("/")
    [lost] = [one for one in pilot(live, pilot_id).nodes if one.get("lost")]
    assert lost["name"] == node
    assert "different tasks in a row failed there" in lost["lost_reason"]
    told = live.balsam("pilot", "list", "--all")
    assert f"node {node} is not used: put aside: " in told
