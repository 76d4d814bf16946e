"""kill -9 of every process that matters: no task lost, none twice, no orphan (DESIGN section 7)."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from balsam_celery import procs
from balsam_celery.store import allocations, queries, schema
from balsam_celery.supervisor import records
from tests.acceptance.live import LiveSite, kill9
from tests.waiting import wait_until


def marked_processes(id: str) -> set[int]:
    """Living processes of a task's programs."""
    return procs.marked([f"BALSAM_TASK_ID={id}"])


def start_sleeper(live: LiveSite, *options: str) -> tuple[str, set[int]]:
    """A task that sleeps until it is killed in its first attempt and succeeds in its second."""
    script = 'if [ "$BALSAM_ATTEMPT" = 1 ]; then sleep 600 & wait $!; fi'
    (id,) = live.submit(*options, "--", "/bin/sh", "-c", script)
    live.wait_for(id, "RUNNING")
    return id, wait_until(lambda: marked_processes(id), 10, "its processes")


def pilot_pid(live: LiveSite, id: str) -> int:
    """Process id of the pilot that runs a task."""
    with live.store.read() as conn:
        pilot = allocations.get_pilot(conn, live.task(id).pilot or "")
    return pilot.pid


def ended_well(live: LiveSite, id: str, processes: set[int]) -> None:
    """The task was run again, once, with success, and nothing of its first attempt is left."""
    live.wait_for(id, "JOB_FINISHED")
    with live.store.read() as conn:
        attempts = queries.attempts(conn, id)
    assert [attempt.exit_code for attempt in attempts][-1] == 0
    assert len(attempts) == 2
    assert attempts[0].ended is not None
    assert attempts[0].reason
    assert not processes & procs.marked([f"BALSAM_TASK_ID={id}"])
    assert live.task(id).failures == 0


def test_pilot(live: LiveSite) -> None:
    id, processes = start_sleeper(live)
    kill9(pilot_pid(live, id))
    ended_well(live, id, processes)


def test_node_worker(live: LiveSite) -> None:
    id, processes = start_sleeper(live)
    worker = procs.entry(min(processes))
    assert worker is not None
    kill9(worker.parent)
    ended_well(live, id, processes)


@pytest.mark.parametrize("name", ["service", "beat", "transitions", "tasks", "redis"])
def test_site_process(live: LiveSite, name: str) -> None:
    """Running programs never notice, and what comes afterwards is run."""
    gate = live.site.directory / f"gate-{name}"
    script = f'while [ ! -e "{gate}" ]; do sleep 0.1; done; echo $BALSAM_ATTEMPT'
    (running,) = live.submit("--", "/bin/sh", "-c", script)
    live.wait_for(running, "RUNNING")
    record = records.read(live.site, name)
    assert record is not None
    assert record.process is not None
    kill9(record.process.pid)
    (later,) = live.submit("--", "echo", "later")
    gate.touch()
    live.wait_for(later, "JOB_FINISHED")
    live.wait_for(running, "JOB_FINISHED")
    assert live.task(running).attempt == 1
    again = wait_until(lambda: records.read(live.site, name), 30, "its pid file")
    wait_until(
        lambda: (
            (again := records.read(live.site, name)) is not None
            and again.process != record.process
            and again.is_alive
        ),
        60,
        f"{name} was started again; {again}",
    )


def test_result_after_the_service_died_between_commit_and_effect(live: LiveSite) -> None:
    """R7: what the transaction owes to others is paid by the next service."""
    service = records.read(live.site, "service")
    assert service is not None
    assert service.process is not None
    gate = live.site.directory / "gate-effects"
    script = f'while [ ! -e "{gate}" ]; do sleep 0.05; done'
    ids = live.submit("--array", "1-2", "--", "/bin/sh", "-c", script)
    for id in ids:
        live.wait_for(id, "RUNNING")
    gate.touch()
    wait_until(lambda: any(live.task(id).finished for id in ids), 60, "a commit")
    kill9(service.process.pid)
    code = (
        "import json; from celery.result import AsyncResult; from balsam_celery import app; "
        f"print(json.dumps([AsyncResult(i, app=app).get(timeout=90)['state'] for i in {ids!r}]))"
    )
    assert live.python(code) == ["JOB_FINISHED"] * len(ids)
    wait_until(lambda: not owed(live, ids), 60, "every effect performed")


def owed(live: LiveSite, ids: list[str]) -> set[str]:
    """Tasks with effects still to be performed."""
    with live.store.read() as conn:
        return set(conn.scalars(select(schema.effect.c.task))) & set(ids)


def test_supervisor_then_down_and_up(live: LiveSite) -> None:
    record = records.read(live.site, "supervisor")
    assert record is not None
    assert record.process is not None
    kill9(record.process.pid)
    live.balsam("up")
    (id,) = live.submit("--", "true")
    live.wait_for(id, "JOB_FINISHED")


def test_no_secret_in_any_command_line(live: LiveSite) -> None:
    secrets = [path.read_text().strip() for path in live.site.secrets_dir.iterdir()]
    assert secrets
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_text(errors="replace")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            assert not any(secret in command for secret in secrets), entry
