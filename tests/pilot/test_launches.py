"""Starting nodes again: how many at once, and what a slow first start means."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery.celeryapp import make_pilot_app
from balsam_celery.launchers import Launch, Launcher, Ranks
from balsam_celery.pilot import starting
from balsam_celery.pilot.channel import Channel
from balsam_celery.pilot.context import Parent, PilotContext
from balsam_celery.pilot.crew import Crew
from balsam_celery.pilot.host import Host
from balsam_celery.pilot.launches import Launches
from balsam_celery.pilot.link import Hello
from balsam_celery.resources import NodeCapacity
from tests.pilot.service import make_site
from tests.redis_server import RedisServer
from tests.waiting import wait_until

NODES = tuple(NodeCapacity(f"n{number}", (0,)) for number in range(20))


class Stays(Launcher):
    """A real process for each launch, which lasts; it says something first."""

    kind = "stays"
    stays = True
    script = "trap '' TERM; echo n3 is lost; while :; do sleep 1; done"

    def launch(self, ranks: Ranks) -> Launch:
        return Launch(("/bin/sh", "-c", self.script))

    def lost_node(self, line: str) -> str | None:
        return line.partition(" ")[0] if line.endswith("is lost") else None


class Vouches(Stays):
    vouches = True


class Started:
    """Launches, and what came of them."""

    def __init__(self, context: PilotContext, launcher: Launcher) -> None:
        self.hosts = {node.name: Host(node) for node in context.nodes}
        self.crew = Crew(make_pilot_app(context.site), Parent(), list)
        self.launches = Launches(context, launcher, self.crew, self.hosts)
        self._ends: list[socket.socket] = []

    def comes(self, host: Host, *, again: bool) -> None:
        """A keeper of the host has a link."""
        here, there = socket.socketpair()
        self._ends.append(there)
        hello = Hello(host.name, 1, host.name, host.capacity, again)
        host.came(Channel(here, b"token", "head"), hello)

    def alone(self) -> list[str]:
        """Nodes that have a start of their own which lives."""
        return [start.nodes[0] for start in self.launches.living if not start.for_all]

    def close(self) -> None:
        for start in self.launches.living:
            os.killpg(start.pid, signal.SIGKILL)
            os.waitpid(start.pid, 0)
            start.ended(signal.SIGKILL)
        for host in self.hosts.values():
            host.close()
        for end in self._ends:
            end.close()


@pytest.fixture
def context(tmp_path: Path, redis_server: RedisServer) -> PilotContext:
    site = make_site(tmp_path / "site", redis_server)
    context = PilotContext(site, "pilot", "allocation", NODES, time.time() + 600, {})
    context.directory.mkdir(parents=True)
    return context


@pytest.fixture
def started(context: PilotContext) -> Iterator[Started]:
    started = Started(context, Stays())
    yield started
    started.close()


def test_as_many_as_there_are_are_started_again(started: Started) -> None:
    """Under a launcher that stays, a start lives as long as its keeper: it must not count then."""
    launches = started.launches
    for host in started.hosts.values():
        launches.again(host)
    seen = []
    while len(launches.living) < len(started.hosts):
        launches.start_queued()
        launches.start_queued()
        fresh = [name for name in started.alone() if started.hosts[name].channel is None]
        assert 0 < len(fresh) <= 8
        seen.append(len(fresh))
        for name in fresh:
            started.comes(started.hosts[name], again=True)
    assert seen == [8, 8, 4]
    assert started.alone() == [node.name for node in NODES]
    assert launches.patience == 20, "those that waited for others have more time"


def test_a_start_whose_keepers_come_late_goes_on(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "_GRACE", 0.0)
    launches, late = started.launches, started.hosts["n0"]
    launches.start_all(60)
    [first] = launches.living
    wait_until(lambda: first.read() or first.last_line, 10, "it ignores TERM now")
    launches.stop_first()
    launches.again(late)
    launches.start_queued()
    own = late.start
    assert own is not None
    started.comes(late, again=False)
    assert own.stopping, "what was to help it is not needed"
    assert not late.again, "it may be started again when it is lost"
    launches.turn({})
    assert not first.killed
    late.close()
    wait_until(lambda: launches.turn({}) == [] and first.killed, 10, "nobody needs it any more")


@pytest.mark.parametrize(("launcher", "lost"), [(Stays, []), (Vouches, ["n3"])])
def test_who_says_that_a_node_is_lost(
    context: PilotContext, launcher: type[Stays], lost: list[str]
) -> None:
    """Only who speaks for the scheduler; else it is a reason, if the node does not come."""
    started = Started(context, launcher())
    try:
        started.launches.start_all(60)
        said: list[str] = []

        def spoken() -> str:
            said.extend(started.launches.turn({}))
            return started.hosts["n3"].trouble

        wait_until(spoken, 10, "it speaks")
        assert said == lost
    finally:
        started.close()
