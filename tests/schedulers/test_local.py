"""The local scheduler as its users see it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from balsam_celery.errors import SchedulerError, SchedulerUnavailable, SettingsError
from balsam_celery.resources import NodeCapacity
from balsam_celery.schedulers import make_scheduler
from balsam_celery.schedulers.base import IdleWindow, JobRequest, JobState
from balsam_celery.schedulers.local import LocalOptions, LocalScheduler, make_local
from balsam_celery.schedulers.local_keeper import job_nodes
from balsam_celery.schedulers.local_state import Config, Record, State
from balsam_celery.settings import (
    LocalSettings,
    QueueSettings,
    SchedulerSettings,
    Settings,
    SiteSettings,
)
from tests.schedulers.conftest import Cluster
from tests.waiting import wait_until

ENDED, QUEUED, RUNNING = JobState.ENDED, JobState.QUEUED, JobState.RUNNING
#: Variables of who looks at the queue that a job must not have.
_DROPPED = ("PMI_RANK", "OMPI_COMM_WORLD_SIZE", "SECRET_URL", "BALSAM_ROLE", "BALSAM_HOOK")


def test_a_job_runs_where_it_was_told_and_ends(cluster: Cluster) -> None:
    before = time.time()
    native_id = cluster.submit("pwd; echo error >&2; exit 3")
    job = cluster.wait_for(native_id, ENDED)
    assert cluster.output(native_id) == f"{cluster.work}\nerror\n"
    assert job.reason == "exit status 3"
    assert before <= (job.started or 0) <= (job.ended or 0) <= time.time()
    assert cluster.idle() == 3


def test_the_script_is_the_one_that_was_submitted(cluster: Cluster) -> None:
    """Its later changes do not matter, nor does whether it may be executed."""
    code = f"#!{sys.executable} -I\nimport sys; print('isolated', sys.flags.isolated)\n"
    first = cluster.submit("sleep 300", queue="large", nodes=3)
    request = cluster.request(code)
    native_id = cluster.scheduler.submit(request)
    request.script.unlink()
    assert cluster.job(native_id).state is QUEUED
    cluster.scheduler.cancel(first)
    cluster.wait_for(native_id, ENDED)
    assert cluster.output(native_id) == "isolated 1\n"


def test_the_pilot_learns_its_nodes(cluster: Cluster) -> None:
    other = cluster.submit("sleep 300")
    native_id = cluster.submit("cat /proc/self/environ", nodes=2, wall_time=50)
    cluster.wait_for(native_id, ENDED)
    lines = cluster.output(native_id).split("\0")
    environment = dict(line.split("=", 1) for line in lines if "=" in line)
    inside = cluster.scheduler.inside(environment)
    assert [(node.name, len(node.cores)) for node in inside.nodes] == [("vnode1", 2), ("vnode2", 2)]
    assert inside.end_time == (cluster.job(native_id).started or 0) + 50
    assert (inside.native_id, inside.virtual) == (native_id, True)
    cluster.scheduler.cancel(other)


def test_a_cancelled_job_has_the_time_that_its_programs_have(tmp_path: Path) -> None:
    """A grace for the programs of its pilot, and one for what they leave; the site names it."""

    def grace(of_site: int) -> float:
        settings = Settings(site=dataclasses.replace(SiteSettings(), kill_grace=of_site))
        return make_local(settings, tmp_path).options.kill_grace

    assert (grace(1), grace(60)) == (10.0, 122.0)


def test_outside_a_job_there_is_nothing_inside(cluster: Cluster) -> None:
    with pytest.raises(SchedulerError, match="BALSAM_LOCAL_NODES is not set"):
        cluster.scheduler.inside({})
    with pytest.raises(SchedulerUnavailable, match="/no/such"):
        cluster.scheduler.inside({"BALSAM_LOCAL_NODES": "/no/such"})


def record_on(*nodes: int) -> Record:
    return Record(1, "n", "q", len(nodes), 60, "/", 0.0, started=100.0, nodes=nodes)


def test_cores_go_on_over_nodes_and_are_real_only_where_all_fit() -> None:
    local = LocalSettings(
        nodes=3,
        cores_per_node=2,
        gpus_per_node=1,
        memory_per_node=7,
        resources_per_node={"disk": 4},
    )
    has = (("disk", 4),)
    config = Config("s", local, {})
    inside = job_nodes(config, record_on(0, 2), [0, 1, 2, 3])
    assert inside.end_time == 160.0
    assert inside.nodes == (
        NodeCapacity("vnode0", (0, 1), (0,), 7, pinned=False, resources=has),
        NodeCapacity("vnode2", (4, 5), (2,), 7, pinned=False, resources=has),
    )
    [node] = job_nodes(config, record_on(1), [1, 3, 5, 7, 8, 9]).nodes
    assert (node.cores, node.pinned) == ((5, 7), True), "real ones of those that may be used"


def test_the_job_gets_a_clean_start(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*_DROPPED, "KEPT"):
        monkeypatch.setenv(name, "1")
    cluster = make_cluster(hidden=("SECRET_URL",))
    native_id = cluster.submit("env | sort; grep -E '^Sig(Blk|Ign)' /proc/self/status")
    cluster.wait_for(native_id, ENDED)
    output = cluster.output(native_id)
    assert "\nKEPT=1\n" in output
    for name in _DROPPED:
        assert f"{name}=" not in output
    for name in ("SigBlk", "SigIgn"):
        mask = int(output.split(f"{name}:")[1].split()[0], 16)
        assert mask & 0x7FFFFFFF == 0, "the C library keeps signals 32 and 33 for itself"


def test_the_queue_moves_while_nobody_looks(cluster: Cluster) -> None:
    ids = [cluster.submit(f"echo {n} >> order", queue="large", nodes=3) for n in range(3)]
    order = cluster.work / "order"
    wait_until(lambda: order.exists() and len(order.read_text().split()) == 3)
    assert order.read_text().split() == ["0", "1", "2"]
    wait_until(lambda: cluster.record(ids[2]).phase == "ended")


def test_limits_of_running_jobs_are_kept(cluster: Cluster) -> None:
    """Queue ``small`` runs two at a time, though there are three nodes."""
    ids = [cluster.submit("sleep 300") for _ in range(3)]
    cluster.wait_for(ids[1], RUNNING)
    assert [cluster.job(i).state for i in ids] == [RUNNING, RUNNING, QUEUED]
    assert cluster.idle() == 1
    started, expected = cluster.job(ids[0]).started, cluster.job(ids[2]).expected_start
    assert started is not None
    assert expected is not None
    assert expected > started, "once the limit of the first is over"
    assert cluster.job(ids[1]).expected_start is None
    cluster.scheduler.cancel(ids[0])
    cluster.wait_for(ids[2], RUNNING)
    nodes = [cluster.record(i).nodes for i in ids[1:]]
    assert len({node for taken in nodes for node in taken}) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"queue": "none"}, "no queue 'none': the site has large, small"),
        ({"nodes": 3}, "3 nodes: queue 'small' takes 1 to 2"),
        ({"nodes": 0}, "0 nodes"),
        ({"queue": "large", "nodes": 4}, "4 nodes: queue 'large' takes 2 to 3"),
        ({"wall_time": 601}, "takes 1s to 10m"),
    ],
)
def test_what_is_beyond_the_limits_is_refused(
    cluster: Cluster, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(SchedulerError, match=said) as caught:
        cluster.submit("true", **changes)
    assert not isinstance(caught.value, SchedulerUnavailable)
    assert cluster.scheduler.jobs() == {}


def test_a_script_that_cannot_be_read_is_refused(cluster: Cluster) -> None:
    request = cluster.request("true")
    request.script.unlink()
    with pytest.raises(SchedulerError, match="the script cannot be read"):
        cluster.scheduler.submit(request)


def test_a_full_queue_refuses(make_cluster: Callable[..., Cluster]) -> None:
    queue = QueueSettings(min_wall_time=1, max_queued=1, max_running=1)
    cluster = make_cluster(queues={"small": queue})
    cluster.submit("sleep 300")
    cluster.submit("sleep 300")
    with pytest.raises(SchedulerError, match="1 waiting jobs, its max_queued is 1"):
        cluster.submit("true")


def test_a_name_is_submitted_once(cluster: Cluster) -> None:
    request = cluster.request("echo once >> ran")
    native_id = cluster.scheduler.submit(request)
    assert cluster.scheduler.submit(request) == native_id
    cluster.wait_for(native_id, ENDED)
    assert cluster.scheduler.submit(request) == native_id
    assert list(cluster.scheduler.jobs()) == [native_id]
    assert (cluster.work / "ran").read_text() == "once\n"


def test_the_wall_time_is_held(cluster: Cluster) -> None:
    """TERM goes to the script, which may end its own in order."""
    script = "trap 'echo told; kill $child; exit 0' TERM; sleep 300 & child=$!; wait"
    native_id = cluster.submit(script, wall_time=1)
    job = cluster.wait_for(native_id, ENDED)
    assert job.reason == "its wall time of 1s was over"
    assert cluster.output(native_id) == "told\n"
    assert 1 <= (job.ended or 0) - (job.started or 0) < 10


def test_a_script_that_does_not_act_on_term_is_killed(cluster: Cluster) -> None:
    native_id = cluster.submit("trap '' TERM; sleep 300 & sleep 300", wall_time=1)
    job = cluster.wait_for(native_id, ENDED)
    assert job.reason == "its wall time of 1s was over"
    assert 1.5 <= (job.ended or 0) - (job.started or 0) < 10
    assert cluster.processes(native_id) == []


def test_cancel(cluster: Cluster) -> None:
    running = cluster.submit("sleep 300", queue="large", nodes=3)
    queued = cluster.submit("true")
    cluster.wait_for(running, RUNNING)
    cluster.scheduler.cancel(queued)
    assert cluster.job(queued).state is ENDED
    assert cluster.job(queued).reason == "cancelled before it started"
    assert cluster.job(queued).started is None
    cluster.scheduler.cancel(running)
    assert cluster.wait_for(running, ENDED).reason == "cancelled"
    for native_id in (running, queued):
        cluster.scheduler.cancel(native_id)  # harmless
    for unknown in ("local-99", "17.pbs", ""):
        with pytest.raises(SchedulerError, match="not a job of the local scheduler"):
            cluster.scheduler.cancel(unknown)


def test_a_running_job_gives_nodes_back(cluster: Cluster) -> None:
    running = cluster.submit("sleep 300", queue="large", nodes=3)
    cluster.wait_for(running, RUNNING)
    waiting = cluster.submit("sleep 300", queue="large", nodes=2)
    assert cluster.job(waiting).state is QUEUED
    for _ in range(2):
        cluster.scheduler.release(running, ["vnode1", "vnode2"], ["vnode0"])
    cluster.wait_for(waiting, RUNNING)
    assert cluster.job(running).state is RUNNING
    with pytest.raises(SchedulerError, match="not a running job of the local scheduler"):
        cluster.scheduler.release("local-99", ["vnode1"], [])


def test_a_job_cancelled_as_it_starts_ends(cluster: Cluster) -> None:
    native_id = cluster.submit("sleep 300")
    cluster.scheduler.cancel(native_id)
    assert cluster.wait_for(native_id, ENDED).reason == "cancelled"
    assert cluster.processes(native_id) == []


@pytest.mark.parametrize(
    ("script", "said"),
    [("#!/no/such/shell\n", "cannot start: .*No such file"), ("kill -9 $$", "killed by SIGKILL")],
)
def test_the_reason_of_a_bad_end_is_told(cluster: Cluster, script: str, said: str) -> None:
    job = cluster.wait_for(cluster.submit(script), ENDED)
    assert re.search(said, job.reason), job.reason


def test_a_missing_directory_is_told(cluster: Cluster) -> None:
    native_id = cluster.submit("true", directory=cluster.root / "gone")
    assert cluster.wait_for(native_id, ENDED).reason.startswith("cannot start: ")


def test_a_job_too_wide_for_the_shrunken_site_ends(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster()
    first = cluster.submit("sleep 300", queue="large", nodes=3)
    wide = cluster.submit("true", queue="large", nodes=3)
    small = LocalOptions(cluster.options.site, LocalSettings(nodes=2), cluster.options.queues)
    job = LocalScheduler(cluster.directory, small).jobs()[wide]
    assert (job.state, job.reason) == (ENDED, "asks for 3 nodes, the site has 2")
    cluster.scheduler.cancel(first)


def test_many_users_at_once(make_cluster: Callable[..., Cluster]) -> None:
    """Threads that submit and look; each job runs once, and no node is given twice."""
    queue = QueueSettings(max_nodes=2, min_wall_time=1, max_queued=99, max_running=99)
    cluster = make_cluster(queues={"small": queue})
    script = (
        f"#!{sys.executable} -S\n"
        "import json, os, time\n"
        "names = [n['name'] for n in json.load(open(os.environ['BALSAM_LOCAL_NODES']))['nodes']]\n"
        "start = time.time()\n"
        "time.sleep(0.05)\n"
        "line = json.dumps([names, start, time.time()]) + '\\n'\n"
        "os.write(os.open('ran', os.O_CREAT | os.O_APPEND | os.O_WRONLY), line.encode())\n"
    )
    trouble: list[BaseException] = []

    def use(nodes: int) -> None:
        try:
            mine = LocalScheduler(cluster.directory, cluster.options)
            for _ in range(4):
                mine.submit(cluster.request(script, nodes=nodes))
                mine.jobs()
        except BaseException as error:  # noqa: BLE001 - told below, by the main thread
            trouble.append(error)

    threads = [threading.Thread(target=use, args=(1 + n % 2,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trouble == []
    wait_until(lambda: all(job.state is ENDED for job in cluster.scheduler.jobs().values()))
    assert {job.reason for job in cluster.scheduler.jobs().values()} == {"exit status 0"}
    ran = [json.loads(line) for line in (cluster.work / "ran").read_text().splitlines()]
    assert len(ran) == 16
    for node in ("vnode0", "vnode1", "vnode2"):
        spans = sorted((start, end) for names, start, end in ran if node in names)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_a_lock_that_is_not_free_is_not_known(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(lock_timeout=0.1)
    cluster.scheduler.jobs()
    with (
        State(cluster.directory).locked(),
        pytest.raises(SchedulerUnavailable, match=r"was not free in 0\.1 s"),
    ):
        cluster.scheduler.jobs()


def test_a_damaged_state_is_not_known(cluster: Cluster) -> None:
    native_id = cluster.submit("true")
    cluster.wait_for(native_id, ENDED)
    path = cluster.directory / "jobs" / "1" / "job.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    other = LocalScheduler(cluster.directory, cluster.options)
    with pytest.raises(SchedulerUnavailable, match=r"job\.json is damaged"):
        other.jobs()
    path.write_bytes(whole)


def test_a_directory_that_cannot_be_made_is_not_known(cluster: Cluster) -> None:
    (cluster.root / "file").touch()
    scheduler = LocalScheduler(cluster.root / "file" / "scheduler", cluster.options)
    with pytest.raises(SchedulerUnavailable, match="local scheduler"):
        scheduler.jobs()


def test_old_jobs_are_forgotten(cluster: Cluster) -> None:
    old = cluster.submit("true")
    cluster.wait_for(old, ENDED)
    path = cluster.directory / "jobs" / "1" / "job.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({**plain, "ended": plain["ended"] - 31 * 86400}))
    fresh = LocalScheduler(cluster.directory, cluster.options)
    assert fresh.jobs() == {}
    assert not path.parent.exists()
    fresh.cancel(old)  # harmless
    assert fresh.submit(cluster.request("true")) == "local-2"
    cluster.scheduler = fresh


def test_files_are_the_users_alone(cluster: Cluster) -> None:
    native_id = cluster.submit("echo private")
    cluster.wait_for(native_id, ENDED)
    assert cluster.directory.stat().st_mode & 0o077 == 0
    assert (cluster.work / f"{native_id}.out").stat().st_mode & 0o077 == 0


def test_a_site_makes_its_scheduler(tmp_path: Path) -> None:
    settings = Settings(site=SiteSettings(id="abc"), queues={"q": QueueSettings()})
    scheduler = make_scheduler("local", settings=settings, local_dir=tmp_path)
    assert scheduler.jobs() == {}
    assert scheduler.idle() == (IdleWindow("q", 1),), "as wide as the queue allows"
    [queue] = scheduler.queues()
    assert (queue.name, queue.max_nodes, queue.cores_per_node) == ("q", 1, 1)
    with pytest.raises(SettingsError, match=r"scheduler\.kind is 'lsf9': give one of local"):
        make_scheduler("lsf9", settings=settings, local_dir=tmp_path)
    none = Settings(local=LocalSettings(nodes=0), scheduler=SchedulerSettings())
    with pytest.raises(SettingsError, match=r"local\.nodes is 0"):
        make_scheduler("local", settings=none, local_dir=tmp_path)


def test_relative_directories_are_the_submitters(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cluster.root)
    request = JobRequest("n", "small", 1, 60, cluster.request("pwd").script, Path("work"))
    native_id = cluster.scheduler.submit(request)
    cluster.wait_for(native_id, ENDED)
    assert cluster.output(native_id) == f"{cluster.work.resolve()}\n"
