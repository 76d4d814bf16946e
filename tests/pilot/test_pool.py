"""The pool of a worker: what becomes of attempts whose program has ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from balsam_celery.launchers import find_launcher
from balsam_celery.pilot.attempt import Attempt
from balsam_celery.pilot.ending import Ending, Launched
from balsam_celery.pilot.pool import AttemptPool
from balsam_celery.pilot.process import Spawner
from balsam_celery.pilot.slots import Slots
from balsam_celery.resources import NodeShare
from balsam_celery.settings import LauncherSettings
from balsam_celery.wire import Ended, TaskSpec
from tests.waiting import wait_until

#: Not the pool's own, which tests make fail.
start_thread = threading.Thread.start

SPEC = TaskSpec(
    id="t1",
    attempt=1,
    name="t1",
    application="app",
    argv=("/bin/false",),
    environment={},
    work_dir="/",
    shares=(NodeShare("n0", (0,)), NodeShare("n1", (0,))),
    ranks_per_node=1,
    threads_per_rank=1,
    wall_time=60,
    kill_grace=1,
)


def make(run: Callable[[Attempt], Ended], reports: list[Ended]) -> AttemptPool:
    """A pool of two nodes with two cores each."""
    slots = Slots((node, core) for node in ("n0", "n1") for core in (0, 1))
    pool = AttemptPool(limit=2)
    pool.attach(slots, run, Ending(Spawner(), {}, None), lambda ended, _: reports.append(ended))
    return pool


def ended(attempt: Attempt, code: int) -> Ended:
    attempt.finish()
    return replace(attempt.ended("exit", f"exit code {code}"), exit_code=code)


def test_a_failure_beside_trouble_of_a_node_is_not_its_own() -> None:
    """Before, while and after: what counts is that the node had it during the run."""
    reports: list[Ended] = []
    gates = {name: threading.Event() for name in ("during", "good", "since", "other", "own")}

    def run(attempt: Attempt) -> Ended:
        attempt.launched = Launched(find_launcher(LauncherSettings(), "none", {}))
        assert gates[attempt.spec.id].wait(30)
        return ended(attempt, int(attempt.spec.id != "good"))

    pool = make(run, reports)

    def start(name: str, nodes: tuple[str, ...], core: int) -> None:
        shares = tuple(NodeShare(node, (core,)) for node in nodes)
        pool.submit([Attempt(replace(SPEC, id=name, shares=shares))])

    def end(name: str) -> None:
        gates[name].set()
        wait_until(lambda: name in [one.id for one in reports], 30, f"{name} has ended")

    start("during", ("n0", "n1"), 0)
    start("good", ("n1",), 1)
    start("other", ("n0",), 1)
    pool.doubt("n1", "its node n1 had trouble")
    end("good")
    start("since", ("n1",), 1)
    end("other")
    pool.doubt("n1", "")
    end("during")
    end("since")
    start("own", ("n0", "n1"), 0)
    end("own")
    found = {one.id: (one.outcome, one.exit_code, one.reason) for one in reports}
    assert found == {
        "good": ("exit", 0, "exit code 0"),
        "other": ("exit", 1, "exit code 1"),
        "during": ("lost", 1, "its node n1 had trouble (exit code 1)"),
        "since": ("lost", 1, "its node n1 had trouble (exit code 1)"),
        "own": ("exit", 1, "exit code 1"),
    }


def test_the_end_of_the_pilot_is_told_rather_than_trouble_of_a_node() -> None:
    """Who ends a whole job tells its nodes and the pilot in any order."""
    reports: list[Ended] = []
    over = threading.Event()

    def run(attempt: Attempt) -> Ended:
        over.set()
        return ended(attempt, 1)

    pool = make(run, reports)
    pool.doubt("n1", "its node n1 had trouble")
    pool.submit([Attempt(SPEC)])
    assert over.wait(30)
    pool.drain("the end")
    assert [(one.outcome, one.reason) for one in reports] == [("drained", "the end")]


def test_no_thread_for_an_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has had no try; what has ended is told, and what waits behind it is not forgotten."""
    reports: list[Ended] = []
    begun: list[str] = []
    gate, room = threading.Event(), threading.Event()

    def run(attempt: Attempt) -> Ended:
        begun.append(attempt.spec.id)
        if attempt.spec.id == "wide":
            assert gate.wait(30)
        return ended(attempt, 0)

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("waiter") and begun and not room.is_set():
            raise RuntimeError("can't start new thread")
        start_thread(thread)

    def make_attempt(name: str, *cores: int) -> Attempt:
        return Attempt(replace(SPEC, id=name, shares=(NodeShare("n0", cores),)))

    monkeypatch.setattr(threading.Thread, "start", start)
    pool = make(run, reports)
    pool.submit([make_attempt("wide", 0, 1)])
    wait_until(lambda: begun, 30, "it runs")
    pool.submit([make_attempt("same", 0), make_attempt("other", 1), make_attempt("behind", 1)])
    gate.set()
    wait_until(lambda: len(reports) == 4, 30, "all are told")
    found = [(one.id, one.outcome) for one in reports]
    assert found[0] == ("wide", "exit")
    assert sorted(found[1:]) == [("behind", "unfit"), ("other", "unfit"), ("same", "exit")]
    assert {one.reason for one in reports if one.outcome == "unfit"} == {
        "cannot start: can't start new thread"
    }
    room.set()
    pool.submit([make_attempt("last", 0, 1)])
    wait_until(lambda: len(reports) == 5, 30, "cores and threads are free")
    assert (reports[-1].id, reports[-1].outcome) == ("last", "exit")
    pool.drain("the end")
