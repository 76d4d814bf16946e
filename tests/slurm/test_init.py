"""``init --scheduler auto``, ``site refresh`` and batch scripts, with a real Slurm."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery import jobscript
from balsam_celery.discovered import Action, changes, recall, rewrite
from balsam_celery.discovery import discover
from balsam_celery.errors import SchedulerUnavailable
from balsam_celery.schedulers import make_scheduler
from balsam_celery.schedulers.base import JobRequest, JobState
from balsam_celery.site import Site, find
from balsam_celery.siteinit import init
from tests.slurm_cluster import SlurmCluster
from tests.waiting import wait_until


@pytest.fixture
def cluster(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    """The Slurm of the tests, as the one of this machine."""
    for name, value in slurm_cluster.environment.items():
        monkeypatch.setenv(name, value)
    return slurm_cluster


@pytest.fixture
def site(cluster: SlurmCluster, tmp_path: Path) -> Site:
    """A site as ``init --scheduler auto`` makes it, in a directory with an odd name."""
    return init(tmp_path / "a 'site' %j", name="odd", scheduler="auto", tls=False)


@pytest.fixture
def changing(cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """Whose partition ``small`` may be changed, and ``new`` made, until the end of the test."""
    yield cluster
    usual = ("maxtime=10:00", "maxnodes=2", "state=up")
    cluster.run("scontrol", "update", "partitionname=small", *usual)
    cluster.run("scontrol", "delete", "partitionname=new", check=False)


def test_init_finds_partitions_and_launcher(site: Site) -> None:
    made = site.settings
    assert made.scheduler.kind == "slurm"
    assert next(iter(made.queues)) == "debug"  # the default partition
    debug, small = made.queues["debug"], made.queues["small"]
    assert (debug.max_nodes, debug.max_wall_time, debug.cores_per_node) == (8, 3600, 4)
    assert debug.memory_per_node == 2000 << 20
    assert (small.max_nodes, small.max_wall_time) == (2, 600)
    assert made.launcher.kind == "srun"
    assert made.launcher.mpi in ("pmi2", "pmix")
    assert "# found here: " in (site.directory / "site.toml").read_text()
    assert (changes(discover("slurm", made), recall(site.directory), made)) == []


def test_refresh_tells_what_has_changed(changing: SlurmCluster, site: Site) -> None:
    changing.run("scontrol", "update", "partitionname=small", "maxtime=20:00", "maxnodes=1")
    changing.run("scontrol", "create", "partitionname=new", "nodes=n1,n3", "state=up")
    now = discover("slurm", site.settings)
    found = changes(now, recall(site.directory), site.settings)
    assert [(c.key, c.site, c.now, c.action) for c in found if c.name] == [
        ("queues.small.max_nodes", 2, 1, Action.SET),
        ("queues.small.max_wall_time", 600, 1200, Action.SET),
    ]
    assert [(c.key, c.action) for c in found if not c.name] == [("queues.new", Action.ADD)]
    rewrite(site, now, found)
    queues = find(site.directory).settings.queues
    assert (queues["small"].max_nodes, queues["small"].max_wall_time) == (1, 1200)
    assert (queues["new"].max_nodes, queues["new"].max_wall_time) == (2, 86400)


def test_a_partition_that_is_down_stays(changing: SlurmCluster, site: Site) -> None:
    changing.run("scontrol", "update", "partitionname=small", "state=down")
    now = discover("slurm", site.settings)
    found = changes(now, recall(site.directory), site.settings)
    assert [(c.key, c.now, c.action) for c in found] == [
        ("queues.small", "stopped now", Action.KEEP)
    ]
    rewrite(site, now, found)
    assert "small" in find(site.directory).settings.queues
    changing.run("scontrol", "update", "partitionname=small", "state=up")
    now = discover("slurm", site.settings)
    assert changes(now, recall(site.directory), site.settings) == []


def test_a_controller_that_is_down(cluster: SlurmCluster) -> None:
    cluster.stop_controller()
    try:
        found = discover("auto")
        with pytest.raises(SchedulerUnavailable, match="'slurm' does not answer"):
            discover("slurm")
    finally:
        cluster.start_controller()
    assert found.scheduler == "local"
    assert "slurm is installed and does not answer" in found.notes[0]


def test_slurm_takes_the_script_as_it_is_meant(site: Site) -> None:
    # what a setup line prints and does, in place of the pilot
    lines = ('printf "%s\\n" "$PWD" "$SLURM_JOB_NUM_NODES" "$SLURM_JOB_PARTITION"', "umask; exit 0")
    changed = dataclasses.replace(
        site.settings.scheduler, setup=lines, directives=("--comment='a b'",)
    )
    site = dataclasses.replace(site, settings=dataclasses.replace(site.settings, scheduler=changed))
    scheduler = make_scheduler("slurm", settings=site.settings, local_dir=site.local_dir)
    directory = site.run_dir / "allocations" / "abc"
    directory.mkdir(parents=True)
    name = f"balsam-{site.settings.site.id}-abc"
    request = JobRequest(name, "small", 2, 300, directory / "job.sh", directory)
    request.script.write_text(jobscript.render(site, scheduler, request, "abc"))
    native_id = scheduler.submit(request)
    try:
        wait_until(
            lambda: scheduler.jobs()[native_id].state is JobState.ENDED, 60, "the job has ended"
        )
    finally:
        scheduler.cancel(native_id)
    assert scheduler.jobs()[native_id].name == name
    output = (directory / "job.out").read_text()
    assert output.splitlines() == [str(directory), "2", "small", "0077"]
