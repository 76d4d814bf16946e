"""A pilot of so many nodes that numbers of open files go beyond 1023."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from balsam_celery.keys import GANG
from balsam_celery.pilot.context import PilotContext, WorkerContext
from balsam_celery.pilot.crew import Member
from tests.pilot.service import Service

SOFT = 600


@pytest.fixture
def high() -> Iterator[int]:
    """A number that ``select`` does not take, and which this process may use."""
    number = 1030
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * number), hard))
    yield number
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_first_word_of_a_worker_is_heard(high: int, service: Service) -> None:
    pilot = PilotContext(service.site, "p", "a", (), 0.0, {})
    member = Member(WorkerContext(pilot, GANG, ()))
    assert not member.ready
    read, write = os.pipe()
    ready = fcntl.fcntl(read, fcntl.F_DUPFD_CLOEXEC, high)
    os.close(read)
    member.began(1, ready)
    try:
        assert ready >= high
        assert not member.ready
        os.write(write, b".")
        assert member.ready
    finally:
        os.close(write)
        member.ended()


def test_the_main_process_alone_is_allowed_more() -> None:
    code = (
        "import resource, subprocess\n"
        "from balsam_celery.pilot import openfiles, starting\n"
        "def now(): return resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        f"hard = now()[1]; resource.setrlimit(resource.RLIMIT_NOFILE, ({SOFT}, hard))\n"
        "openfiles.allow_as_given()\n"
        f"assert now() == ({SOFT}, hard)\n"
        "openfiles.allow_more()\n"
        "assert now()[0] == min(hard, 2**20) if hard > 0 else 2**20\n"
        "command = ['/bin/sh', '-c', 'ulimit -S -n']\n"
        "child = subprocess.run(command, preexec_fn=starting._as_given, capture_output=True)\n"
        f"assert int(child.stdout) == {SOFT}\n"
        "openfiles.allow_as_given()\n"
        f"assert now() == ({SOFT}, hard)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_programs_are_allowed_what_the_pilot_was_given(head: Service) -> None:
    """On the head, where the gang worker runs them, and on nodes."""
    given = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, given[1]))
    try:
        pilot = head.begin([1, 1], virtual=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, given)
    pilot.wait_registered()
    assert resource.prlimit(pilot.process.pid, resource.RLIMIT_NOFILE)[0] > SOFT
    says = ("/bin/sh", "-c", "ulimit -S -n")
    shares = tuple(map(pilot.whole, pilot.nodes))
    pilot.run(pilot.spec("one", *says))
    pilot.run(pilot.spec("wide", *says, shares=shares, launcher="none"), node=GANG)
    for task in ("one", "wide"):
        assert head.ended(task).stdout_tail == f"{SOFT}\n"
