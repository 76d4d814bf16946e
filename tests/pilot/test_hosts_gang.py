"""Tasks over several hosts: every rank is reached, and cores come free only after that."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from balsam_celery import keys, procs, wire
from balsam_celery.wire import KillOrder, PilotEnded, PilotOrder, WorkerLost
from tests import nasty
from tests.pilot.cluster import Cluster
from tests.pilot.service import Pilot, Service
from tests.pilot.test_gang import PROGRAM, ranks
from tests.pilot.test_kills import pids_in
from tests.waiting import wait_until

pytest.importorskip("mpi4py")
NASTY = [sys.executable, nasty.__file__]


def whole(pilot: Pilot, *nodes: str) -> tuple[wire.NodeShare, ...]:
    return tuple(pilot.whole(node) for node in nodes or pilot.nodes)


def test_an_mpi_program(head: Service) -> None:
    """Over four hosts, beside tasks on single nodes; two ranks on each."""
    pilot = head.start([2, 2, 2, 2, 2], virtual=False)
    nodes = pilot.nodes[:4]
    spec = pilot.spec("mpi", *PROGRAM, shares=whole(pilot, *nodes), ranks_per_node=2)
    pilot.run(spec, node=keys.GANG)
    pilot.run(pilot.spec("one", "/bin/true", shares=(pilot.share("n4"),)), node="n4")
    ended = head.ended("mpi", timeout=90)
    assert ended.exit_code == 0, ended
    assert [(one["rank"], one["size"]) for one in ranks(spec.work_dir)] == [
        (n, 8) for n in range(8)
    ]
    assert head.ended("one").exit_code == 0


@pytest.mark.parametrize("kind", ["deaf", "nameless"])
def test_kill(head: Service, tmp_path: Path, kind: str) -> None:
    """Ranks ignore TERM, or leave what has neither session nor environment nor parent."""
    pilot = head.start([1, 1, 1, 1], virtual=False)
    pids = tmp_path / "pids"
    command = f"{' '.join(NASTY)} {kind} {pids}; sleep 300"
    shares = whole(pilot)
    pilot.run(
        pilot.spec("gang", "/bin/sh", "-c", command, shares=shares),
        pilot.spec("next", "/bin/sh", "-c", f"echo next >> {tmp_path / 'order'}", shares=shares),
        node=keys.GANG,
    )
    found = wait_until(pids_in(pids, 8 if kind == "nameless" else 4), 60, "all ranks run")
    pilot.kill(KillOrder("gang", 1, "asked"), node=keys.GANG)
    assert head.ended("gang", timeout=60).outcome == "killed"
    assert [pid for pid in found if procs.identity(pid)] == []
    assert head.ended("next", timeout=60).exit_code == 0
    assert (tmp_path / "order").read_text().split() == ["next"] * 4


def test_what_ranks_leave_behind_ends_with_the_task(head: Service, tmp_path: Path) -> None:
    pilot = head.start([1, 1, 1], virtual=False)
    pids = tmp_path / "pids"
    # with its files open, PMI's among them, it would keep mpiexec itself waiting
    arguments = [*NASTY, "nameless", str(pids)]
    # what is left exists, rather than is about to, when the rank ends
    code = (
        f"import os, time; os.closerange(0, 64); os.spawnv(os.P_WAIT, {arguments[0]!r},"
        f" {arguments!r})\n"
        f"while open({str(pids)!r}).read().count(chr(10)) < 6: time.sleep(0.05)"
    )
    command = (sys.executable, "-c", code)
    pilot.run(pilot.spec("gang", *command, shares=whole(pilot)), node=keys.GANG)
    assert head.ended("gang", timeout=60).exit_code == 0
    found = pids_in(pids, 6)()
    assert len(found) == 6
    assert [pid for pid in found if procs.identity(pid)] == []


def test_a_host_that_the_launcher_cannot_reach(cluster: Cluster, head: Service) -> None:
    """The task fails, and nothing waits for it on the hosts that were reached."""
    pilot = head.start([1, 1, 1], virtual=False)
    wait_until(lambda: not cluster.proxies(), 20, "the start of the pilot is over")
    cluster.cut("n2")
    pilot.run(pilot.spec("gang", "/bin/true", shares=whole(pilot)), node=keys.GANG)
    ended = head.ended("gang", timeout=60)
    assert (ended.outcome, ended.exit_code) == ("exit", 255)
    wait_until(lambda: not cluster.proxies(), 20, "nothing of the launcher is left anywhere")
    pilot.run(pilot.spec("next", "/bin/true", shares=whole(pilot, "n0", "n1")), node=keys.GANG)
    assert head.ended("next", timeout=60).exit_code == 0


def test_cores_come_free_only_when_every_node_has_confirmed(head: Service, tmp_path: Path) -> None:
    """A keeper that does not answer holds them; the other tasks of the pilot go on."""
    pilot = head.start([1, 1, 1], virtual=False)
    pids = tmp_path / "pids"
    shares = whole(pilot, "n0", "n1")
    pilot.run(
        pilot.spec("gang", *NASTY, "plain", str(pids), shares=shares),
        pilot.spec("next", "/bin/true", shares=shares),
        node=keys.GANG,
    )
    found = wait_until(pids_in(pids, 2), 60, "both ranks run")
    keeper = pilot.identity_of("n1.keeper")
    procs.send(keeper, signal.SIGSTOP)
    pilot.kill(KillOrder("gang", 1, "asked"), node=keys.GANG)
    wait_until(lambda: not any(procs.identity(pid) for pid in found), 30, "the ranks are ended")
    pilot.run(pilot.spec("beside", "/bin/true", shares=(pilot.share("n2"),)), node="n2")
    assert head.ended("beside").exit_code == 0
    assert [one["id"] for one in pilot.inspect("active", keys.GANG)] == ["gang"]
    assert [one["id"] for one in pilot.inspect("reserved", keys.GANG)] == ["next"]
    procs.send(keeper, signal.SIGCONT)
    assert head.ended("gang").outcome == "killed"
    assert head.ended("next", timeout=60).exit_code == 0


def test_kill_9_of_the_gang_worker(head: Service, tmp_path: Path) -> None:
    """Its ranks are ended on all nodes before a new one takes its place."""
    pilot = head.start([1, 1, 1], virtual=False)
    pids = tmp_path / "pids"
    command = f"{' '.join(NASTY)} nameless {pids}; exec {' '.join(NASTY)} deaf {pids}"
    pilot.run(pilot.spec("gang", "/bin/sh", "-c", command, shares=whole(pilot)), node=keys.GANG)
    pilot.run(pilot.spec("one", "/bin/sleep", "300"), node="n0")
    found = wait_until(pids_in(pids, 9), 60, "all ranks run")
    os.kill(pilot.pid_of(keys.GANG), signal.SIGKILL)
    ended = head.ended("gang")
    assert (ended.outcome, ended.reason) == ("lost", "its worker died")
    assert [pid for pid in found if procs.identity(pid)] == []
    [lost] = wait_until(lambda: head.all(WorkerLost), 20, "the loss is told")
    assert (lost.node, lost.restarted, lost.confirmed) == (keys.GANG, True, True)
    pilot.run(pilot.spec("next", "/bin/true", shares=whole(pilot, "n1", "n2")), node=keys.GANG)
    assert head.ended("next", timeout=60).exit_code == 0
    assert [one["id"] for one in pilot.inspect("active")] == ["one"]


def test_a_node_is_lost_under_a_task(head: Service, tmp_path: Path) -> None:
    """It ends, on all its nodes; the others go on, and so do tasks over those."""
    pilot = head.start([1, 1, 1, 1], virtual=False)
    pids = tmp_path / "pids"
    first = pilot.spec("first", *NASTY, "deaf", str(pids), shares=whole(pilot, "n0", "n1"))
    other = pilot.spec("other", *NASTY, "plain", str(pids), shares=whole(pilot, "n2", "n3"))
    pilot.run(first, other, node=keys.GANG)
    wait_until(pids_in(pids, 4), 60, "all ranks run")
    order = wire.encode(PilotOrder("lose", "node n1 is down", "n1"))
    head.client.rpush(keys.control(head.prefix, pilot.id), order)
    ended = head.ended("first", timeout=60)
    assert (ended.outcome, ended.reason) == ("lost", "its node n1 was lost: node n1 is down")
    assert [one["id"] for one in pilot.inspect("active", keys.GANG)] == ["other"]
    assert pilot.inspect("stats", keys.GANG)["pool"]["max-concurrency"] == 3


@pytest.mark.parametrize("how", ["lost", "renewed"])
def test_a_node_is_lost_once_the_launcher_has_ended(
    head: Service, tmp_path: Path, how: str
) -> None:
    """The launcher sees it at once and fails; that was not the program's doing."""
    pilot = head.start([1, 1, 1], virtual=False)
    pids = tmp_path / "pids"
    shares = whole(pilot, "n1", "n2")
    pilot.run(pilot.spec("first", *NASTY, "plain", str(pids), shares=shares), node=keys.GANG)
    found = wait_until(pids_in(pids, 2), 60, "all ranks run")
    keeper = pilot.identity_of("n1.keeper")
    procs.send(keeper, signal.SIGSTOP)
    [active] = pilot.inspect("active", keys.GANG)
    os.kill(found[0], signal.SIGKILL)
    wait_until(lambda: procs.identity(active["worker_pid"]) is None, 30, "the launcher has ended")
    if how == "lost":
        order = wire.encode(PilotOrder("lose", "node n1 is down", "n1"))
        head.client.rpush(keys.control(head.prefix, pilot.id), order)
        wait_until(lambda: head.all(WorkerLost), 20, "the node is lost")
        procs.send(keeper, signal.SIGCONT)
    else:
        procs.send(keeper, signal.SIGKILL)
    ended = head.ended("first", timeout=60)
    node = "its node n1 was lost: node n1 is down" if how == "lost" else "its node n1 had trouble"
    assert ended.outcome == "lost"
    assert ended.reason.startswith(node)
    assert "exit code" in ended.reason
    pilot.run(pilot.spec("next", "/bin/false", shares=whole(pilot, "n0", "n2")), node=keys.GANG)
    assert head.ended("next", timeout=60).outcome == "exit", "its own failure"
    if how == "lost":
        os.kill(pilot.pid_of(keys.GANG), signal.SIGKILL)
        wait_until(lambda: len(head.all(WorkerLost)) > 2, 30, "a new gang worker is there")
        late = pilot.spec("late", "/bin/false", shares=shares)
        pilot.run(late, node=keys.GANG)
        assert head.ended("late", timeout=60).outcome == "lost", "it knows, too"


def test_drain(head: Service, tmp_path: Path) -> None:
    """Everything ends with it, on all nodes, and all of it is told."""
    pilot = head.start([1, 1, 1], virtual=False)
    pids = tmp_path / "pids"
    shares = whole(pilot, "n1", "n2")
    pilot.run(pilot.spec("gang", *NASTY, "deaf", str(pids), shares=shares), node=keys.GANG)
    pilot.run(pilot.spec("one", *NASTY, "session", str(pids)), node="n0")
    found = wait_until(pids_in(pids, 4), 60, "all run")
    pilot.process.send_signal(signal.SIGTERM)
    assert pilot.wait_ended(60) == 0
    assert [pid for pid in found if procs.identity(pid)] == []
    assert {head.ended(task).outcome for task in ("gang", "one")} == {"drained"}
    assert head.all(PilotEnded)


def test_kill_9_of_the_pilot(head: Service, tmp_path: Path) -> None:
    """No rank is left on any node, whatever it did."""
    pilot = head.start([1, 1, 1], virtual=False)
    pids = tmp_path / "pids"
    command = f"{' '.join(NASTY)} nameless {pids}; exec {' '.join(NASTY)} deaf {pids}"
    pilot.run(pilot.spec("gang", "/bin/sh", "-c", command, shares=whole(pilot)), node=keys.GANG)
    found = wait_until(pids_in(pids, 9), 60, "all ranks run")
    names = [*pilot.nodes, keys.GANG, *(f"{node}.keeper" for node in pilot.nodes)]
    processes = [pilot.identity_of(name) for name in names]
    pilot.process.kill()
    wait_until(lambda: not any(map(procs.alive, processes)), 60, "all of it ends")
    wait_until(lambda: not any(procs.identity(pid) for pid in found), 5, "no rank is left")


def test_the_gang_worker_dies_while_a_node_is_silent(
    cluster: Cluster, head: Service, tmp_path: Path
) -> None:
    """It comes back; only what it had on that node stays until the scheduler has given it up."""
    pilot = head.start([1, 1, 1, 1], virtual=False)
    near, far = whole(pilot, "n0", "n1"), whole(pilot, "n2", "n3")
    pids = {name: tmp_path / name for name in ("near", "far")}
    for name, shares in (("near", near), ("far", far)):
        command = (*NASTY, "plain", str(pids[name]))
        pilot.run(pilot.spec(name, *command, shares=shares), node=keys.GANG)
    found = {name: wait_until(pids_in(path, 2), 60, "ranks run") for name, path in pids.items()}
    worker, keeper = pilot.identity_of("n3"), pilot.identity_of("n3.keeper")
    cluster.cut("n3")
    procs.send(worker, signal.SIGSTOP)  # nothing there hears of anything any more
    procs.send(keeper, signal.SIGKILL)
    try:
        os.kill(pilot.pid_of(keys.GANG), signal.SIGKILL)

        def told(node: str) -> list[tuple[bool, bool]]:
            found = [one for one in head.all(WorkerLost) if one.node == node]
            return [(one.restarted, one.confirmed) for one in found]

        wait_until(lambda: told("n3") == [(False, False)], 90, "the node is lost")
        wait_until(lambda: told(keys.GANG) == [(True, True)], 30, "the gang worker is back")
        ended = head.ended("near")
        assert (ended.outcome, ended.reason) == ("lost", "its worker died")
        assert [pid for pid in found["near"] if procs.identity(pid)] == []
        pilot.kill(KillOrder("far", 1, "asked"), node=keys.GANG)
        pilot.run(pilot.spec("next", "/bin/true", shares=near), node=keys.GANG)
        assert head.ended("next", timeout=60).exit_code == 0
        assert not [one for one in head.all(wire.Ended) if one.id == "far"], "who knows of n3?"
    finally:
        mark = f"BALSAM_PILOT_NODE={pilot.id}/n3"
        quarry = procs.Quarry(roots=frozenset((worker,)), marks=frozenset((mark,)))
        procs.end(quarry, grace=0)
    order = wire.encode(PilotOrder("lose", "node n3 is down", "n3"))
    head.client.rpush(keys.control(head.prefix, pilot.id), order)
    ended = head.ended("far", timeout=150)
    assert (ended.outcome, ended.reason) == ("lost", "its worker died")
    assert [pid for pid in found["far"] if procs.identity(pid)] == []
    pilot.process.send_signal(signal.SIGTERM)
    assert pilot.wait_ended() == 0
    assert head.all(PilotEnded)


def test_a_gang_worker_that_comes_back_leaves_no_descriptor(head: Service) -> None:
    pilot = head.start([1, 1], virtual=False)
    files = Path(f"/proc/{pilot.process.pid}/fd")
    before = len(list(files.iterdir()))
    for deaths in (1, 2, 3):
        os.kill(pilot.pid_of(keys.GANG), signal.SIGKILL)
        wait_until(lambda n=deaths: len(head.all(WorkerLost)) == n, 30, "a new one is there")  # type: ignore[misc]
        wait_until(lambda: pilot.inspect("ping", keys.GANG), 30, "it consumes")
    wait_until(lambda: len(list(files.iterdir())) <= before, 30, "nothing of the old ones is open")
