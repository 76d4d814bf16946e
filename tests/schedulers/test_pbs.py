"""The PBS adapter over stand-ins that answer as a real OpenPBS 23.06 did. Each trap is a test."""

from __future__ import annotations

import json
import os
import pwd
import time
from pathlib import Path
from typing import Any

import pytest

from balsam_celery.errors import SchedulerError, SchedulerUnavailable
from balsam_celery.resources import NodeCapacity
from balsam_celery.schedulers import make_scheduler
from balsam_celery.schedulers.base import IdleWindow, JobRequest, JobState, Scheduler
from balsam_celery.schedulers.commands import Done
from balsam_celery.settings import (
    DatabaseSettings,
    QueueSettings,
    SchedulerSettings,
    Settings,
    SiteSettings,
)
from tests.schedulers.pbs_samples import StandIns, changed, command_of, renamed, sample

USER = pwd.getpwuid(os.geteuid()).pw_name
OURS = "balsam-5173-0123456789ab"
RUNNING = renamed("qstat-f-json-running", OURS)
NO_HISTORY = Done(
    0, sample("qstat-unknown").out, "qstat: PBS is not configured to maintain job history\n"
)


@pytest.fixture
def pbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """A PBS that knows nothing yet and lists no job."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    stand_ins = StandIns(directory)
    stand_ins.answer("qselect", {"*": Done(0, "", "")})
    return stand_ins


@pytest.fixture
def scheduler(tmp_path: Path) -> Scheduler:
    settings = Settings(
        site=SiteSettings(id="5173"),
        database=DatabaseSettings(url_env="BALSAM_TEST_SECRET"),
        scheduler=SchedulerSettings(kind="pbs", command_timeout=20),
        queues={
            "workq": QueueSettings(
                max_nodes=8, cores_per_node=4, gpus_per_node=2, memory_per_node=7
            )
        },
    )
    return make_scheduler("pbs", settings=settings, local_dir=tmp_path / "local")


@pytest.fixture
def request_of(tmp_path: Path) -> JobRequest:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\n")
    return JobRequest(OURS, "workq", 1, 60, script, tmp_path)


def owned(name: str, user: str) -> Done:
    """A captured job, of a name that is not of any site, of this user."""
    return changed(name, lambda told: told.update(Job_Owner=f"{user}@login1"))


def looks(pbs: StandIns) -> list[str]:
    """Ids that qstat was asked for."""
    return [arguments[-1] for arguments in pbs.said("qstat")]


def test_submission_gives_the_whole_id(
    pbs: StandIns, scheduler: Scheduler, request_of: JobRequest
) -> None:
    pbs.answer("qsub", {"*": "qsub-ok"})
    assert scheduler.submit(request_of) == "60.pbsserver"
    assert pbs.said("qsub") == [["-f", str(request_of.script)]]
    assert scheduler.submit_command(request_of)[0] == str(pbs.directory / "qsub")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("err-unknown-queue", "Unknown queue"),
        ("err-queue-disabled", "Queue is not enabled"),
        ("err-walltime-over", "Job violates queue and/or server resource limits"),
        ("err-unknown-resource", "Unknown resource: foo"),
        ("err-bad-walltime", "Illegal attribute or resource value Resource_List.walltime"),
        ("err-no-script", "No such file or directory"),
        ("err-dir-script", "script not a file"),
        ("err-bad-name", "illegal -N value"),
        ("err-long-name", "Job name is too long"),
        ("err-bad-option", "invalid option -- 'Z'"),
        ("err-nodes-and-select", 'cannot be used with "select"'),
        ("err-qsub-bad-env", "cannot send environment with the job"),
    ],
)
def test_trap_a_refusal_is_told_by_the_exit_status(
    pbs: StandIns, scheduler: Scheduler, request_of: JobRequest, name: str, reason: str
) -> None:
    pbs.answer("qsub", {"*": name})
    with pytest.raises(SchedulerError) as caught:
        scheduler.submit(request_of)
    assert not isinstance(caught.value, SchedulerUnavailable)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        sample("err-serverdown-qsub"),
        sample("err-qsub-server-unknown"),
        Done(255, "", "Failed to recv data from background qsub\n"),
        Done(0, "", ""),
        Done(0, "hello\n", ""),
    ],
)
def test_trap_a_server_that_is_down_did_not_refuse(
    pbs: StandIns, scheduler: Scheduler, request_of: JobRequest, answer: Done
) -> None:
    pbs.answer("qsub", {"*": answer})
    with pytest.raises(SchedulerUnavailable):
        scheduler.submit(request_of)


def test_without_the_commands_nothing_is_known(
    tmp_path: Path, scheduler: Scheduler, request_of: JobRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PBS_CONF_FILE", str(tmp_path / "none"))
    with pytest.raises(SchedulerUnavailable, match="qsub: No such file or directory"):
        scheduler.submit(request_of)


def test_jobs_are_asked_for_one_at_a_time_and_by_the_users_name(
    pbs: StandIns, scheduler: Scheduler
) -> None:
    pbs.answer("qselect", {f"-u {USER}": "qselect-running", "*": Done(0, "78[].pbsserver\n", "")})
    pbs.answer(
        "qstat",
        {"-x -f -F json 67.pbsserver": RUNNING, "*": sample("qstat-f-json-numeric")},
    )
    jobs = scheduler.jobs()
    assert {id: (job.name, job.state) for id, job in jobs.items()} == {
        "67.pbsserver": (OURS, JobState.RUNNING)
    }
    first = looks(pbs)
    assert sorted(first) == [f"{number}.pbsserver" for number in range(65, 71)]  # no array
    # others' jobs are looked at once
    assert scheduler.jobs() == jobs
    assert looks(pbs)[len(first) :] == ["67.pbsserver"]
    recent = pbs.said("qselect")[1]
    assert recent[:3] == ["-x", "-u", USER]
    since = time.strptime(recent[3], "-tc.gt.%Y%m%d%H%M")
    assert since <= time.gmtime(time.time() - 3600)


def test_a_job_that_ended_is_told_by_id_and_when_it_is_new(
    pbs: StandIns, scheduler: Scheduler
) -> None:
    ended = renamed("qstat-xf-json-finished-WALL", OURS)
    pbs.answer("qstat", {"-x -f -F json 65.pbsserver": ended})
    (job,) = scheduler.jobs(["65.pbsserver"]).values()
    assert (job.state, job.reason) == (JobState.ENDED, "its wall time was over")
    pbs.answer("qselect", {f"-u {USER}": Done(0, "", ""), "*": Done(0, "65.pbsserver\n", "")})
    assert scheduler.jobs() == {"65.pbsserver": job}


def test_a_job_that_pbs_does_not_know_is_left_out(pbs: StandIns, scheduler: Scheduler) -> None:
    pbs.answer("qstat", {"-x -f -F json 99999.pbsserver": "qstat-unknown"})
    assert scheduler.jobs(["99999.pbsserver"]) == {}
    # what is no id at all would be taken for a queue
    assert scheduler.jobs(["local-3", ""]) == {}
    assert len(looks(pbs)) == 1


def test_an_id_that_a_strangers_job_bears_now_is_not_ours(
    pbs: StandIns, scheduler: Scheduler
) -> None:
    pbs.answer("qstat", {"*": owned("qstat-f-json-running", "stranger")})
    assert scheduler.jobs(["67.pbsserver"]) == {}


def test_a_job_that_was_renamed_has_not_ended(pbs: StandIns, scheduler: Scheduler) -> None:
    pbs.answer("qselect", {"*": Done(0, "67.pbsserver\n", "")})
    pbs.answer("qstat", {"-x -f -F json 67.pbsserver": owned("qstat-f-json-running", USER)})
    assert scheduler.jobs() == {}, "by its name it is not of the site"
    job = scheduler.jobs(["67.pbsserver"])["67.pbsserver"]
    assert (job.name, job.state) == ("running", JobState.RUNNING)


def test_a_job_that_has_ended_is_looked_at_once(pbs: StandIns, scheduler: Scheduler) -> None:
    pbs.answer("qselect", {"*": Done(0, "65.pbsserver\n67.pbsserver\n", "")})
    ended = renamed("qstat-xf-json-finished-WALL", OURS)
    pbs.answer(
        "qstat",
        {"-x -f -F json 65.pbsserver": ended, "-x -f -F json 67.pbsserver": RUNNING},
    )
    first = scheduler.jobs()
    assert [first[id].state for id in sorted(first)] == [JobState.ENDED, JobState.RUNNING]
    assert scheduler.jobs() == scheduler.jobs(["65.pbsserver"]) == first
    assert looks(pbs).count("65.pbsserver") == 1
    assert looks(pbs).count("67.pbsserver") == 3


def test_a_job_that_nobody_knows_hides_no_job_that_was_asked_for(
    pbs: StandIns, scheduler: Scheduler
) -> None:
    pbs.answer("qselect", {"*": Done(0, "67.pbsserver\n89.pbsserver\n", "")})
    moved = {"-x -f -F json 67.pbsserver": RUNNING, "*": sample("err-serverdown-qstat")}
    pbs.answer("qstat", moved)
    assert list(scheduler.jobs(["67.pbsserver"])) == ["67.pbsserver"]
    # it may be the one whose submission was not answered
    with pytest.raises(SchedulerUnavailable):
        scheduler.jobs()
    with pytest.raises(SchedulerUnavailable):
        scheduler.jobs(["67.pbsserver", "89.pbsserver"])
    # and one that is known to be of the site is never left out
    pbs.answer("qstat", moved | {"-x -f -F json 89.pbsserver": RUNNING})
    assert set(scheduler.jobs()) == {"67.pbsserver", "89.pbsserver"}
    pbs.answer("qstat", moved)
    with pytest.raises(SchedulerUnavailable):
        scheduler.jobs(["67.pbsserver"])


def test_trap_without_history_the_answer_is_empty_and_the_status_0(
    pbs: StandIns, scheduler: Scheduler
) -> None:
    pbs.answer(
        "qstat", {"-x -f -F json 67.pbsserver": NO_HISTORY, "-f -F json 67.pbsserver": RUNNING}
    )
    assert scheduler.jobs(["67.pbsserver"])["67.pbsserver"].state is JobState.RUNNING
    pbs.answer(
        "qstat",
        {"-x -f -F json 67.pbsserver": NO_HISTORY, "-f -F json 67.pbsserver": "qstat-unknown"},
    )
    assert scheduler.jobs(["67.pbsserver"]) == {}


@pytest.mark.parametrize(
    "answer",
    [
        sample("err-serverdown-qstat"),
        sample("err-qstat-server-unknown"),
        sample("qstat-finished-without-x"),
        sample("qstat-badid"),
        NO_HISTORY,
        Done(0, "", ""),
        Done(0, sample("qstat-f-json-all").out, ""),
        Done(0, RUNNING.out[:-9], ""),
        changed("qstat-f-json-running", lambda told: told.update(Job_Name=OURS, job_state="?")),
    ],
)
def test_trap_an_answer_that_is_not_whole_tells_nothing(
    pbs: StandIns, scheduler: Scheduler, answer: Done
) -> None:
    pbs.answer("qstat", {"*": answer})
    with pytest.raises(SchedulerUnavailable):
        scheduler.jobs(["67.pbsserver"])


def test_a_listing_that_failed_tells_nothing(pbs: StandIns, scheduler: Scheduler) -> None:
    down = Done(162, "", "Connection refused\nqselect: cannot connect to server pbsserver\n")
    pbs.answer("qselect", {"*": down})
    with pytest.raises(SchedulerUnavailable, match="cannot connect"):
        scheduler.jobs()


def test_another_job_whose_json_is_not_valid_does_no_harm(
    pbs: StandIns, scheduler: Scheduler
) -> None:
    broken = sample("qstat-f-json-weird").out.replace('"{k:1}"', '"{"k":1}"')
    pbs.answer("qselect", {"*": Done(0, "67.pbsserver\n89.pbsserver\n", "")})
    pbs.answer("qstat", {"-x -f -F json 67.pbsserver": RUNNING, "*": Done(0, broken, "")})
    assert list(scheduler.jobs()) == ["67.pbsserver"]


@pytest.mark.parametrize(
    "name", ["qdel-running", "qdel-queued", "qdel-twice", "qdel-finished", "qdel-unknown"]
)
def test_trap_cancelling_what_has_ended_is_harmless(
    pbs: StandIns, scheduler: Scheduler, name: str
) -> None:
    pbs.answer("qdel", {"77.pbsserver": name})
    scheduler.cancel("77.pbsserver")
    assert pbs.said("qdel") == [["77.pbsserver"]]


def test_cancelling_can_fail(pbs: StandIns, scheduler: Scheduler) -> None:
    pbs.answer("qdel", {"94.pbsserver": "err-serverdown-qdel", "95": "qdel-malformed"})
    with pytest.raises(SchedulerUnavailable, match="Couldn't connect to cluster"):
        scheduler.cancel("94.pbsserver")
    with pytest.raises(SchedulerError, match="illegally formed job identifier"):
        scheduler.cancel("95")
    with pytest.raises(SchedulerError, match="'--all' is not the id of a PBS job"):
        scheduler.cancel("--all")


def inside(tmp_path: Path, hosts: str, **more: str) -> dict[str, str]:
    """The environment of a job as PBS makes it."""
    path = tmp_path / "nodefile"
    path.write_text(hosts)
    return {
        "PBS_JOBID": "67.pbsserver",
        "PBS_NODEFILE": str(path),
        "NCPUS": "1",
        "OMP_NUM_THREADS": "1",
        **more,
    }


def test_inside_a_job_nodes_and_end_are_pbs_own(
    pbs: StandIns, scheduler: Scheduler, tmp_path: Path
) -> None:
    started = int(time.time()) - 40

    def start(told: dict[str, Any]) -> None:
        told["stime"] = time.strftime("%a %b %e %H:%M:%S %Y", time.gmtime(started))

    pbs.answer("qstat", {"-x -f -F json 67.pbsserver": changed("qstat-f-json-running", start)})
    # the trap of the node file: each host twice; and with their domain, as many sites have it
    environment = inside(
        tmp_path, "pbs4.site.org\npbs4.site.org\npbs5\npbs5\n", BALSAM_JOB_QUEUE="workq"
    )
    job = scheduler.inside(environment)
    # cores and memory of the job, GPUs of site.toml, for PBS told none
    assert job.nodes == (
        NodeCapacity("pbs4.site.org", (0, 1), (0, 1), 100 << 20),
        NodeCapacity("pbs5", (0, 1), (0, 1), 100 << 20),
    )
    assert (job.end_time, job.native_id, job.virtual) == (started + 3600, "67.pbsserver", False)


@pytest.mark.parametrize("answer", ["err-serverdown-qstat", "qstat-unknown"])
def test_inside_a_job_the_script_and_site_toml_serve_when_pbs_does_not_answer(
    pbs: StandIns, scheduler: Scheduler, tmp_path: Path, answer: str
) -> None:
    pbs.answer("qstat", {"*": answer})
    told = {"BALSAM_JOB_END": "1795363283", "BALSAM_JOB_QUEUE": "workq"}
    job = scheduler.inside(inside(tmp_path, "pbs4\npbs5\n", **told))
    assert [node.name for node in job.nodes] == ["pbs4", "pbs5"]
    assert {(node.cores, node.gpus, node.memory) for node in job.nodes} == {
        ((0, 1, 2, 3), (0, 1), 7)  # and not NCPUS, which tells of threads of the first node
    }
    assert job.end_time == 1795363283
    with pytest.raises(SchedulerUnavailable):
        scheduler.inside(inside(tmp_path, "pbs4\n", BALSAM_JOB_QUEUE="workq"))


def test_outside_of_a_job(scheduler: Scheduler) -> None:
    with pytest.raises(SchedulerError, match="not inside a job of PBS"):
        scheduler.inside({"PBS_JOBID": "1.x"})
    with pytest.raises(SchedulerUnavailable, match="PBS_NODEFILE=/nowhere: No such file"):
        scheduler.inside({"PBS_JOBID": "1.x", "PBS_NODEFILE": "/nowhere"})


def test_nodes_that_are_down(pbs: StandIns, scheduler: Scheduler) -> None:
    down = sample("pbsnodes-json-down").out
    long_down = json.loads(down)
    long_down["timestamp"] = 1795363366 + Settings().over_after
    pbs.answer(
        "pbsnodes",
        {
            "-F json pbs6": Done(0, down.replace("pbs7", "pbs6"), ""),
            "-F json pbs7": Done(0, json.dumps(long_down), ""),
            "-F json pbs8": "pbsnodes-one-offline-json",
            "-F json nope": "pbsnodes-unknown",
            "-F json pbs7.site.org": "pbsnodes-unknown",
        },
    )
    names = ["pbs6", "pbs7", "pbs8", "nope", "pbs7.site.org"]
    assert scheduler.down_nodes(names) == {"pbs7", "pbs7.site.org"}
    pbs.answer("pbsnodes", {"*": "err-serverdown-pbsnodes"})
    with pytest.raises(SchedulerUnavailable):
        scheduler.down_nodes(["pbs7"])


def test_queues_and_idle_nodes(pbs: StandIns, scheduler: Scheduler) -> None:
    for name in ("qstat-Qf-json", "qstat-Bf-json"):
        assert command_of(name) in ("-Q -f -F json", "-B -f -F json")
    pbs.answer("qstat", {"-Q -f -F json": "qstat-Qf-json", "-B -f -F json": "qstat-Bf-json"})
    pbs.answer("pbsnodes", {"-a -F json": "pbsnodes-a-json-busy"})
    assert [(queue.name, queue.max_nodes) for queue in scheduler.queues()] == [
        ("workq", 8),
        ("short", 8),
    ]
    assert scheduler.idle() == (IdleWindow("workq", 3),)
    pbs.answer("qstat", {"-B -f -F json": "qstat-Bf-json", "*": "err-serverdown-qstatQ"})
    with pytest.raises(SchedulerUnavailable, match="Connection refused"):
        scheduler.queues()
