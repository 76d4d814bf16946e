"""The process of a launcher that starts keepers, as the pilot's main process starts it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery import procs, site
from balsam_celery.launchers import Launcher, find_launcher
from balsam_celery.launchers.others import Jsrun
from balsam_celery.launchers.template import Template
from balsam_celery.outer import clean_environment
from balsam_celery.pilot.context import PilotContext
from balsam_celery.pilot.starting import NodeStart
from balsam_celery.resources import NodeCapacity
from tests.waiting import wait_until

#: As the supervisor's: they are read from a descriptor.
BLOCKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
SITE = """\
[site]
name = "keepers"
id = "0123abcd"

[pilot]
python = "{python}"
"""


@pytest.fixture
def blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def pilot(directory: Path, python: str, *nodes: NodeCapacity) -> PilotContext:
    """A pilot on nodes where ``python`` runs in place of the keeper's."""
    place = directory / "site"
    place.mkdir(mode=0o700)
    (place / "site.toml").write_text(SITE.format(python=python))
    context = PilotContext(
        site=site.find(place),
        pilot="p1",
        allocation="a1",
        nodes=nodes,
        end_time=2e9,
        environment={**clean_environment(os.environ), "KEEPERS": str(directory)},
    )
    context.directory.mkdir(parents=True)
    return context


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_launcher_of_keepers_ends_at_a_term(
    launcher: Launcher, blocked: None, tmp_path: Path
) -> None:
    """The process that starts it has blocked TERM, which children inherit."""
    seen = tmp_path / "seen"
    keeper = script(
        tmp_path / "keeper",
        f"grep SigBlk /proc/self/status > {seen}.part; mv {seen}.part {seen}; exec sleep 300",
    )
    context = pilot(tmp_path, keeper, NodeCapacity("localhost", (0,)), NodeCapacity("n2", (0,)))
    start = NodeStart(context, launcher, ["localhost"], again=True, within=60)
    try:
        wait_until(seen.exists, what="the keeper runs")
        assert int(seen.read_text().split()[1], 16) == 0
        start.stop()
        status = wait_until(lambda: ended(start.pid), what="the launcher ends at TERM")
        assert not start.killed
        assert start.ended(status[1]) != "ended by signal 9"
    finally:
        procs.end(procs.Quarry(marks=frozenset((f"KEEPERS={tmp_path}",))), grace=0)


def ended(pid: int) -> tuple[int, int] | None:
    """Its number and wait status, once it has ended."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return (found, status) if found else None


def test_starts_at_the_same_time_have_files_of_their_own(tmp_path: Path) -> None:
    """Up to eight nodes are started again at once, all in one directory."""
    nodes = (NodeCapacity("n1", (0, 1, 2, 3), (0, 1)), NodeCapacity("n2", (0, 1)))
    context = pilot(tmp_path, sys.executable, *nodes)
    jsrun = Jsrun(script(tmp_path / "jsrun", 'cat "$2"'))
    starts = [NodeStart(context, jsrun, [one.name], again=True, within=60) for one in nodes]
    for start, node in zip(starts, nodes, strict=True):
        status = wait_until(lambda pid=start.pid: ended(pid), what="it has ended")
        assert start.ended(status[1]) == "exit status 0"
        # no more than the smaller node has
        assert start.last_line == f"rank: 0: {{ host: {node.name}; cpu: {{0-1}} }}"


@pytest.mark.parametrize(
    ("table", "stays", "first"),
    [
        ("", True, "python"),
        ('template_stays = false\ntemplate_survival = ["--go-on"]', False, "--go-on python"),
    ],
)
def test_ranks_that_start_keepers_stay_unless_a_site_knows_better(
    tmp_path: Path, table: str, stays: bool, first: str
) -> None:
    """Nothing is known of a launcher that a template describes: it may end what its ranks leave."""
    nodes = (NodeCapacity("n1", (0,)), NodeCapacity("n2", (0,)))
    context = pilot(tmp_path, "python", *nodes)
    run = script(tmp_path / "run", 'echo "$*"')
    file = context.site.directory / "site.toml"
    text = f'[launcher]\nkind = "template"\ntemplate = ["{run}", "{{command}}"]\n{table}\n'
    file.write_text(file.read_text() + text)
    launcher = find_launcher(site.find(context.site.directory).settings.launcher)
    assert isinstance(launcher, Template)
    start = NodeStart(context, launcher, ["n1", "n2"], again=False, within=60)
    status = wait_until(lambda: ended(start.pid), what="it has ended")
    assert start.ended(status[1]) == "exit status 0"
    assert start.stays is stays
    assert start.last_line.startswith(f"{first} -m balsam_celery.pilot.node ")
    assert ("--stay" in start.last_line.split()) is stays
