"""One call of the PSI/J library, in a process of its own: ``python -m … VERB '{"executor": …}'``.

PSI/J starts threads that never end, takes SIGCHLD when it is imported, and runs commands without a
time-out; and its polling thread takes a scheduler that does not answer for the failure of its jobs,
and a job that is missing from an answer for one that completed. So a process makes one call and is
gone, its caller bounds its time, and of batch schedulers the library's builders and parsers of
commands are used instead of its polling.

Verbs: ``submit``, ``states``, ``cancel``. The last line of output is JSON: ``{"id": …}``,
``{"states": {ID: [STATE, MESSAGE]}}`` without ids that the scheduler says it does not know,
``{}``, ``{"refused": REASON}``, or ``{"unknown": REASON}``: a command failed, and whether the
scheduler did what it was asked for is not known. So it is after any other end.

Source: psij-python 0.9.11. Of its executors only ``local`` could be run where this was written;
``lsf``, ``flux`` and ``cobalt`` follow its code.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import psij
from psij.executors.batch.batch_scheduler_executor import (
    UNKNOWN_ERROR,
    BatchSchedulerExecutor,
    BatchSchedulerExecutorConfig,
)

from balsam_celery.schedulers.psij_inside import LOCAL_PID, local_id, local_pid
from balsam_celery.schedulers.psij_refusals import refuses_end, refuses_job

Call = Mapping[str, Any]

#: Seconds that events of a job, which come on other threads, are waited for.
SETTLE = 1.0
#: Seconds for processes of the local executor to be gone once they were killed.
KILL_PATIENCE = 5.0

#: How the commands say that they do not know a job: bjobs, squeue, qstat.
_UNKNOWN = ("is not found", "Invalid job id specified", "Unknown Job Id")
#: How bkill and qdel say that a job has ended.
_OVER = ("already finished", "has finished")


def main(argv: list[str]) -> int:
    """Make one call; prints its answer."""
    verbs: dict[str, Callable[[psij.JobExecutor, Call], dict[str, Any]]] = {
        "submit": submit,
        "states": states,
        "cancel": cancel,
    }
    call: Call = json.loads(argv[1])
    config = BatchSchedulerExecutorConfig(
        work_directory=Path(call["work_directory"]),
        initial_queue_polling_delay=86400,
        queue_polling_interval=86400,
    )
    try:
        executor = psij.JobExecutor.get_instance(call["executor"], config=config)
        answer = verbs[argv[0]](executor, call)
    except psij.InvalidJobException as error:
        answer = {"refused": _line(error)}
    except psij.SubmitException as error:
        # so PSI/J calls every command that failed, also one that did not reach the scheduler
        refused = (
            refuses_end(str(error))
            if argv[0] == "cancel"
            else refuses_job(call["executor"], str(error))
        )
        answer = {"refused" if refused else "unknown": _line(error)}
    print(json.dumps(answer))
    return 0


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def submit(executor: psij.JobExecutor, call: Call) -> dict[str, Any]:
    """Submit a batch script."""
    job = psij.Job(job_spec(call))
    executor.submit(job)
    return {
        "id": local_id(int(str(job.native_id)))
        if call["executor"] == "local"
        else str(job.native_id)
    }


def job_spec(call: Call) -> psij.JobSpec:
    """PSI/J's words for a request: whole nodes, the script started once, on the first of them."""
    script, flux = call["script"], call["executor"] == "flux"
    command = ["flux", "start", script] if flux else [script]
    if call["executor"] == "local":
        # the script's parent is the process by which PSI/J knows the job
        command = ["/bin/sh", "-c", f'export {LOCAL_PID}=$PPID; exec "$0"', script]
    resources = None
    if call["executor"] != "local":
        resources = psij.ResourceSpecV1(
            node_count=call["nodes"],
            # of Flux a job with one process on each node is asked, in which they form an instance
            # of Flux of its own, whose first node runs the script
            process_count=call["nodes"] if flux else None,
            processes_per_node=None if flux else 1,
            cpu_cores_per_process=call["cores"] or None,
            gpu_cores_per_process=call["gpus"] or None,
            exclusive_node_use=not flux,
        )
    return psij.JobSpec(
        name=call["name"],
        executable=command[0],
        arguments=command[1:],
        directory=Path(call["directory"]),
        stdout_path=Path(call["directory"]) / "job.out",
        stderr_path=Path(call["directory"]) / "job.err",
        resources=resources,
        attributes=psij.JobAttributes(
            duration=timedelta(seconds=call["wall_time"]),
            queue_name=call["queue"],
            account=call["account"] or None,
            reservation_id=call["reservation"] or None,
            custom_attributes=dict(call["custom"]) or None,
        ),
        launcher="single",
    )


def states(executor: psij.JobExecutor, call: Call) -> dict[str, Any]:
    """States of the jobs in ``ids``, as PSI/J names them."""
    found = {}
    for native_id in call["ids"]:
        if call["executor"] == "local":
            status = (
                psij.JobStatus(psij.JobState.ACTIVE) if local_pid(native_id) is not None else None
            )
        elif isinstance(executor, BatchSchedulerExecutor):
            status = _batch_status(executor, call["executor"], native_id)
        else:
            job = _attach(executor, native_id)
            job.wait(timedelta(seconds=SETTLE))
            status = job.status
        if status is not None:
            found[native_id] = [status.state.name, status.message or ""]
    return {"states": found}


def _batch_status(
    executor: BatchSchedulerExecutor, name: str, native_id: str
) -> psij.JobStatus | None:
    # one at a time: some schedulers answer several ids with the first alone, or not at all when
    # one of them is unknown
    done = subprocess.run(
        executor.get_status_command([native_id]), capture_output=True, text=True, check=False
    )
    out = done.stdout if done.returncode == 0 else done.stdout + done.stderr or UNKNOWN_ERROR
    if done.returncode != 0 and any(words in out for words in _UNKNOWN):
        return None
    if done.returncode == 0 and name == "lsf":
        out = complete_lsf(out)
    status: psij.JobStatus | None = executor.parse_status_output(done.returncode, out).get(
        native_id
    )
    if status is not None and name == "cobalt" and status.state is psij.JobState.FAILED:
        # PSI/J's word for "killing"; Cobalt tells nothing of jobs that have ended
        return psij.JobStatus(psij.JobState.ACTIVE, message="being killed")
    return status


def complete_lsf(out: str) -> str:
    """The answer of ``bjobs -json`` with the key that PSI/J 0.9.11 reads of jobs with a reason.

    It looks whether ``EXIT_REASON``, ``KILL_REASON`` or ``SUSPEND_REASON`` is there, and then reads
    ``reason``, which LSF does not have.
    """
    plain = json.loads(out)
    for record in plain["RECORDS"]:
        names = ("EXIT_REASON", "KILL_REASON", "SUSPEND_REASON")
        record["reason"] = next((record[name] for name in names if record.get(name)), "")
    return json.dumps(plain)


def cancel(executor: psij.JobExecutor, call: Call) -> dict[str, Any]:
    """Ask for the end of the job ``id``."""
    native_id = call["id"]
    if isinstance(executor, BatchSchedulerExecutor):
        try:
            executor.cancel(_attach(executor, native_id))
        except psij.SubmitException as error:
            if not any(words in str(error) for words in (*_UNKNOWN, *_OVER)):
                raise
        return {}
    if call["executor"] != "local":
        job = _attach(executor, native_id)
        executor.cancel(job)
        job.wait(timedelta(seconds=SETTLE))
        return {}
    pid = local_pid(native_id)
    if pid is None:
        return {}
    executor.cancel(_attach(executor, str(pid)))
    pause = threading.Event()
    for _ in range(int(KILL_PATIENCE / 0.05)):  # a thread of PSI/J kills; it ends with this process
        if local_pid(native_id) is None:
            break
        pause.wait(0.05)
    return {}


def _attach(executor: psij.JobExecutor, native_id: str) -> psij.Job:
    job = psij.Job()
    executor.attach(job, native_id)
    return job


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
