"""A batch system's warning that reaches more than the pilot's main process.

Slurm's ``scancel --signal=USR1 JOB`` signals every process of its job steps.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from balsam_celery import procs
from balsam_celery.pilot.link import Beat, Consumes, Drain, Drained, Hello, encode
from balsam_celery.pilot.pidfiles import read_pid_file
from balsam_celery.wire import Ended
from tests.pilot.service import Service
from tests.pilot.test_cut_off import NODE, Head
from tests.pilot.test_cut_off import head as head
from tests.waiting import wait_until

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
#: Says so when it gets USR1, which a program must be able to hear.
HEARS = ("/bin/sh", "-c", "trap 'echo told; exit 0' USR1; echo begins; sleep 300 & wait")


def begins(directory: Path) -> bool:
    """A program that ran there has said so."""
    path = directory / "stdout"
    return path.exists() and "begins" in path.read_text()


def test_a_node_outlives_it(head: Head) -> None:
    """Its staying rank, its keeper, what writes that one's log, and its worker."""
    hello = wait_until(lambda: head.heard(Hello), 60, "the keeper has come")
    assert isinstance(hello, Hello)
    wait_until(lambda: head.heard(Consumes), 60, "the worker consumes")
    worker = read_pid_file(head.directory / f"{NODE}.pid")
    assert worker is not None
    pids = {head.started.pid, hello.pid, worker.pid, *procs.children_of(hello.pid)}
    processes = [one for pid in pids if (one := procs.identity(pid))]
    assert len(processes) == 4
    for process in processes:
        for number in WARNINGS:
            procs.send(process, number)
    head.run("after", "/bin/true")
    assert head.service.ended("after").exit_code == 0
    assert all(map(procs.alive, processes))
    head.run("long", *HEARS)
    wait_until(lambda: begins(head.directory / "long"), 20, "it runs")
    [program] = [one for one in procs.children_of(worker.pid) if procs.identity(one)]
    os.kill(program, signal.SIGUSR1)
    wait_until(lambda: head.service.ended("long").stdout_tail == "begins\ntold\n", 20, "it hears")


@pytest.mark.parametrize(("alone", "outcome"), [(True, "lost"), (False, "drained")])
def test_orders_of_the_keeper_are_told_apart(head: Head, alone: bool, outcome: str) -> None:
    wait_until(lambda: head.heard(Consumes), 60, "the worker consumes")
    head.run("runs", *HEARS)
    wait_until(lambda: begins(head.directory / "runs"), 20, "it runs")
    head.channel.send(encode(Beat()))
    head.channel.send(encode(Drain("asked", alone=alone)))
    assert head.service.ended("runs").outcome == outcome
    wait_until(lambda: head.heard(Drained), 30, "the worker has ended")


def test_a_worker_of_one_host_outlives_it(service: Service) -> None:
    pilot = service.start([2])
    pilot.run(pilot.spec("runs", *HEARS, shares=(pilot.share("n0", 1),)))
    wait_until(lambda: begins(pilot.directory / "work" / "runs"), 20, "it runs")
    worker = pilot.identity_of("n0")
    for number in WARNINGS:
        procs.send(worker, number)
    pilot.run(pilot.spec("after", "/bin/true"))
    assert service.ended("after").exit_code == 0
    assert procs.alive(worker)
    assert [one.id for one in service.all(Ended)] == ["after"]
