"""The Slurm adapter over captured output: each trap that was met is a test."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from balsam_celery.errors import SchedulerError, SchedulerUnavailable
from balsam_celery.schedulers.base import IdleWindow, JobRequest, JobState, QueueInfo
from balsam_celery.schedulers.commands import Done
from balsam_celery.schedulers.hostlist import expand
from balsam_celery.schedulers.slurm import SlurmScheduler
from balsam_celery.schedulers.slurm_inside import nodes_inside
from balsam_celery.schedulers.slurm_jobs import parse_exit, parse_jobs, parse_time
from balsam_celery.schedulers.slurm_nodes import (
    PLAN_FORMAT,
    STATE_FORMAT,
    idle_windows,
    parse_down,
    parse_partitions,
    parse_plans,
    parse_shapes,
)
from tests.schedulers.slurm_samples import as_asked, sample, stand_in

ENDED, QUEUED, RUNNING = JobState.ENDED, JobState.QUEUED, JobState.RUNNING
ALL = "%i|%T|%r|%D|%l|%L|%N|%P|%S|%j|%u|%e"
LATER = "%i|%T|%r|%D|%S|%e"
SINFO = "%P|%a|%l|%D|%T|%N|%c|%m|%G|%s"
REQUEST = JobRequest("balsam-s-1", "debug", 1, 60, Path("/j.sh"), Path("/"))

Answering = Callable[..., SlurmScheduler]


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answering:
    """Makes an adapter whose commands answer as given, by name."""

    def make(**answers: Done) -> SlurmScheduler:
        for command, answer in answers.items():
            stand_in(tmp_path, command, answer)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return SlurmScheduler("s", command_timeout=20)

    return make


def test_trap_an_unknown_partition_is_refused_at_once(answering: Answering) -> None:
    scheduler = answering(sbatch=sample("sbatch-unknown-partition"))
    with pytest.raises(SchedulerError, match="Invalid partition name specified") as caught:
        scheduler.submit(REQUEST)
    assert not isinstance(caught.value, SchedulerUnavailable)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("submitted", "id", "reason"),
    [
        ("sbatch-too-many-nodes", "11", "PartitionNodeLimit"),
        ("sbatch-over-timelimit", "12", "PartitionTimeLimit"),
    ],
)
def test_trap_an_impossible_request_is_accepted_and_waits_for_ever(
    answering: Answering, submitted: str, id: str, reason: str
) -> None:
    scheduler = answering(sbatch=sample(submitted), squeue=Done(0, as_asked("squeue-all", ALL), ""))
    assert scheduler.submit(REQUEST) == id
    job = scheduler.jobs([id])[id]
    assert (job.state, job.impossible, job.reason) == (QUEUED, True, reason)


def test_a_job_that_only_waits_is_not_impossible() -> None:
    jobs = parse_jobs(as_asked("squeue-all", ALL), "")
    assert [(jobs[id].reason, jobs[id].impossible) for id in ("15", "16")] == [
        ("Resources", False),
        ("Priority", False),
    ]
    assert jobs["15"].started is None, "an expected start is none"


def test_slurm_tells_when_it_expects_a_waiting_job_to_start() -> None:
    """The same as ``squeue --start`` says, where backfill has planned it; else nothing."""
    jobs = parse_jobs(as_asked("squeue-all", ALL), "")
    told = {}
    for line in sample("squeue-start").out.splitlines()[1:]:
        fields = line.split()
        told[fields[0]] = parse_time(fields[5])
    assert {id for id, start in told.items() if start is None} == {"11", "12"}
    assert {id: jobs[id].expected_start for id in told} == told
    assert jobs["9"].expected_start is None, "it runs"


def test_trap_asked_for_an_id_that_is_gone_squeue_fails(answering: Answering) -> None:
    """So it is asked without ids, and only where its own job must be there is the answer final."""
    gone = sample("squeue-one-unknown")
    assert (gone.status, gone.message) == (1, "slurm_load_jobs error: Invalid job id specified")
    environment = dict(
        line.removeprefix("0: ").split("=", 1)
        for line in sample("env-in-job").out.splitlines()
        if line.startswith("0: ")
    )
    with pytest.raises(SchedulerUnavailable, match="Invalid job id specified"):
        answering(squeue=gone).inside(environment)


@pytest.mark.parametrize("answer", [sample("down-squeue"), Done(0, "N/A\n", "")])
def test_inside_a_job_the_script_tells_its_end_when_the_controller_is_away(
    answering: Answering, answer: Done
) -> None:
    """Before Slurm 23.02 the environment does not."""
    scheduler = answering(squeue=answer)
    environment = {
        "SLURM_JOB_ID": "9",
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_CPUS_PER_NODE": "4",
    }
    with pytest.raises(SchedulerUnavailable):
        scheduler.inside(environment)
    told = scheduler.inside({**environment, "BALSAM_JOB_END": "1795364917"})
    assert (told.end_time, told.native_id) == (1795364917, "9")
    own = scheduler.inside(
        {**environment, "BALSAM_JOB_END": "1795364917", "SLURM_JOB_END_TIME": "1795364900"}
    )
    assert own.end_time == 1795364900, "Slurm's own word comes first"


def test_trap_of_several_ids_the_unknown_are_left_out(answering: Answering, tmp_path: Path) -> None:
    """A list without ids is the same for all: what is not in it is not known any more."""
    assert sample("squeue-two-one-unknown").out == "9|RUNNING\n"
    scheduler = answering(squeue=Done(0, as_asked("squeue-all", ALL), ""))
    assert list(scheduler.jobs(["9", "99999"])) == ["9"]
    [asked] = (tmp_path / "squeue.said").read_text(encoding="utf-8").splitlines()
    assert "--states=all" in asked
    assert "99999" not in asked


def test_trap_records_vanish_and_sacct_is_switched_off(
    answering: Answering, tmp_path: Path
) -> None:
    """A vanished job is missing, no error, and nobody asks ``sacct``."""
    said = stand_in(tmp_path, "sacct", sample("sacct-disabled"))
    scheduler = answering(
        squeue=Done(0, "", ""), scontrol=sample("scontrol-show-unknown"), sinfo=Done(0, "", "")
    )
    assert scheduler.jobs(["9"]) == {}
    assert not said.exists()


def test_a_record_that_vanishes_between_two_questions_has_ended(answering: Answering) -> None:
    row = "balsam:9|FAILED|1|2|n1|balsam-s-1|NonZeroExitCode\n"
    scheduler = answering(squeue=Done(0, row, ""), scontrol=sample("scontrol-show-unknown"))
    job = scheduler.jobs()["9"]
    assert (job.state, job.reason) == (ENDED, "failed: NonZeroExitCode")


@pytest.mark.parametrize("name", ["scancel-unknown", "scancel-twice", "scancel-running"])
def test_trap_scancel_says_nothing_of_unknown_or_finished_jobs(
    answering: Answering, name: str
) -> None:
    """So it is no word of an end: that comes from the list alone."""
    assert sample(name) == Done(0, "", "")
    scheduler = answering(scancel=sample(name), squeue=Done(0, as_asked("squeue-all", ALL), ""))
    scheduler.cancel("9")
    assert scheduler.jobs(["9"])["9"].state is RUNNING


def test_an_id_that_is_none_cannot_be_cancelled(answering: Answering) -> None:
    scheduler = answering(scancel=sample("scancel-malformed"))
    for id in ("abc", "", "1 2", "-1", "--user=root", "9\n"):
        with pytest.raises(SchedulerError, match="is not the id of a job of Slurm"):
            scheduler.cancel(id)


def test_trap_a_controller_that_is_down_is_not_known(answering: Answering) -> None:
    down = sample("down-squeue")
    assert down.status == 1
    scheduler = answering(squeue=down, scancel=down, sinfo=down, scontrol=down, sbatch=down)
    for ask in (
        scheduler.jobs,
        lambda: scheduler.submit(REQUEST),
        lambda: scheduler.cancel("9"),
        lambda: scheduler.down_nodes(["n1"]),
        scheduler.queues,
        scheduler.idle,
    ):
        with pytest.raises(SchedulerUnavailable, match="Unable to contact slurm controller"):
            ask()


@pytest.mark.parametrize(
    ("name", "id"),
    [("sbatch-parsable-ok", "9"), ("sbatch-plain-ok", "10")],
)
def test_the_id_of_a_submission(answering: Answering, name: str, id: str) -> None:
    assert answering(sbatch=sample(name)).submit(REQUEST) == id


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sbatch-bad-option", "unrecognized option '--nonsense'"),
        ("sbatch-bad-time", "Invalid --time specification"),
        ("sbatch-missing-script", "Unable to open file /nonexistent.sh"),
        ("sbatch-no-shebang", "This does not look like a batch script"),
    ],
)
def test_what_sbatch_refuses_by_itself(answering: Answering, name: str, said: str) -> None:
    with pytest.raises(SchedulerError, match=said) as caught:
        answering(sbatch=sample(name)).submit(REQUEST)
    assert not isinstance(caught.value, SchedulerUnavailable)


def test_states_times_and_nodes_of_the_captured_jobs() -> None:
    running = parse_jobs(as_asked("squeue-all", ALL), "")["9"]
    assert (running.state, running.nodes, running.name) == (RUNNING, ("n1", "n2"), "ok")
    assert running.started == parse_time("2026-11-22T16:28:37")
    assert (running.ended, running.reason) == (None, ""), "an end that is to come is none"
    later = parse_jobs(as_asked("squeue-later", LATER), "")
    assert {id: later[id].state for id in ("9", "10", "16", "17")} == {
        "9": ENDED,
        "10": ENDED,
        "16": RUNNING,
        "17": QUEUED,
    }
    assert later["10"].ended == parse_time("2026-11-22T16:28:58")
    assert later["10"].reason == "exit status 0"
    [cancelled] = parse_jobs(as_asked("squeue-cancelled", "%i|%T|%r"), "").values()
    assert cancelled.state is ENDED
    assert parse_exit(sample("scontrol-show-cancelled").out) == "killed by SIGTERM"


def test_the_captured_partition() -> None:
    shapes = parse_shapes("debug|4|4|1|2000|(null)\n")
    [queue] = parse_partitions(sample("scontrol-show-partition").out, shapes, is_root=True)
    assert queue == QueueInfo(
        name="debug",
        max_nodes=8,
        max_wall_time=3600,
        cores_per_node=4,
        memory_per_node=2000 << 20,
        is_default=True,
    )


def test_captured_idle_nodes_and_plans() -> None:
    idle = as_asked("sinfo-idle", SINFO, STATE_FORMAT.replace("%R", "%P")).replace("*", "")
    assert idle_windows(idle, {}, 0) == (IdleWindow("debug", 8),)
    busy = as_asked("sinfo-busy", SINFO, STATE_FORMAT.replace("%R", "%P")).replace("*", "")
    rows = [line.split() for line in sample("squeue-start").out.splitlines()[1:]]
    starts = "".join(f"{PLAN_FORMAT}\n".replace("%S", r[5]).replace("%Y", r[7]) for r in rows)
    plans = parse_plans(starts)
    at = parse_time("2026-11-22T16:33:37")
    assert at is not None
    assert plans == dict.fromkeys(expand("n[1-8]"), at), "the first job to come counts"
    assert idle_windows(busy, plans, at - 90) == (IdleWindow("debug", 4, 90),)
    assert idle_windows(busy, plans, at + 90) == (), "late, and to start at any moment"


def test_a_node_that_is_up_is_not_down() -> None:
    assert parse_down(sample("scontrol-show-node").out) == frozenset()


def test_captured_host_names() -> None:
    assert list(expand("n[1-3,5]")) == sample("scontrol-hostnames").out.split()


def test_the_captured_environment_of_a_job() -> None:
    lines = sample("env-in-job").out.splitlines()
    second = dict(line[3:].split("=", 1) for line in lines if line.startswith("1: "))
    nodes = nodes_inside({**second, "SLURMD_NODENAME": "n2"})
    assert [(node.name, node.cores) for node in nodes] == [("n2", (0,)), ("n1", (0,))]


def test_captured_times_are_local() -> None:
    at = parse_time("2026-11-22T16:28:37")
    assert at is not None
    assert time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(at)) == "2026-11-22T16:28:37"
    assert parse_time("1795364917") == 1795364917
    assert [parse_time(text) for text in ("N/A", "Unknown", "", "0")] == [None] * 4
