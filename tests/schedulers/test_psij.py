"""The PSI/J adapter: its tables, and the library itself over stand-ins of LSF, Cobalt and Slurm.

The stand-ins print what the manuals say, for none of these could be captured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from balsam_celery import procs
from balsam_celery.errors import SchedulerError, SchedulerUnavailable, SettingsError
from balsam_celery.resources import NodeCapacity
from balsam_celery.schedulers import make_scheduler, psij_inside
from balsam_celery.schedulers.base import JobRequest, JobState, Scheduler
from balsam_celery.schedulers.commands import Done
from balsam_celery.schedulers.psij import STATES, attributes, make_job
from balsam_celery.schedulers.psij_refusals import refuses_end, refuses_job
from balsam_celery.settings import QueueSettings, SchedulerSettings, Settings, SiteSettings
from tests.schedulers.pbs_samples import StandIns, sample
from tests.waiting import wait_until

END = {"BALSAM_JOB_END": "1795363283", "BALSAM_JOB_QUEUE": "batch"}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """A scheduler's commands, which answer nothing yet."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return StandIns(directory)


def make(executor: str, tmp_path: Path, *directives: str) -> Scheduler:
    settings = Settings(
        site=SiteSettings(id="5173"),
        scheduler=SchedulerSettings(kind="psij", executor=executor, directives=directives),
        queues={"batch": QueueSettings(max_nodes=8, cores_per_node=2, gpus_per_node=4)},
    )
    return make_scheduler("psij", settings=settings, local_dir=tmp_path / "local")


@pytest.fixture
def request_of(tmp_path: Path) -> JobRequest:
    directory = tmp_path / "allocation"
    directory.mkdir()
    script = directory / "job.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o700)
    return JobRequest("balsam-5173-0123456789ab", "batch", 2, 5400, script, directory)


def bjobs(native_id: str, **record: str) -> Done:
    """As ``bjobs -json`` answers of one job."""
    empty = {"EXIT_REASON": "", "KILL_REASON": "", "SUSPEND_REASON": ""}
    told = {"JOBID": native_id, **empty, **record}
    return Done(0, json.dumps({"COMMAND": "bjobs", "JOBS": 1, "RECORDS": [told]}), "")


def asked(*ids: str) -> str:
    """Arguments with which PSI/J asks LSF for jobs."""
    return " ".join(("-o JOBID STAT EXIT_REASON KILL_REASON SUSPEND_REASON -json -a", *ids))


def test_submission_to_lsf(commands: StandIns, request_of: JobRequest, tmp_path: Path) -> None:
    commands.answer("bsub", {"*": Done(0, "Job <4711> is submitted to queue <batch>.\n", "")})
    scheduler = make("lsf", tmp_path, "--account=abc", "-core_isolation=2")
    assert scheduler.submit(request_of) == "4711"
    ((path,),) = commands.said("bsub")
    # beside the allocation's other files, where compute nodes can read it, and not in the home
    assert Path(path).is_relative_to(request_of.directory)
    assert not (tmp_path / "home").exists()
    script = Path(path).read_text()
    for line in (
        "#BSUB -nnodes 2",
        "#BSUB -W 1:30",
        '#BSUB -q "batch"',
        '#BSUB -P "abc"',
        '#BSUB -core_isolation "2"',
    ):
        assert line in script.splitlines()
    assert f" {request_of.script}" in script


def test_a_refusal_is_told_in_one_line(
    commands: StandIns, request_of: JobRequest, tmp_path: Path
) -> None:
    no_queue = Done(255, "", "batch: No such queue. Job not submitted.\n")
    commands.answer("bsub", {"*": no_queue})
    with pytest.raises(SchedulerError, match="No such queue") as caught:
        make("lsf", tmp_path).submit(request_of)
    assert not isinstance(caught.value, SchedulerUnavailable)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        Done(255, "", "LSF is down. Please wait ...\n"),
        Done(255, "", "A socket operation has failed: timed out. Job not submitted.\n"),
        Done(255, "", ""),
        Done(0, "Thank you.\n", ""),
    ],
)
def test_a_submission_that_failed_otherwise_may_have_been_taken(
    commands: StandIns, request_of: JobRequest, tmp_path: Path, answer: Done
) -> None:
    commands.answer("bsub", {"*": answer})
    with pytest.raises(SchedulerUnavailable, match=r"PSI/J \(lsf\), submit: ") as caught:
        make("lsf", tmp_path).submit(request_of)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("executor", "complaint", "refused"),
    [
        ("pbs", sample("err-unknown-queue").err, True),
        ("pbs", sample("err-walltime-over").err, True),
        ("pbs", sample("err-bad-walltime").err, True),
        ("pbs", sample("err-serverdown-qsub").err, False),
        ("slurm", "sbatch: error: Batch job submission failed: Invalid qos specification", True),
        ("slurm", "sbatch: error: Unable to contact slurm controller (connect failure)", False),
        ("cobalt", "Unknown queue", False),
    ],
)
def test_known_refusals(executor: str, complaint: str, refused: bool) -> None:
    assert refuses_job(executor, complaint) is refused


def test_refusals_to_cancel() -> None:
    assert refuses_end(sample("qdel-malformed").err)
    assert refuses_end("scancel: error: Kill job error on job id 7: Access/permission denied")
    assert not refuses_end(sample("err-serverdown-qdel").err)


@pytest.mark.parametrize(
    ("record", "state", "reason"),
    [
        ({"STAT": "PEND"}, JobState.QUEUED, ""),
        ({"STAT": "RUN"}, JobState.RUNNING, ""),
        ({"STAT": "UNKWN"}, JobState.RUNNING, ""),  # no contact to the host: never ended
        ({"STAT": "DONE"}, JobState.ENDED, ""),
        # PSI/J 0.9.11 itself fails over a record with a reason
        (
            {"STAT": "EXIT", "EXIT_REASON": "TERM_RUNLIMIT: job killed after reaching its limit"},
            JobState.ENDED,
            "TERM_RUNLIMIT: job killed after reaching its limit",
        ),
    ],
)
def test_states_of_lsf(
    commands: StandIns, tmp_path: Path, record: dict[str, str], state: JobState, reason: str
) -> None:
    commands.answer("bjobs", {asked("4711"): bjobs("4711", **record)})
    job = make("lsf", tmp_path).jobs(["4711"])["4711"]
    assert (job.state, job.reason, job.name) == (state, reason, "")


def test_an_unknown_job_is_left_out_and_does_not_hide_others(
    commands: StandIns, tmp_path: Path
) -> None:
    unknown = Done(255, "", "Job <99> is not found\n")
    commands.answer("bjobs", {asked("99"): unknown, asked("4711"): bjobs("4711", STAT="RUN")})
    assert list(make("lsf", tmp_path).jobs(["99", "4711"])) == ["4711"]


@pytest.mark.parametrize(
    "answer", [Done(255, "", "LSF is down. Please wait ...\n"), Done(0, "", ""), Done(0, "{}", "")]
)
def test_what_psij_takes_for_failed_jobs_is_not_known(
    commands: StandIns, tmp_path: Path, answer: Done
) -> None:
    commands.answer("bjobs", {"*": answer})
    with pytest.raises(SchedulerUnavailable):
        make("lsf", tmp_path).jobs(["4711"])


def test_without_ids_nothing_is_asked(commands: StandIns, tmp_path: Path) -> None:
    commands.answer("bjobs", {})
    assert make("lsf", tmp_path).jobs() == {}
    assert commands.said("bjobs") == []


def test_cancelling_through_lsf(commands: StandIns, tmp_path: Path) -> None:
    scheduler = make("lsf", tmp_path)
    commands.answer("bkill", {"4711": Done(0, "Job <4711> is being terminated\n", "")})
    scheduler.cancel("4711")
    commands.answer("bkill", {"4711": Done(255, "", "Job <4711>: Job has already finished\n")})
    scheduler.cancel("4711")
    commands.answer("bkill", {"4711": Done(255, "", "Job <4711>: Operation not permitted\n")})
    with pytest.raises(SchedulerError, match="Operation not permitted") as caught:
        scheduler.cancel("4711")
    assert not isinstance(caught.value, SchedulerUnavailable)
    commands.answer("bkill", {"4711": Done(255, "", "LSF is down. Please wait ...\n")})
    with pytest.raises(SchedulerUnavailable, match="LSF is down"):
        scheduler.cancel("4711")
    assert commands.said("bkill") == [["4711"]] * 4


def test_a_job_that_cobalt_kills_still_runs(commands: StandIns, tmp_path: Path) -> None:
    killing = Done(0, "JobID: 47110\n    State : killing\n", "")
    commands.answer("qstat", {"-l --header=Jobid:State 47110": killing, "*": Done(1, "", "")})
    scheduler = make("cobalt", tmp_path)
    job = scheduler.jobs(["47110"])["47110"]
    assert (job.state, job.reason) == (JobState.RUNNING, "being killed")
    assert scheduler.jobs(["47111"]) == {}  # Cobalt knows of no job that has ended


def test_a_command_that_hangs_is_given_up(commands: StandIns, tmp_path: Path) -> None:
    hangs = commands.directory / "bjobs"
    hangs.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    hangs.chmod(0o755)
    settings = Settings(scheduler=SchedulerSettings(kind="psij", executor="lsf", command_timeout=4))
    scheduler = make_scheduler("psij", settings=settings, local_dir=tmp_path / "local")
    with pytest.raises(SchedulerUnavailable, match="did not end within 4 s"):
        scheduler.jobs(["4711"])
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: procs.identity(pid) is None, what="the command to be gone")


def test_the_library_leaves_this_process_alone(commands: StandIns, tmp_path: Path) -> None:
    before = threading.active_count()
    commands.answer("bjobs", {"*": bjobs("4711", STAT="RUN")})
    make("lsf", tmp_path).jobs(["4711"])
    assert threading.active_count() == before
    assert "psij" not in sys.modules
    assert not (tmp_path / "home").exists()


def test_states_that_psij_has_are_all_known() -> None:
    text = "import psij; print(*(state.name for state in psij.JobState))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == set(STATES)
    with pytest.raises(SchedulerUnavailable, match="'LIMBO'"):
        make_job("1", "LIMBO", "")
    assert make_job("1", "CANCELED", "").reason == "cancelled"


def test_directives_as_psij_takes_them() -> None:
    assert attributes("lsf", ["--account=abc", "--reservation=r1", "-alloc_flags=smt4 x=1"]) == {
        "account": "abc",
        "reservation": "r1",
        "custom": {"lsf.alloc_flags": "smt4 x=1"},
    }
    assert attributes("lsf", [], "queue")["account"] == "queue"
    assert attributes("lsf", ["--account=abc"], "queue")["account"] == "abc"


@pytest.mark.parametrize(
    ("hosts", "names"),
    [
        ("n1 4 n2 4", ["n1", "n2"]),
        ("n1 1", ["n1"]),
        ("n1 1 n2 1", ["n1", "n2"]),
        # machines with launch nodes: the script runs where no work is to be put
        ("batch3 1 n2 42 n3 42", ["n2", "n3"]),
    ],
)
def test_inside_a_job_of_lsf(tmp_path: Path, hosts: str, names: list[str]) -> None:
    environment = {"LSB_JOBID": "4711", "LSB_MCPU_HOSTS": hosts, **END}
    job = make("lsf", tmp_path).inside(environment)
    assert job.nodes == tuple(NodeCapacity(name, (0, 1), (0, 1, 2, 3)) for name in names)
    assert (job.native_id, job.end_time, job.virtual) == ("4711", 1795363283, False)


def test_inside_a_job_of_cobalt_and_slurm(tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    path.write_text("nid1\nnid1\nnid2\n")
    environment = {"COBALT_JOBID": "12345", "COBALT_NODEFILE": str(path), **END}
    job = make("cobalt", tmp_path).inside(environment)
    assert [node.name for node in job.nodes] == ["nid1", "nid2"]
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[08-10]", **END}
    job = make("slurm", tmp_path).inside(environment)
    assert [node.name for node in job.nodes] == ["n08", "n09", "n10"]


def test_inside_an_instance_of_flux(commands: StandIns, tmp_path: Path) -> None:
    answers: dict[str, Any] = {
        "getattr jobid": Done(0, "ƒ2UxYzAb\n", ""),
        "getattr hostlist": Done(0, "corona[8,9]\n", ""),
    }
    commands.answer("flux", answers)
    job = make("flux", tmp_path).inside(END)
    assert job.native_id == "ƒ2UxYzAb"
    assert [node.name for node in job.nodes] == ["corona8", "corona9"]
    commands.answer("flux", {"*": Done(1, "", "flux-getattr: cannot connect\n")})
    with pytest.raises(SchedulerUnavailable, match="cannot connect"):
        make("flux", tmp_path).inside(END)


@pytest.mark.parametrize("missing", [*END, "LSB_JOBID"])
def test_inside_without_what_it_needs(tmp_path: Path, missing: str) -> None:
    environment = {"LSB_JOBID": "4711", "LSB_MCPU_HOSTS": "n1 4", **END}
    del environment[missing]
    with pytest.raises(SchedulerError, match=f"not inside a job.*{missing}"):
        make("lsf", tmp_path).inside(environment)


def test_a_pid_that_another_process_bears_is_not_the_job() -> None:
    own = psij_inside.local_id(os.getpid())
    assert psij_inside.local_pid(own) == os.getpid()
    assert psij_inside.local_pid(f"{os.getpid()}.1") is None
    assert psij_inside.local_pid("--all") is None
    assert psij_inside.local_pid(psij_inside.local_id(4_194_999)) is None  # above the largest pid


def test_an_executor_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"scheduler\.executor is '': give one of lsf, flux"):
        make("", tmp_path)


def test_a_library_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "site-packages" not in p])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(SettingsError, match=r"pip install 'balsam_celery\[psij\]'"):
        make("lsf", tmp_path)
