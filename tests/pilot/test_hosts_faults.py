"""Crashes in a pilot over several hosts: what dies, what never notices, and who is told."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery import keys, procs, wire
from balsam_celery.pilot.channel import Channel, ChannelBroken
from balsam_celery.pilot.link import Drain, Hello, Invitation, encode
from balsam_celery.resources import NodeCapacity
from balsam_celery.wire import Ended, PilotEnded, PilotOrder, WorkerLost
from tests import nasty
from tests.pilot.cluster import Cluster
from tests.pilot.service import Pilot, Service
from tests.pilot.test_hosts import keepers, log_of
from tests.pilot.test_kills import pids_in
from tests.waiting import wait_until

pytest.importorskip("mpi4py")
NASTY = [sys.executable, nasty.__file__]


@pytest.fixture
def pilot(head: Service) -> Iterator[Pilot]:
    """Three hosts, and on each a program; ``head`` has seen them start."""
    pilot = head.start([1, 1, 1], virtual=False)
    for node in pilot.nodes:
        # longer than any of what is waited for, also on a loaded machine
        more = {"shares": (pilot.share(node),), "wall_time": 1200}
        pilot.run(pilot.spec(f"on-{node}", "/bin/sleep", "1200", **more), node=node)
    for node in pilot.nodes:
        wait_until(lambda node=node: pilot.inspect("active", node), 20, f"it runs on {node}")  # type: ignore[misc]
    yield pilot


def lost(head: Service) -> list[tuple[str, bool, bool]]:
    return [(one.node, one.restarted, one.confirmed) for one in head.all(WorkerLost)]


def others_go_on(pilot: Pilot, *nodes: str) -> None:
    """What runs on these nodes has not noticed, and the pilot can be told to end."""
    for node in nodes:
        assert [one["id"] for one in pilot.inspect("active", node)] == [f"on-{node}"]


def test_kill_9_of_a_node_worker(head: Service, pilot: Pilot, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    share = (pilot.share("n1"),)
    keeper = pilot.identity_of("n1.keeper")
    os.kill(pilot.pid_of("n1"), signal.SIGKILL)
    ended = head.ended("on-n1")
    assert (ended.outcome, ended.reason) == ("lost", "its worker died")
    wait_until(lambda: lost(head) == [("n1", True, True)], 20, "the loss is told")
    pilot.run(pilot.spec("nasty", *NASTY, "deaf", str(pids), shares=share, attempt=2), node="n1")
    wait_until(pids_in(pids, 1), 20, "the new worker runs things")
    assert procs.alive(keeper)
    others_go_on(pilot, "n0", "n2")


@pytest.mark.parametrize("both", [False, True], ids=["keeper", "keeper and worker"])
def test_kill_9_of_a_keeper(head: Service, pilot: Pilot, tmp_path: Path, both: bool) -> None:
    """The node is started again; nothing of its earlier life is left, whatever it did."""
    pilot.kill(wire.KillOrder("on-n1", 1, "over"), node="n1")
    assert head.ended("on-n1").outcome == "killed"
    pids = tmp_path / "pids"
    command = f"{' '.join(NASTY)} nameless {pids}; exec {' '.join(NASTY)} deaf {pids}"
    share = (pilot.share("n1"),)
    pilot.run(pilot.spec("nasty", "/bin/sh", "-c", command, shares=share), node="n1")
    found = wait_until(pids_in(pids, 3), 20, "it runs")
    worker, keeper = pilot.identity_of("n1"), pilot.identity_of("n1.keeper")
    procs.send(keeper, signal.SIGKILL)
    if both:
        procs.send(worker, signal.SIGKILL)
    assert head.ended("nasty", timeout=60).outcome == "lost"
    wait_until(lambda: lost(head) == [("n1", True, True)], 60, "the loss is told")
    assert [pid for pid in found if procs.identity(pid)] == []
    assert not procs.alive(worker)
    assert pilot.identity_of("n1.keeper") != keeper
    pilot.run(pilot.spec("next", "/bin/true", shares=(pilot.share("n1"),)), node="n1")
    assert head.ended("next").exit_code == 0
    others_go_on(pilot, "n0", "n2")
    pilot.process.send_signal(signal.SIGTERM)
    assert pilot.wait_ended() == 0
    assert head.all(PilotEnded)


def test_a_node_that_cannot_be_started_again(cluster: Cluster, head: Service, pilot: Pilot) -> None:
    """Its attempts stay where they are until the scheduler has given it up."""
    keeper, worker = pilot.identity_of("n2.keeper"), pilot.identity_of("n2")
    cluster.cut("n2")
    # what is behind a broken network lives on, and nobody hears of it
    procs.send(worker, signal.SIGSTOP)
    cut = time.monotonic()
    procs.send(keeper, signal.SIGKILL)
    wait_until(lambda: lost(head) == [("n2", False, False)], 90, "the node is lost")
    assert not [one for one in head.all(Ended) if one.id == "on-n2"]
    others_go_on(pilot, "n0", "n1")
    # now the scheduler gives it up, and it ends what it runs in the time that it has for that
    order = wire.encode(PilotOrder("lose", "node n2 is down", "n2"))
    head.client.rpush(keys.control(head.prefix, pilot.id), order)
    _end_node(pilot, worker)
    assert head.ended("on-n2", timeout=150).outcome == "lost"
    assert time.monotonic() > cut + cluster.site.settings.over_after
    wait_until(lambda: lost(head)[1:] == [("n2", False, True)], 20, "that is told")
    pilot.process.send_signal(signal.SIGTERM)
    assert pilot.wait_ended() == 0


def _end_node(pilot: Pilot, worker: procs.Identity) -> None:
    mark = f"BALSAM_PILOT_NODE={pilot.id}/n2"
    procs.end(procs.Quarry(roots=frozenset((worker,)), marks=frozenset((mark,))), grace=0)


def test_the_scheduler_takes_a_node(head: Service, pilot: Pilot) -> None:
    """What lives there ends first, decently."""
    worker = pilot.identity_of("n1")
    order = wire.encode(PilotOrder("lose", "it was drained", "n1"))
    head.client.rpush(keys.control(head.prefix, pilot.id), order)
    assert head.ended("on-n1").outcome == "lost"
    told = [("n1", False, False), ("n1", False, True)]
    wait_until(lambda: lost(head) == told, 30, "the loss is told, first that nothing starts there")
    assert not procs.alive(worker)
    others_go_on(pilot, "n0", "n2")


def test_the_scheduler_takes_a_node_whose_keeper_hangs(
    cluster: Cluster, head: Service, pilot: Pilot
) -> None:
    """As when an administrator sets a node down that works on: its word is no proof."""
    silence = f"no word for {cluster.site.settings.pilot.silence_timeout} s"
    keeper = pilot.identity_of("n1.keeper")
    procs.send(keeper, signal.SIGSTOP)
    try:
        order = wire.encode(PilotOrder("lose", "it was set down", "n1"))
        head.client.rpush(keys.control(head.prefix, pilot.id), order)
        silent = [("n1", False, False)]
        wait_until(lambda: lost(head) == silent, 30, "nothing more starts there")
        wait_until(lambda: silence in log_of(pilot), 90, "its keeper is given up")
        assert lost(head) == silent
        assert not [one for one in head.all(Ended) if one.id == "on-n1"]
    finally:
        procs.send(keeper, signal.SIGCONT)
    assert head.ended("on-n1").outcome == "lost"
    others_go_on(pilot, "n0", "n2")


def test_kill_9_of_the_pilot(head: Service, pilot: Pilot) -> None:
    """All nodes end what they run, and themselves."""
    names = [*pilot.nodes, keys.GANG, *(f"{node}.keeper" for node in pilot.nodes)]
    processes = [pilot.identity_of(name) for name in names]
    pilot.process.kill()
    for node in pilot.nodes:
        # whether the pilot is gone or only the way to it, no keeper can know
        assert head.ended(f"on-{node}").outcome == "lost"
    wait_until(lambda: not any(map(procs.alive, processes)), 60, "all of it ends")
    assert not head.all(PilotEnded)


def test_sigterm_on_a_node_is_the_loss_of_that_node(head: Service, pilot: Pilot) -> None:
    """Who ends what runs on one node does not mean the pilot, whichever process hears of it."""
    worker, keeper = pilot.identity_of("n2"), pilot.identity_of("n2.keeper")
    procs.send(worker, signal.SIGTERM)
    procs.send(keeper, signal.SIGTERM)
    ended = head.ended("on-n2")
    assert (ended.outcome, ended.reason) == ("lost", "its node is taken away")
    told = [("n2", False, False), ("n2", False, True)]
    wait_until(lambda: lost(head) == told, 30, "the loss is told, first that nothing starts there")
    kinds = [type(one) for _, _, _, one in head.records if getattr(one, "id", "on-n2") == "on-n2"]
    assert kinds.index(WorkerLost) < kinds.index(Ended), "nothing more is sent there"
    assert not procs.alive(worker)
    others_go_on(pilot, "n0", "n1")
    pilot.process.send_signal(signal.SIGTERM)
    assert pilot.wait_ended() == 0
    assert {head.ended(f"on-{node}").outcome for node in ("n0", "n1")} == {"drained"}
    assert head.all(PilotEnded)


def test_sigterm_on_most_nodes_means_the_pilot(head: Service, pilot: Pilot) -> None:
    """A scheduler begins somewhere, and may never reach the pilot's main process."""
    for node in ("n1", "n2"):
        procs.send(pilot.identity_of(f"{node}.keeper"), signal.SIGTERM)
    assert pilot.wait_ended() == 0
    assert [one.reason for one in head.all(PilotEnded)] == ["SIGTERM received on n1"]
    assert {head.ended(f"on-{node}").outcome for node in pilot.nodes} == {"drained"}


def test_strangers_at_the_link(head: Service, pilot: Pilot) -> None:
    """Without the token nothing is said or believed; with it nobody takes a node that is there."""
    text = (pilot.directory / "nodes.json").read_text()
    invitation = wire.decode(Invitation, text)
    port = invitation.addresses[0][1]
    hello = encode(Hello("n1", 1, "elsewhere", NodeCapacity("n1", (0,))))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as flood:
        flood.sendall(b"x" * 100_000)
        flood.settimeout(10)
        with pytest.raises(ConnectionError):
            while flood.recv(4096):
                pass
            raise ConnectionError("closed, as good as reset")
    for token in ("0" * 64, invitation.token):
        channel = Channel(
            socket.create_connection(("127.0.0.1", port), timeout=10), token.encode(), "node"
        )
        channel.send(hello)
        channel.send(encode(Drain("forged")))

        def refused(channel: Channel = channel) -> bool:
            try:
                channel.flush()
                channel.receive()
            except ChannelBroken:
                return True
            return False

        wait_until(refused, 20, "it is refused")
        channel.close()
    others_go_on(pilot, *pilot.nodes)
    assert all(map(procs.alive, keepers(pilot)))
    assert "not wanted" in log_of(pilot)
