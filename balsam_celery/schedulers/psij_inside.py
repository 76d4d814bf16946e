"""Inside a job of one of PSI/J's schedulers: its id and its hosts, by the environment.

Sources: IBM Spectrum LSF 10.1 ("Environment variables set for job execution"); flux-core
(flux-environment(7), flux-getattr(1), broker attributes); Cobalt's qsub(1); OpenPBS and Slurm as
their own adapters. Of these only PSI/J's local executor could be run where this was written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from balsam_celery import procs
from balsam_celery.errors import SchedulerError, SchedulerUnavailable
from balsam_celery.schedulers.base import JOB_NODES
from balsam_celery.schedulers.commands import Commands
from balsam_celery.schedulers.hostlist import expand

Environment = Mapping[str, str]

#: Variable with the pid of the process that PSI/J's local executor started.
LOCAL_PID = "BALSAM_PSIJ_PID"


def job_of(
    executor: str, environment: Environment, commands: Commands
) -> tuple[str, tuple[str, ...]]:
    """The id of the job, and its hosts in order, the one where the script runs first.

    Those of the local executor are virtual ones of this machine.

    Raises:
        SchedulerError: not inside a job of that executor, or one that is not known here.
        SchedulerUnavailable: its hosts cannot be read.
    """
    if executor == "flux":
        return _flux(commands)
    if executor == "local":
        count = int(environment.get(JOB_NODES) or 1)
        pid = environment.get(LOCAL_PID, "")
        if not pid.isdecimal():
            raise SchedulerError(
                f"not inside a job of PSI/J's local executor: {LOCAL_PID} is not set"
            )
        return local_id(int(pid)), tuple(f"vnode{number}" for number in range(count))
    if executor not in _BATCH:
        raise SchedulerError(f"scheduler.executor is {executor!r}: its jobs are not known here")
    name, hosts = _BATCH[executor]
    if not environment.get(name):
        raise SchedulerError(f"not inside a job of {executor!r}: {name} is not set")
    found = hosts(environment)
    if not found:
        raise SchedulerUnavailable(f"job {environment[name]}: its hosts are not told")
    return environment[name], found


def _file(variable: str) -> Callable[[Environment], tuple[str, ...]]:
    """Hosts in the file that a variable names, a line each, which may come again."""

    def read(environment: Environment) -> tuple[str, ...]:
        path = environment.get(variable, "")
        try:
            lines = Path(path).read_text(encoding="utf-8").split()
        except OSError as error:
            raise SchedulerUnavailable(f"{variable}={path}: {error.strerror}") from None
        return tuple(dict.fromkeys(lines))

    return read


def lsf_hosts(environment: Environment) -> tuple[str, ...]:
    """Hosts in ``LSB_MCPU_HOSTS`` (``batch1 1 n2 42 n3 42``: host and slots).

    On machines with launch nodes (CORAL: Summit, Lassen) the script runs on one of these, which has
    one slot where the others have many; no work is put there.
    """
    words = environment.get("LSB_MCPU_HOSTS", "").split()
    slots = dict(zip(words[::2], words[1::2], strict=False))
    hosts = tuple(slots)
    if len(hosts) > 1 and slots[hosts[0]] == "1" and all(slots[host] != "1" for host in hosts[1:]):
        return hosts[1:]
    return hosts


def _slurm_hosts(environment: Environment) -> tuple[str, ...]:
    try:
        return expand(environment.get("SLURM_JOB_NODELIST", ""))
    except ValueError as error:
        raise SchedulerUnavailable(f"SLURM_JOB_NODELIST: {error}") from None


#: Executor → variable with the job's id, and how its hosts are told.
_BATCH: dict[str, tuple[str, Callable[[Environment], tuple[str, ...]]]] = {
    "lsf": ("LSB_JOBID", lsf_hosts),
    "cobalt": ("COBALT_JOBID", _file("COBALT_NODEFILE")),
    "pbs": ("PBS_JOBID", _file("PBS_NODEFILE")),
    "pbs_classic": ("PBS_JOBID", _file("PBS_NODEFILE")),
    "slurm": ("SLURM_JOB_ID", _slurm_hosts),
}


def _flux(commands: Commands) -> tuple[str, tuple[str, ...]]:
    """The instance of Flux that the job is: its id in the instance around it, and its hosts."""
    answers = []
    for attribute in ("jobid", "hostlist"):
        done = commands.run(["flux", "getattr", attribute])
        if done.status != 0 or not done.out.strip():
            raise SchedulerUnavailable(f"flux getattr {attribute}: {done.message}")
        answers.append(done.out.strip())
    try:
        return answers[0], tuple(dict.fromkeys(expand(answers[1])))
    except ValueError as error:
        raise SchedulerUnavailable(f"flux getattr hostlist: {error}") from None


def local_id(pid: int) -> str:
    """``PID.START``: a local job is known by the process that PSI/J started for it.

    PSI/J's own id is the pid alone, which another process bears one day.
    """
    found = procs.identity(pid)
    return f"{pid}.{found.start_time if found else 0}"


def local_pid(native_id: str) -> int | None:
    """The pid of a local job that still runs."""
    pid, _, start = native_id.partition(".")
    found = procs.identity(int(pid)) if pid.isdecimal() else None
    return found.pid if found is not None and str(found.start_time) == start else None
