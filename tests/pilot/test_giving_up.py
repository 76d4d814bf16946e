"""A worker that does not stay alive: its outcomes arrive, then the service is told."""

from __future__ import annotations

import os
import signal

from balsam_celery import procs
from balsam_celery.outbox import read_outbox
from balsam_celery.wire import Ended, Record, WorkerLost
from tests.pilot.service import Pilot, Service
from tests.waiting import wait_until


def kill_until_given_up(pilot: Pilot, node: str) -> None:
    """Kill the worker of a node whenever it lives, until the pilot starts it no more."""
    log = pilot.directory / "pilot.log"

    def given_up() -> bool:
        process = procs.identity(pilot.pid_of(node))
        if process is not None:
            os.kill(process.pid, signal.SIGKILL)
            wait_until(lambda: not procs.alive(process), 10, "it is dead")
        return f"worker {node}@{pilot.id} is given up" in log.read_text()

    wait_until(given_up, 60, "it is given up")


def _is_final(record: Record) -> bool:
    return isinstance(record, WorkerLost) and not record.restarted and record.confirmed


def test_its_outcomes_come_first(service: Service) -> None:
    pilot = service.start([1, 1])
    service.acknowledge = False
    pilot.run(pilot.spec("done", "/bin/true"), pilot.spec("runs", "/bin/sleep", "100"))
    beside = pilot.spec("beside", "/bin/sleep", "100", shares=(pilot.share("n1"),))
    pilot.run(beside, node="n1")
    service.ended("done")
    wait_until(lambda: pilot.inspect("active"), 10, "it runs")
    kill_until_given_up(pilot, "n0")

    def outcomes() -> dict[str, str]:
        return {e.id: e.outcome for e in read_outbox(pilot.directory / "n0.outbox")}

    # the log is ahead of both the outbox and the service
    wait_until(lambda: len(outcomes()) == 2, 20, "its outbox is complete")
    assert outcomes() == {"done": "exit", "runs": "lost"}

    def told() -> list[bool]:
        return [lost.confirmed for lost in service.all(WorkerLost) if not lost.restarted]

    wait_until(told, 20, "the loss is told")
    assert told() == [False], "no more before that"
    service.acknowledge = True
    wait_until(
        lambda: any(_is_final(lost) for lost in service.all(WorkerLost)), 30, "the loss is told"
    )
    records = [record for _, _, _, record in service.records]
    last = next(i for i, one in enumerate(records) if _is_final(one))
    assert {one.id for one in records[:last] if isinstance(one, Ended)} == {"done", "runs"}
    [active] = pilot.inspect("active", "n1")
    assert active["id"] == "beside", "the other node never noticed"


def test_the_last_one_ends_the_pilot(service: Service) -> None:
    pilot = service.start([1])
    pilot.run(pilot.spec("runs", "/bin/sleep", "100"))
    wait_until(lambda: pilot.inspect("active"), 10, "it runs")
    kill_until_given_up(pilot, "n0")
    assert pilot.wait_ended() == 0
    assert service.ended("runs").outcome == "lost"
