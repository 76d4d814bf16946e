"""A node that the network has cut off, from its pilot and from the shared file system alike."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery import keys, procs, wire
from balsam_celery.brands import value
from balsam_celery.launchers.shim import Place, in_front
from balsam_celery.pilot.attempt import rank_mark
from balsam_celery.pilot.channel import Channel
from balsam_celery.pilot.link import (
    Beat,
    Consumes,
    FromKeeper,
    Hello,
    Invitation,
    Sweep,
    Swept,
    decode_message,
    encode,
)
from balsam_celery.resources import NodeCapacity, NodeShare
from balsam_celery.wire import TaskSpec
from tests import nasty
from tests.pilot.service import Service
from tests.pilot.test_kills import pids_in
from tests.waiting import wait_until

NODE = "n1"
NASTY = [sys.executable, nasty.__file__]


class Fifo:
    """In place of a file: who writes hangs once :meth:`hang` was called, who reads at once."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.file = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        fcntl.fcntl(self.file, fcntl.F_SETPIPE_SZ, 4096)

    def read(self) -> bytes:
        """What was written."""
        try:
            return os.read(self.file, 65536)
        except BlockingIOError:
            return b""

    def hang(self) -> None:
        """Leave no room."""
        with pytest.raises(BlockingIOError):
            while True:
                os.write(self.file, b"x" * 512)


class Head:
    """The head of a pilot, as far as a keeper sees it; the keeper is real."""

    def __init__(self, service: Service) -> None:
        self.pilot, allocation = secrets.token_hex(4), f"alloc{secrets.token_hex(2)}"
        self.service = service
        self.directory = service.site.run_dir / "allocations" / allocation / self.pilot
        self.directory.mkdir(parents=True)
        listener = socket.create_server(("127.0.0.1", 0))
        token = secrets.token_hex(32)
        Invitation(
            self.pilot,
            allocation,
            time.time() + 600,
            (NodeCapacity("n0", (0,)), NodeCapacity(NODE, (0,))),
            (listener.getsockname(),),
            token,
        ).write(self.directory)
        self.log = Fifo(self.directory / f"{NODE}.keeper.log")
        self.started = subprocess.Popen(
            [
                *(sys.executable, "-m", "balsam_celery.pilot.node", "--stay", "--within", "60"),
                *("--site", service.site.directory, "--directory", self.directory),
                *("--node", NODE),
            ],
            start_new_session=True,
        )
        with listener:
            listener.settimeout(60)
            connection, _ = listener.accept()
        self.channel = Channel(connection, token.encode(), "head")
        self.channel.send(encode(Beat()))  # by which the keeper knows it
        self._said: list[object] = []

    def heard(self, kind: type[object]) -> object | None:
        """What the keeper has said of that kind."""
        self.log.read()
        self.channel.flush()
        self._said += [decode_message(text, FromKeeper) for text in self.channel.receive()]
        return next((one for one in self._said if isinstance(one, kind)), None)

    def run(self, task: str, *argv: str) -> None:
        """Send a task to the node's worker."""
        spec = TaskSpec(
            *(task, 1, task, "app", argv, {}, str(self.directory / task)),
            shares=(NodeShare(NODE, (0,)),),
            ranks_per_node=1,
            threads_per_rank=1,
            wall_time=300,
            kill_grace=1,
        )
        queue = keys.pilot_queue(self.pilot, NODE)
        args = [queue, [wire.to_plain(spec)]]
        self.service.app.send_task(keys.RUN, args=args, queue=queue, ignore_result=True)

    def close(self) -> None:
        """Nothing of it is left."""
        self.channel.close()
        marks = frozenset(f"BALSAM_PILOT_NODE={self.pilot}/{one}" for one in (NODE, keys.GANG))
        roots = frozenset(filter(None, [procs.identity(self.started.pid)]))
        procs.end(procs.Quarry(roots=roots, marks=marks), grace=0)
        self.started.wait()
        os.close(self.log.file)


@pytest.fixture
def head(service: Service) -> Iterator[Head]:
    made = Head(service)
    yield made
    made.close()


def test_all_ends_though_the_shared_file_system_hangs(head: Head, tmp_path: Path) -> None:
    """A program of the node's worker, a rank of the gang's, and what that has left in disguise."""
    wait_until(lambda: head.heard(Hello), 60, "the keeper has come")
    wait_until(lambda: head.heard(Consumes), 60, "the worker consumes")
    pids = tmp_path / "pids"
    head.run("single", *NASTY, "deaf", str(pids))
    ranks = in_front(
        ["/bin/sh", "-c", f"{' '.join(NASTY)} nameless {pids}; exec {' '.join(NASTY)} deaf {pids}"],
        {NODE: [Place()]},
        mark=rank_mark("wide/1"),
        brand=value("wide/1"),
    )
    gang = {**os.environ, "BALSAM_PILOT_NODE": f"{head.pilot}/{keys.GANG}"}
    rank = subprocess.Popen(ranks, env=gang, start_new_session=True)
    found = wait_until(pids_in(pids, 4), 60, "all of it runs")
    outbox = Fifo(head.directory / f"{keys.GANG}.outbox")
    head.log.hang()
    head.channel.close()
    wait_until(
        lambda: rank.poll() is not None and not any(map(procs.identity, found)),
        30,
        "it ends everything",
    )
    # it goes once the file system answers
    keeper = head.started
    os.close(outbox.file)
    (head.directory / f"{keys.GANG}.outbox").unlink()
    wait_until(lambda: (head.log.read(), keeper.poll() is not None)[1], 30, "the keeper ends")
    assert keeper.returncode == 0
    assert rank.returncode == -signal.SIGKILL


def test_a_sweep_that_fails_is_repeated_after_a_pause(head: Head) -> None:
    wait_until(lambda: head.heard(Hello), 60, "the keeper has come")
    mark = rank_mark("odd/1")
    name, _, value = mark.partition("=")
    with subprocess.Popen(["/bin/sleep", "300"], env={name: value}) as program:
        try:
            wait_until(lambda: procs.marked([mark]), 20, "it runs")
            begun = time.monotonic()
            head.channel.send(encode(Sweep(7, (mark,), (), 0.0, signal=999)))
            said = bytearray()

            def failures() -> int:
                head.channel.flush()
                said.extend(head.log.read())
                return said.count(b"sweep 7 failed")

            wait_until(lambda: failures() >= 3, 30, "it fails again and again")
            assert failures() - 1 <= (time.monotonic() - begun) / 0.9
        finally:
            program.kill()
    wait_until(lambda: head.heard(Swept), 30, "without that process it does not fail")
