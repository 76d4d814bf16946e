"""What has changed since ``init``, and what ``--write`` makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from balsam_celery import settings
from balsam_celery.discovered import FILE, Action, changes, queue_values, recall, remember, rewrite
from balsam_celery.discovery import Machine
from balsam_celery.errors import SettingsError, SiteError
from balsam_celery.schedulers.base import QueueInfo
from balsam_celery.site import Site, find

SRUN = {"srun": "/usr/bin/srun"}
DEBUG = QueueInfo("debug", max_nodes=8, max_wall_time=3600, cores_per_node=4)
LONG = QueueInfo("long", max_nodes=64, min_nodes=2, cores_per_node=4, max_queued=20)
SITE = """\
[site]
name = "s"
id = "1f2e3d4c"
[scheduler]
kind = "slurm"
[queues.debug]                # mine
max_nodes = 8
max_wall_time = "1h"          # all of it
cores_per_node = 4
directives = ["--qos=x"]
[queues.long]
min_nodes = 2
max_nodes = 16                # fewer than they give
max_wall_time = "2d"
max_queued = 5
cores_per_node = 4
"""


def machine(*queues: QueueInfo, **launchers: str) -> Machine:
    """What was found: these queues and launchers."""
    return Machine("slurm", "", True, queues, launchers or SRUN)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    directory = tmp_path / "site"
    directory.mkdir(0o700)
    (directory / "site.toml").write_text(SITE)
    remember(directory, machine(DEBUG, LONG))
    return find(directory)


def differences(site: Site, now: Machine) -> dict[str, tuple[Any, Any, Any, Action]]:
    found = changes(now, recall(site.directory), site.settings)
    return {change.key: (change.site, change.now, change.before, change.action) for change in found}


def test_the_same_is_no_change(site: Site) -> None:
    # that the user allows less than the scheduler is none either
    assert differences(site, machine(DEBUG, LONG)) == {}


def test_what_was_taken_over_follows_and_what_the_user_chose_stays(site: Site) -> None:
    now = machine(
        QueueInfo("debug", max_nodes=4, max_wall_time=7200, cores_per_node=8),
        QueueInfo("long", max_nodes=128, min_nodes=4, cores_per_node=4, max_queued=20),
    )
    assert differences(site, now) == {
        "queues.debug.max_nodes": (8, 4, 8, Action.SET),
        "queues.debug.max_wall_time": (3600, 7200, 3600, Action.SET),
        "queues.debug.cores_per_node": (4, 8, 4, Action.SET),
        # 16 was chosen, and is within the new limit
        "queues.long.max_nodes": (16, 128, 64, Action.KEEP),
        "queues.long.min_nodes": (2, 4, 2, Action.SET),
    }


def test_a_chosen_value_that_is_now_beyond_the_limit_is_cut(site: Site) -> None:
    long = QueueInfo("long", max_nodes=8, min_nodes=2, cores_per_node=4, max_queued=20)
    assert differences(site, machine(DEBUG, long)) == {
        "queues.long.max_nodes": (16, 8, 64, Action.SET)
    }


def test_a_limit_that_is_gone_or_new(site: Site) -> None:
    debug = QueueInfo("debug", max_nodes=8, cores_per_node=4, max_running=2)
    assert differences(site, machine(debug, LONG)) == {
        "queues.debug.max_wall_time": (3600, None, 3600, Action.KEEP),
        "queues.debug.max_running": (5, 2, None, Action.SET),
    }


def test_queues_that_come_and_go(site: Site) -> None:
    new = QueueInfo("new", max_nodes=2, cores_per_node=4)
    found = differences(site, machine(DEBUG, new))
    assert found["queues.new"][3] is Action.ADD
    assert found["queues.long"][3] is Action.REMOVE
    assert set(found) == {"queues.new", "queues.long"}


def test_a_queue_that_is_stopped_stays(site: Site) -> None:
    # what is told of its nodes meanwhile means nothing
    stopped = QueueInfo("long", max_nodes=1, cores_per_node=0, enabled=False)
    earlier = recall(site.directory)
    assert earlier is not None
    now = machine(DEBUG, stopped)
    expected = {
        "queues.long": ({}, "stopped now", earlier["queues"]["long"], Action.KEEP),
    }
    assert differences(site, now) == expected
    rewrite(site, now, changes(now, earlier, site.settings))
    assert (site.directory / "site.toml").read_text() == SITE
    assert differences(site, now) == expected
    assert differences(site, machine(DEBUG, LONG)) == {}  # and what it was is not forgotten
    assert differences(site, machine(DEBUG))["queues.long"][3] is Action.REMOVE


def test_a_queue_that_was_stopped_is_new_once_it_is_up(site: Site) -> None:
    now = machine(DEBUG, LONG, QueueInfo("new", 2, cores_per_node=4, enabled=False))
    assert differences(site, now) == {}
    rewrite(site, now, changes(now, recall(site.directory), site.settings))
    now = machine(DEBUG, LONG, QueueInfo("new", 2, cores_per_node=4))
    assert differences(site, now)["queues.new"][3] is Action.ADD


def test_queues_that_cannot_be_used_as_they_are(site: Site) -> None:
    odd = QueueInfo("odd", max_nodes=1, min_nodes=2, cores_per_node=4)
    bare = QueueInfo("long", max_nodes=64, cores_per_node=0)  # it has lost its nodes
    now = machine(QueueInfo("debug", max_nodes=9, max_wall_time=3600, cores_per_node=4), odd, bare)
    found = differences(site, now)
    assert found["queues.long"][1].startswith("queues.long.cores_per_node is 0")
    assert found["queues.long"][3] is Action.KEEP
    assert set(found) == {"queues.long", "queues.debug.max_nodes"}
    rewrite(site, now, changes(now, recall(site.directory), site.settings))
    assert set(find(site.directory).settings.queues) == {"debug", "long"}


def test_a_queue_that_the_user_left_out_is_no_change(site: Site) -> None:
    remember(site.directory, machine(DEBUG, LONG, QueueInfo("third", 1, cores_per_node=4)))
    third = QueueInfo("third", 2, cores_per_node=4)
    assert differences(site, machine(DEBUG, LONG, third)) == {}


def test_a_queue_of_the_users_own_is_told_and_stays(site: Site) -> None:
    remember(site.directory, machine(DEBUG))
    assert differences(site, machine(DEBUG)) == {"queues.long": ({}, None, None, Action.KEEP)}


def test_launchers(site: Site) -> None:
    now = machine(DEBUG, LONG, mpich="/opt/mpich/bin/mpiexec")
    assert differences(site, now) == {
        "launcher.mpich": (None, "/opt/mpich/bin/mpiexec", None, Action.KEEP),
        "launcher.srun": (None, None, "/usr/bin/srun", Action.KEEP),
    }


def test_without_a_record_only_what_is_beyond_the_limits_is_told(site: Site) -> None:
    (site.directory / FILE).unlink()
    long = QueueInfo("long", max_nodes=8, cores_per_node=2)
    assert differences(site, machine(DEBUG, long, QueueInfo("new", 3))) == {
        "queues.long.max_nodes": (16, 8, None, Action.SET),
        # of its nodes the user may know better
        "queues.long.cores_per_node": (4, 2, None, Action.KEEP),
    }


def test_a_scheduler_that_tells_nothing(site: Site) -> None:
    assert differences(site, Machine("psij", launchers=SRUN)) == {}


def test_write_keeps_comments_and_own_keys(site: Site) -> None:
    now = machine(
        QueueInfo("debug", max_nodes=4, max_wall_time=5400, cores_per_node=4),
        QueueInfo("new", max_nodes=2, cores_per_node=16, gpus_per_node=1, memory_per_node=1 << 30),
    )
    found = changes(now, recall(site.directory), site.settings)
    rewrite(site, now, found)
    path = site.directory / "site.toml"
    text = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert "[queues.debug]                # mine\nmax_nodes = 4\n" in text
    assert 'max_wall_time = "1h30m"    # all of it\n' in text
    assert 'directives = ["--qos=x"]' in text
    assert "[queues.long]" not in text
    queues = find(site.directory).settings.queues
    assert queues["new"].cores_per_node == 16
    assert queues["new"].max_wall_time == 86400
    assert "# the scheduler names no limit" in text
    assert differences(find(site.directory), now) == {}


def test_write_of_what_cannot_be_used_changes_nothing(site: Site) -> None:
    before = recall(site.directory)
    # below the smallest number of nodes that the user wants
    long = QueueInfo("long", max_nodes=1, cores_per_node=4, max_queued=20)
    now = machine(DEBUG, long)
    found = [c for c in changes(now, before, site.settings) if c.name == "max_nodes"]
    with pytest.raises(SettingsError, match=r"left as it is.*min_nodes is above max_nodes"):
        rewrite(site, now, found)
    assert (site.directory / "site.toml").read_text() == SITE
    assert recall(site.directory) == before


def test_values_of_a_queue_can_be_used() -> None:
    for queue in (
        DEBUG,
        LONG,
        QueueInfo("tiny", max_nodes=1, max_wall_time=30),
        QueueInfo("slow", max_nodes=1, min_wall_time=200_000),
        QueueInfo("odd", max_nodes=3, min_wall_time=61, max_wall_time=90_061, max_running=1),
    ):
        values, comments = queue_values(queue)
        plain = {"scheduler": {"kind": "slurm"}, "queues": {"q": values}}
        read = settings.parse(plain).queues["q"]
        assert read.max_nodes == queue.max_nodes
        assert read.max_wall_time == (queue.max_wall_time or read.max_wall_time)
        assert ("max_wall_time" in comments) == (queue.max_wall_time is None)


def test_a_record_that_is_damaged(site: Site) -> None:
    for text in ("{", "[]", '{"queues": {}}'):
        (site.directory / FILE).write_text(text)
        with pytest.raises(SiteError, match=r"discovered\.json.*remove it"):
            recall(site.directory)


def test_the_record(site: Site) -> None:
    plain = json.loads((site.directory / FILE).read_text())
    assert plain["scheduler"] == "slurm"
    assert plain["launchers"] == SRUN
    assert plain["queues"]["debug"]["max_wall_time"] == 3600
    assert "max_wall_time" not in plain["queues"]["long"]


def test_a_local_site_has_no_record(tmp_path: Path) -> None:
    remember(tmp_path, Machine())
    assert recall(tmp_path) is None
    assert changes(Machine(), None, settings.parse({})) == []
