"""Real Celery workers of the login node: service, transitions, tasks."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from balsam_celery import keys, procs
from balsam_celery.celeryapp import redis_client
from balsam_celery.service import checks
from balsam_celery.service.engine import Engine
from balsam_celery.service.inbox import Letters
from balsam_celery.service.requests import request_kill, retry
from balsam_celery.site import Site
from balsam_celery.states import State
from balsam_celery.store.engine import Store
from tests import nasty
from tests.service.running.player import Player, wait_state
from tests.service.running.workers import Workers, read_lines, workers
from tests.store.making import add, history, program, task
from tests.waiting import wait_until

__all__ = ["workers"]
S = State

pytestmark = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
SERVICE = ("-P", "threads", "-c", "4")


def checked(check: checks.Checks, rounds: int) -> None:
    """Let it look that often."""
    done = 0
    while done < rounds:
        before = check._checked
        check.run()
        done += check._checked != before
        wait_until(lambda: time.time() > check._checked + checks.PAUSE, 5, "the pause")


@pytest.fixture
def soon(
    monkeypatch: pytest.MonkeyPatch, store: Store, site: Site, app: Celery[Any]
) -> Callable[[Engine], checks.Checks]:
    """Makes checks of an engine's transitions worker that come a second after each other."""
    monkeypatch.setattr(checks, "PAUSE", 1.0)
    client, prefix = redis_client(site), site.settings.key_prefix

    def make(engine: Engine) -> checks.Checks:
        return checks.Checks(
            store, app, client, prefix, engine.leadership, engine.outstanding, site.settings.retry
        )

    return make


def living(pids: Path) -> list[int]:
    """Those processes of a ``nasty`` program that are there."""
    return [pid for pid in map(int, read_lines(pids)) if procs.identity(pid) is not None]


def test_of_two_service_workers_one_serves(
    workers: Workers, store: Store, player: Player, app: Celery[Any]
) -> None:
    first = workers.start("service", "one", *SERVICE)
    wait_until(lambda: first.queues() == [keys.SERVICE_QUEUE], 20, "the leader consumes")
    second = workers.start("service", "two", *SERVICE)
    assert not second.queues()
    player.register("p1")
    add(store, program("t00001"), program("t00002"), program("t00003"), now=time.time())
    specs = player.wait_specs(2, "p1")
    for name in ("poll", "housekeep"):
        app.send_task(f"balsam.{name}", queue=keys.SERVICE_QUEUE, ignore_result=True)
    queue = f"{player.prefix}{keys.SERVICE_QUEUE}"
    wait_until(lambda: player.client.llen(queue) == 0, 20, "beat's messages are taken")
    # kill -9: the other one serves, and knows what runs
    first.kill()
    for spec in specs:
        player.run("p1", "n0", spec)
    [third] = player.wait_specs(1, "p1")
    player.run("p1", "n0", third)
    for number in (1, 2, 3):
        wait_state(store, f"t0000{number}", S.JOB_FINISHED)
    wait_until(lambda: second.queues() == [keys.SERVICE_QUEUE], 20, "the new leader consumes")
    assert "Traceback" not in second.log.read_text()


def test_hooks_on_the_transitions_worker(
    make_engine: Callable[[], Engine], workers: Workers, store: Store, site: Site, player: Player
) -> None:
    make_engine()
    workers.start("transitions", "one", "-P", "threads", "-c", "2")
    player.register("p1")
    source = site.directory / "input.txt"
    source.write_text("input")
    hooks = {
        "stage_in": [str(source)],
        "preprocess": ["sh", "-c", "cat input.txt > made.txt"],
        "handler": ["echo", "finish"],
    }
    add(store, dataclasses.replace(program("t00001"), hooks=hooks), now=time.time())
    [spec] = player.wait_specs(1, "p1")
    assert spec.staged is not None
    assert (site.run_dir / "work/default/t00001.t00001/staged/made.txt").read_text() == "input"
    player.run("p1", "n0", spec, code=9)
    wait_state(store, "t00001", S.JOB_FINISHED)
    assert history(store, "t00001")[-3:] == [S.RUN_ERROR, S.POSTPROCESSED, S.JOB_FINISHED]
    bad = dataclasses.replace(program("t00002"), hooks={"preprocess": ["/no/such"]})
    add(store, bad, now=time.time())
    wait_state(store, "t00002", S.FAILED)
    assert task(store, "t00002").reason == "preprocess: No such file or directory: /no/such"


def test_a_kill_during_a_hook(
    make_engine: Callable[[], Engine],
    workers: Workers,
    store: Store,
    site: Site,
    soon: Callable[[Engine], checks.Checks],
) -> None:
    """USER_KILLED means that no process of it lives: it runs, waits, or has lost its worker."""
    engine = make_engine()
    check = soon(engine)
    first = workers.start("transitions", "one", "-P", "threads", "-c", "1")
    pids = site.directory / "pids"
    nasty_hook = {"preprocess": [sys.executable, nasty.__file__, "session", str(pids)]}
    runs, waits, orphaned = (
        dataclasses.replace(program(f"t0000{number}"), hooks=nasty_hook) for number in (1, 2, 3)
    )

    add(store, runs, now=time.time())
    wait_until(lambda: len(living(pids)) == 2, 30, "the hook runs")
    add(store, waits, now=time.time())
    wait_until(lambda: any(key[0] == waits.id for key in engine.outstanding.sent), 30, "it waits")
    assert request_kill(store, [runs.id, waits.id], "enough").requested == (runs.id, waits.id)
    wait_state(store, runs.id, S.USER_KILLED)
    assert not living(pids)
    wait_state(store, waits.id, S.USER_KILLED)
    assert len(read_lines(pids)) == 2, "it never began"
    assert history(store, runs.id)[-1] is S.USER_KILLED
    add(store, orphaned, now=time.time())
    wait_until(lambda: len(living(pids)) == 2, 30, "the hook runs")
    first.kill()
    request_kill(store, [orphaned.id], "enough")
    workers.start("transitions", "two", "-P", "threads", "-c", "1")
    assert task(store, orphaned.id).state is S.READY
    assert len(living(pids)) == 2
    wait_until(
        lambda: check.run() or task(store, orphaned.id).state is S.USER_KILLED, 60, "it is killed"
    )
    assert not living(pids)


def test_what_a_hook_leaves_behind_ends_with_it(
    make_engine: Callable[[], Engine], workers: Workers, store: Store, site: Site
) -> None:
    """Daemons without parent, session or environment, at an ordinary end and at a kill (R8)."""
    make_engine()
    worker = workers.start("transitions", "one", "-P", "threads", "-c", "4")
    go = site.directory / "go"
    files = {}
    for kind in ("orphan", "nameless"):
        for end in ("ends", "killed"):
            pids = files[f"{kind}-{end}"] = site.directory / f"{kind}-{end}"
            waits = f"until [ -e {go} ]; do sleep 0.1; done" if end == "ends" else "sleep 300"
            script = f"{sys.executable} {nasty.__file__} {kind} {pids}; {waits}"
            hooked = dataclasses.replace(
                program(f"{kind}-{end}"), hooks={"preprocess": ["sh", "-c", script]}
            )
            add(store, hooked, now=time.time())
    for id, pids in files.items():
        wait_until(lambda pids=pids: len(read_lines(pids)) == 2, 60, f"the hook of {id} runs")  # type: ignore[misc]
        wait_until(lambda pids=pids: len(living(pids)) == 1, 20, f"{id}: its daemon is alone")  # type: ignore[misc]
        found = procs.entry(living(pids)[0])
        assert found is not None
        assert found.parent == worker.process.pid
    request_kill(store, ["orphan-killed", "nameless-killed"], "enough")
    go.touch()
    for id, pids in files.items():
        state = S.USER_KILLED if id.endswith("killed") else S.PREPROCESSED
        wait_state(store, id, state, 60)
        assert not living(pids), id
    # zombies are gone too
    assert not procs.children_of(worker.process.pid)


def test_a_message_that_comes_twice_or_late_runs_no_hook(
    make_engine: Callable[[], Engine], workers: Workers, store: Store, site: Site, player: Player
) -> None:
    """Each program of a hook first ends what is left of it: a second one would end the first."""
    engine = make_engine()
    wait_until(lambda: engine._term is not None, 20, "it leads, and takes nothing for sent")
    ran, go = site.directory / "ran", site.directory / "go"
    script = f"echo $$ >> {ran}; until [ -e {go} ]; do sleep 0.05; done"
    hooked = dataclasses.replace(program("t00001"), hooks={"preprocess": ["sh", "-c", script]})
    add(store, hooked, now=time.time())
    queue = f"{player.prefix}{keys.TRANSITIONS_QUEUE}"
    [message] = wait_until(lambda: player.client.lrange(queue, 0, -1), 20, "it is sent")
    worker = workers.start("transitions", "one", "-P", "threads", "-c", "2")
    wait_until(lambda: len(read_lines(ran)) == 1, 20, "the hook runs")

    def again(times: int) -> None:
        player.client.lpush(queue, message)
        dropped = "dropped a message of t00001.0.preprocess"
        wait_until(lambda: worker.log.read_text().count(dropped) == times, 20, "it is dropped")

    again(1)
    query = worker.inspect("query_task", "t00001.0.preprocess")
    assert query["t00001.0.preprocess"][0] == "active", "it is not taken for lost"
    # a Redis that was killed may have forgotten that it has begun
    player.client.delete(keys.begun(player.prefix, keys.hook_message("t00001.0.preprocess")))
    again(2)
    go.touch()
    wait_state(store, "t00001", S.PREPROCESSED)
    again(3)
    player.client.delete(keys.begun(player.prefix, keys.hook_message("t00001.0.preprocess")))
    again(4)
    assert len(read_lines(ran)) == 1
    assert history(store, "t00001")[-2:] == [S.READY, S.PREPROCESSED]


@pytest.mark.parametrize("known", [True, False])
def test_a_report_that_redis_has_forgotten_is_told_again(
    make_engine: Callable[[], Engine],
    workers: Workers,
    store: Store,
    site: Site,
    player: Player,
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
    soon: Callable[[Engine], checks.Checks],
) -> None:
    """The hook itself has ended, and must not run once more; also if another service sent it."""
    engine = make_engine()
    check = soon(engine)
    inbox = keys.inbox(player.prefix)
    read = engine._inbox.read

    def forgetful(timeout: float, limit: int = 500) -> Letters:
        letters = read(timeout, limit)
        lost = [text for text in letters.raw if "TransitionEnded" in str(text)]
        if forgotten or not lost:
            return letters
        forgotten.append(player.client.lrem(inbox, 1, lost[0]))  # type: ignore[arg-type]
        return Letters()

    forgotten: list[object] = []
    monkeypatch.setattr(engine._inbox, "read", forgetful)
    worker = workers.start("transitions", "one", "-P", "threads", "-c", "1")
    ran = site.directory / "ran"
    hooked = {"preprocess": ["sh", "-c", f"echo $$ >> {ran}"]}
    add(store, dataclasses.replace(program("t00001"), hooks=hooked), now=time.time())
    wait_until(lambda: forgotten, 30, "its report is lost")
    assert task(store, "t00001").state is S.READY
    if not known:
        engine.outstanding.copies = dict.fromkeys(engine.outstanding.copies)
    wait_until(
        lambda: check.run() or task(store, "t00001").state is S.PREPROCESSED, 60, "it goes on"
    )
    assert len(read_lines(ran)) == 1
    assert "the end of t00001.0.preprocess was lost, and is told again" in worker.log.read_text()


def test_the_end_of_an_earlier_life_is_not_told_for_a_retry(
    make_engine: Callable[[], Engine],
    workers: Workers,
    store: Store,
    site: Site,
    soon: Callable[[Engine], checks.Checks],
) -> None:
    """It never ran, so that it waits for the same step of the same attempt; no service was up."""
    engine = make_engine()
    worker = workers.start("transitions", "one", "-P", "threads", "-c", "1")
    ran = site.directory / "ran"
    hooked = {"preprocess": ["sh", "-c", f"echo $$ >> {ran}; [ $(wc -l < {ran}) = 2 ]"]}
    add(store, dataclasses.replace(program("t00001"), hooks=hooked), now=time.time())
    wait_state(store, "t00001", S.FAILED)
    engine.ask_to_stop()
    engine.join(30)
    assert retry(store, ["t00001"]).done == ("t00001",)
    again = make_engine()
    check = soon(again)
    wait_until(lambda: check.run() or task(store, "t00001").state is not S.READY, 60, "it goes on")
    row = task(store, "t00001")
    assert (row.state, row.cuts) == (S.PREPROCESSED, 0), row.reason
    assert len(read_lines(ran)) == 2
    assert "is told again" not in worker.log.read_text()


def test_a_hook_is_not_lost_while_a_worker_that_may_run_it_is_silent(
    make_engine: Callable[[], Engine],
    workers: Workers,
    store: Store,
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    soon: Callable[[Engine], checks.Checks],
) -> None:
    engine = make_engine()
    check = soon(engine)
    first = workers.start("transitions", "one", "-P", "threads", "-c", "1")
    pids = site.directory / "pids"
    hooks = {"preprocess": [sys.executable, nasty.__file__, "deaf", str(pids)]}
    add(store, dataclasses.replace(program("t00001"), hooks=hooks), now=time.time())
    wait_until(lambda: len(living(pids)) == 1, 30, "the hook runs")
    wait_until(lambda: time.time() > min(engine.outstanding.sent.values()) + 1.0, 5, "it is due")
    workers.start("transitions", "two", "-P", "threads", "-c", "1")
    checked(check, 1)
    os.kill(first.process.pid, signal.SIGSTOP)
    try:
        checked(check, 3)
        assert len(engine.outstanding.sent) == 1
        assert len(living(pids)) == len(read_lines(pids)) == 1, "it runs, and once"
    finally:
        os.kill(first.process.pid, signal.SIGCONT)
    # one that is silent for long is not waited for
    first.kill()
    checked(check, 2)
    assert len(read_lines(pids)) == 1
    monkeypatch.setattr(checks, "FORGET", 1.0)
    wait_until(lambda: check.run() is not None and len(read_lines(pids)) == 2, 60, "again")
    assert living(pids) == [int(read_lines(pids)[1])], "the first copy has ended"
    request_kill(store, ["t00001"], "enough")
    wait_state(store, "t00001", S.USER_KILLED)
