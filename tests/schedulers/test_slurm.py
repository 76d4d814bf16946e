"""The pure parts of the Slurm adapter: tables, forms of values, what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_celery.errors import SchedulerError, SettingsError
from balsam_celery.resources import NodeCapacity
from balsam_celery.schedulers import make_scheduler
from balsam_celery.schedulers.base import IdleWindow, JobRequest, JobState
from balsam_celery.schedulers.commands import Done
from balsam_celery.schedulers.slurm import (
    cancel_argv,
    jobs_argv,
    parse_submitted,
    release_argv,
    submit_argv,
)
from balsam_celery.schedulers.slurm_inside import expand_counts, nodes_inside
from balsam_celery.schedulers.slurm_jobs import is_impossible, parse_exit, parse_jobs
from balsam_celery.schedulers.slurm_nodes import (
    Shape,
    count_gpus,
    idle_windows,
    parse_down,
    parse_limit,
    parse_partitions,
    parse_plans,
    parse_shapes,
)
from balsam_celery.schedulers.slurm_refusals import is_refusal
from balsam_celery.settings import QueueSettings, SchedulerSettings, Settings, SiteSettings

ENDED, QUEUED, RUNNING = JobState.ENDED, JobState.QUEUED, JobState.RUNNING
LIVES = "COMPLETING STAGE_OUT RESIZING STOPPED REVOKED SIGNALING RUNNING SUSPENDED EXPEDITING"
WAITS = "PENDING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD SPECIAL_EXIT RESV_DEL_HOLD"
OVER = "COMPLETED CANCELLED FAILED TIMEOUT NODE_FAIL PREEMPTED BOOT_FAIL DEADLINE OUT_OF_MEMORY"


def row(state: str, reason: str = "None", name: str = "balsam-s-1", nodes: str = "n[1-2]") -> str:
    return f"balsam:7|{state}|100|200|{nodes}|{name}|{reason}\n"


@pytest.mark.parametrize(
    ("native", "state"),
    [
        *((native, RUNNING) for native in LIVES.split()),
        *((native, QUEUED) for native in WAITS.split()),
        *((native, ENDED) for native in OVER.split()),
        ("?", RUNNING),
        ("SOMETHING_NEW", RUNNING),
    ],
)
def test_states(native: str, state: JobState) -> None:
    """What nobody knows is no end."""
    job = parse_jobs(row(native), "balsam-s-")["7"]
    assert job.state is state
    assert (job.started is None) == (state is QUEUED)
    assert (job.ended is None) == (state is not ENDED)
    assert bool(job.nodes) == (native == "RUNNING"), "what completes gives its nodes back in turn"
    assert job.reason or native in ("RUNNING", "PENDING")


@pytest.mark.parametrize(
    ("state", "reason", "said"),
    [
        ("COMPLETED", "None", "exit status 0"),
        ("FAILED", "NonZeroExitCode", "failed: NonZeroExitCode"),
        ("FAILED", "None", "failed"),
        ("TIMEOUT", "TimeLimit", "its wall time was over"),
        ("CANCELLED", "None", "cancelled"),
        ("NODE_FAIL", "NodeDown", "a node failed"),
        ("PREEMPTED", "None", "preempted"),
        ("OUT_OF_MEMORY", "OutOfMemory", "out of memory"),
        ("SPECIAL_EXIT", "None", "SPECIAL_EXIT"),
        ("PENDING", "None", ""),
        ("PENDING", "ReqNodeNotAvail, UnavailableNodes:n8", "ReqNodeNotAvail, UnavailableNodes:n8"),
        ("PENDING", "a|b", "a|b"),
    ],
)
def test_reasons_are_words(state: str, reason: str, said: str) -> None:
    assert parse_jobs(row(state, reason), "")["7"].reason == said


@pytest.mark.parametrize(
    "reason",
    [
        *("PartitionNodeLimit", "PartitionTimeLimit", "PartitionConfig", "BadConstraints"),
        *("InvalidAccount", "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed"),
        *("DependencyNeverSatisfied", "QOSMaxWallDurationPerJobLimit", "AssocMaxNodePerJobLimit"),
        *("QOSMaxCpuPerJobLimit", "AssocMaxCpuMinutesPerJobLimit", "QOSMaxGRESPerNode"),
        *("QOSMinCpuNotSatisfied", "QOSMinGRES", "MaxMemPerLimit", "ReservationDeleted"),
    ],
)
def test_impossible(reason: str) -> None:
    assert is_impossible(reason)
    assert parse_jobs(row("PENDING", reason), "")["7"].impossible
    assert not parse_jobs(row("RUNNING", reason), "")["7"].impossible


@pytest.mark.parametrize(
    "reason",
    [
        *(
            "Resources",
            "Priority",
            "Dependency",
            "Licenses",
            "Reservation",
            "BeginTime",
            "None",
            "",
        ),
        *("JobHeldUser", "JobHeldAdmin", "PartitionDown", "PartitionInactive", "NodeDown"),
        *("QOSMaxJobsPerUserLimit", "QOSMaxNodePerUserLimit", "QOSMaxCpuPerUserLimit"),
        *("AssocMaxJobsLimit", "AssocGrpNodeLimit", "QOSGrpCpuLimit", "MaxGRESPerAccount"),
        "ReqNodeNotAvail, UnavailableNodes:n8",
        "ReqNodeNotAvail, Reserved for maintenance",
        "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority "
        "partitions",
    ],
)
def test_not_impossible(reason: str) -> None:
    assert not is_impossible(reason)


def test_whose_jobs_are_told() -> None:
    text = (
        "CLUSTER: one\n"
        + row("RUNNING", name="balsam-s-1").replace(":7", ":1")
        + row("RUNNING", name="balsam-sx-1").replace(":7", ":2")
        + row("RUNNING", name="renamed").replace(":7", ":3")
        + row("RUNNING", name="a\nbalsam-s-|b").replace(":7", ":4")
        + "\nCLUSTER: two\n"
    )
    jobs = parse_jobs(text, "balsam-s-", ["3", "99"])
    assert {id: job.name for id, job in jobs.items()} == {"1": "balsam-s-1", "3": "renamed"}


def test_a_damaged_list_is_not_read() -> None:
    with pytest.raises(ValueError, match="a line of 2 fields"):
        parse_jobs(row("RUNNING") + "balsam:8|RUN", "")
    with pytest.raises(ValueError, match="is not a list of nodes"):
        parse_jobs(row("RUNNING", nodes="n[1-"), "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("JobId=7 ExitCode=3:0 DerivedExitCode=0:0", "exit status 3"),
        ("JobId=7 DerivedExitCode=9:0 ExitCode=0:9", "killed by SIGKILL"),
        ("JobId=7 ExitCode=0:99", "killed by signal 99"),
        ("JobId=7", ""),
    ],
)
def test_how_a_script_ended(text: str, said: str) -> None:
    assert parse_exit(text) == said


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("12\n", "12"),
        ("12;cluster\n", "12"),
        ("Welcome to 2026\nSubmitted batch job 12\nbye\n", "12"),
        ("", None),
        ("job 12 is fine\n", None),
        ("0\n", None),
        ("17\n12\n", None),
    ],
)
def test_the_id_in_the_answer(text: str, id: str | None) -> None:
    assert parse_submitted(text) == id


def failed(words: str, status: int = 1) -> Done:
    return Done(status, "", f"sbatch: error: Batch job submission failed: {words}\n")


@pytest.mark.parametrize(
    "done",
    [
        failed("Invalid account or account/partition combination specified"),
        failed("Requested node configuration is not available"),
        failed("Job violates accounting/QOS policy (job submit limit, user's size and/or ...)"),
        failed("Unspecified error"),
        failed("Access/permission denied"),
        Done(255, "", "sbatch: unrecognized option '--nonsense'\n"),
        Done(1, "", "sbatch: error: Batch script is empty!\n"),
    ],
)
def test_refusals(done: Done) -> None:
    assert is_refusal(done)


@pytest.mark.parametrize(
    "done",
    [
        failed("Unable to contact slurm controller (connect failure)"),
        failed("Socket timed out on send/recv operation"),
        failed("Zero Bytes were transmitted or received"),
        failed("Protocol authentication error"),
        failed("Unable to create job record, try again"),
        failed("Slurm backup controller in standby mode"),
        failed("Connection reset by peer"),
        failed("something that nobody has seen"),
        Done(1, "", "sbatch: fatal: Could not establish a configuration source\n"),
        Done(255, "", "Connection to login2 closed by remote host.\n"),
        Done(-9, "", ""),
        Done(1, "Invalid partition name specified", ""),
    ],
)
def test_what_may_be_a_lost_answer_is_no_refusal(done: Done) -> None:
    assert not is_refusal(done)


@pytest.mark.parametrize(
    ("state", "down"),
    [
        *(("DOWN", True), ("DOWN*", True), ("DOWN+DRAIN", True), ("DOWN*+DRAIN+REBOOT", True)),
        *(("IDLE", False), ("IDLE*", False), ("ALLOCATED*", False), ("MIXED+DRAIN", False)),
        *(("ALLOCATED+FAIL", False), ("IDLE+FAIL", False), ("UNKNOWN", False)),
        *(("IDLE+POWERED_DOWN", False), ("ALLOCATED+NOT_RESPONDING", False)),
        ("DOWN+NOT_RESPONDING", True),
    ],
)
def test_nodes_that_are_down(state: str, down: bool) -> None:
    text = f"NodeName=n1 Arch=x86_64 OS=Linux Boards=1 State={state} ThreadsPerCore=1\n"
    assert parse_down(text) == ({"n1"} if down else set())


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        *(("(null)", 0), ("gpu:4", 4), ("gpu:a100:4", 4), ("gpu:a100:4(S:0-1),nvme:1", 4)),
        *(("gpu:a100:4(S:0,2),gpu:v100:2(S:1)", 6), ("gpu:1g.5gb:7", 7), ("gpu", 1)),
        *(("mps:400,shard:8", 0), ("gpu_mem:80G", 0), ("gpu:h100:0", 0), ("", 0)),
    ],
)
def test_gpus(gres: str, count: int) -> None:
    assert count_gpus(gres) == count


def test_a_partition_has_what_its_least_node_has() -> None:
    text = "a|64|2|16|512000|gpu:4\na|8|1|8|16000+|(null)\nb|4|4|1|2000|gpu:x:2\n"
    assert parse_shapes(text) == {
        "a": Shape(cores=8, gpus=0, memory=16000 << 20),
        "b": Shape(cores=4, gpus=2, memory=2000 << 20),
    }
    assert parse_shapes("ht|256|2|64|1|(null)\n")["ht"].cores == 128, "no hardware threads"
    with pytest.raises(ValueError, match="a line of 2 fields"):
        parse_shapes("a|4\n")


def test_partitions() -> None:
    def partition(name: str, **changes: str) -> str:
        values = {
            "PartitionName": name,
            "Default": "NO",
            "DisableRootJobs": "NO",
            "State": "UP",
            "RootOnly": "NO",
            "MinNodes": "0",
            "MaxNodes": "UNLIMITED",
            "TotalNodes": "9",
            "MaxTime": "UNLIMITED",
            **changes,
        }
        return " ".join(f"{key}={value}" for key, value in values.items()) + "\n"

    text = (
        partition("wide")
        + partition("limited", MinNodes="2", MaxNodes="4", MaxTime="2-12:00:00")
        + partition("usual", Default="YES", MaxNodes="99", MaxTime="30:00")
        + partition("off", State="DRAIN")
        + partition("root", RootOnly="YES")
        + partition("users", DisableRootJobs="YES")
        + partition("empty", TotalNodes="0")
        + partition("hidden")
    )
    names = ["wide", "limited", "usual", "off", "root", "users", "empty"]
    shapes = {name: Shape(4, 1, 5) for name in names}
    queues = {queue.name: queue for queue in parse_partitions(text, shapes, is_root=False)}
    assert list(queues) == ["usual", "wide", "limited", "off", "users"]
    assert {queue.name for queue in parse_partitions(text, shapes, is_root=True)} == {
        *("usual", "wide", "limited", "off", "root")
    }
    limits = {q.name: (q.min_nodes, q.max_nodes, q.max_wall_time) for q in queues.values()}
    assert limits["wide"] == (1, 9, None)
    assert limits["limited"] == (2, 4, 216000)
    assert limits["usual"] == (1, 9, 1800)
    assert [queue.enabled for queue in queues.values()] == [True, True, True, False, True]
    assert (queues["wide"].cores_per_node, queues["wide"].gpus_per_node) == (4, 1)
    with pytest.raises(ValueError, match="'soon' is not a time limit"):
        parse_partitions(partition("wide", MaxTime="soon"), shapes, is_root=False)


@given(st.integers(0, 10**7))
def test_time_limits(seconds: int) -> None:
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    written = f"{hour:02}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
    assert parse_limit(f"{days}-{written}" if days else written) == seconds


def test_no_time_limit() -> None:
    assert [parse_limit(text) for text in ("UNLIMITED", "infinite", "NONE")] == [None] * 3


def test_idle_windows() -> None:
    states = (
        "a|up|idle|n[1-2]\na|up|planned|n[3-5]\na|up|mixed|n6\na|up|idle*|n7\na|up|idle~|n8\n"
        "a|up|drained|n9\nb|up|idle|n1\nc|down|idle|n1\nd|inact|idle|n1\ne|up|planned|n5\n"
    )
    plans = parse_plans("1500|n3\nN/A|n[1-9]\n1200|n[4,2]\n1300|n4\n1400|(null)\n1400|\n")
    assert plans == {"n3": 1500, "n4": 1200, "n2": 1200}
    assert idle_windows(states, plans, 1000) == (
        IdleWindow("a", 1),
        IdleWindow("a", 2, 500),
        IdleWindow("a", 4, 200),
        IdleWindow("b", 1),
    )


@pytest.mark.parametrize(
    ("text", "counts"),
    [("4(x2),2", [4, 4, 2]), ("8", [8]), ("1,2(x1)", [1, 2]), ("", []), ("x", []), ("4(x)", [])],
)
def test_cpus_of_nodes(text: str, counts: list[int]) -> None:
    assert expand_counts(text) == counts


def test_nodes_of_a_job() -> None:
    nodes = nodes_inside(
        {
            "SLURM_JOB_NODELIST": "n[1-2],gpu3",
            "SLURM_JOB_CPUS_PER_NODE": "2(x2),3",
            "SLURMD_NODENAME": "gpu3",
            "SLURM_JOB_GPUS": "0,2",
            "SLURM_MEM_PER_NODE": "5",
        }
    )
    assert nodes == (
        NodeCapacity("gpu3", (0, 1, 2), (0, 2), 5 << 20),
        NodeCapacity("n1", (0, 1), (0, 2), 5 << 20),
        NodeCapacity("n2", (0, 1), (0, 2), 5 << 20),
    )
    one = {"SLURM_JOB_NODELIST": "n1", "SLURM_JOB_CPUS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "2"}
    assert nodes_inside(one) == (NodeCapacity("n1", (0,), (0, 1)),)


@pytest.mark.parametrize(
    ("nodes", "cpus", "said"),
    [
        ("n[1-2]", "4", "names 2 nodes, SLURM_JOB_CPUS_PER_NODE '4' is of 1"),
        ("", "", "names 0 nodes"),
        ("n[1-", "4", "SLURM_JOB_NODELIST: 'n.1-' is not a list of nodes"),
    ],
)
def test_an_environment_that_does_not_fit(nodes: str, cpus: str, said: str) -> None:
    with pytest.raises(SchedulerError, match=said):
        nodes_inside({"SLURM_JOB_NODELIST": nodes, "SLURM_JOB_CPUS_PER_NODE": cpus})


def test_commands() -> None:
    request = JobRequest("balsam-s-1", "q", 2, 60, Path("/d/script"), Path("/d"))
    assert submit_argv(request) == ["sbatch", "--parsable", "/d/script"]
    assert cancel_argv("7") == ["scancel", "7"]
    update = ["scontrol", "update", "JobId=7", "NodeList=n1,n3"]
    assert release_argv("7", ["n1", "n3"]) == update
    argv = jobs_argv(1000)
    assert {"--all", "--states=all", "--user=1000"} <= set(argv)
    settings = Settings(site=SiteSettings(id="s"))
    scheduler = make_scheduler("slurm", settings=settings, local_dir=Path("/none"))
    assert scheduler.submit_command(request) == submit_argv(request)


@pytest.mark.parametrize("directive", ["--clusters=other", "-Mother", "-M other", "--cluster=x"])
def test_another_cluster_is_refused(directive: str) -> None:
    """Its jobs would be missing from the answers, and so count as ended."""
    everywhere = Settings(scheduler=SchedulerSettings(kind="slurm", directives=(directive,)))
    one = Settings(queues={"q": QueueSettings(directives=(directive,))})
    for settings in (everywhere, one):
        with pytest.raises(SettingsError, match="set SLURM_CLUSTERS in the environment"):
            make_scheduler("slurm", settings=settings, local_dir=Path("/none"))
