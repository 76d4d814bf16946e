"""LSF, Flux, Cobalt and others through the PSI/J library: the adapter.

``[scheduler] executor`` names PSI/J's executor. PSI/J knows jobs by id alone, so a job whose answer
was lost is known again by its pilot's claim. Each call of the library is a process of its own:
:mod:`~balsam_celery.schedulers.psij_call` says why. The batch script's ``#`` lines are PSI/J's; it
writes them itself from the request and from ``directives``, and starts the site's script.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from balsam_celery.errors import SchedulerError, SchedulerUnavailable, SettingsError
from balsam_celery.resources import NodeCapacity
from balsam_celery.schedulers import psij_inside
from balsam_celery.schedulers.base import (
    JOB_END,
    JOB_QUEUE,
    Capabilities,
    Job,
    JobNodes,
    JobRequest,
    JobState,
    Scheduler,
)
from balsam_celery.schedulers.commands import Commands
from balsam_celery.settings import QueueSettings, Settings

#: Executors of PSI/J 0.9 whose jobs' hosts :mod:`~balsam_celery.schedulers.psij_inside` finds.
EXECUTORS = ("lsf", "flux", "cobalt", "slurm", "pbs", "pbs_classic", "local")

#: PSI/J's state → ours (psij/job_state.py). Whether a job ended well is told by its reason.
STATES = {
    "NEW": JobState.QUEUED,
    "QUEUED": JobState.QUEUED,
    "ACTIVE": JobState.RUNNING,
    "COMPLETED": JobState.ENDED,
    "FAILED": JobState.ENDED,
    "CANCELED": JobState.ENDED,
}
_REASONS = {"FAILED": "it failed", "CANCELED": "cancelled"}


class PsijScheduler(Scheduler):
    """Jobs of one of PSI/J's executors.

    Args:
        executor: its name in PSI/J.
        settings: those of the site.
        directory: for files of PSI/J that no job reads.
    """

    capabilities = Capabilities(finds_by_name=False, end_is_proof=False)
    template = "psij.sh.j2"

    def __init__(self, executor: str, settings: Settings, directory: Path) -> None:
        hidden = [name for name in (settings.database.url_env, settings.redis.url_env) if name]
        self._executor = executor
        self._settings = settings
        self._directory = directory
        self._commands = Commands(settings.scheduler.command_timeout, hidden=hidden)

    def submit(self, request: JobRequest) -> str:
        """Submit a script. PSI/J's own files lie beside it, where compute nodes read them."""
        queue = self._settings.queues.get(request.queue, QueueSettings())
        directives = (*self._settings.scheduler.directives, *queue.directives)
        answer = self._call(
            "submit",
            work_directory=str(request.directory.absolute() / "psij"),
            name=request.name,
            script=str(request.script.absolute()),
            directory=str(request.directory.absolute()),
            nodes=request.nodes,
            wall_time=request.wall_time,
            queue=request.queue,
            cores=queue.cores_per_node,
            gpus=queue.gpus_per_node,
            **attributes(self._executor, directives, queue.account),
        )
        native_id = answer.get("id")
        if not isinstance(native_id, str) or not native_id:
            raise SchedulerUnavailable("PSI/J did not answer with a job's id")
        return native_id

    def jobs(self, ids: Collection[str] = ()) -> dict[str, Job]:
        """The jobs of ``ids`` that the scheduler still knows."""
        if not ids:
            return {}
        states = self._call("states", ids=list(ids)).get("states")
        if not isinstance(states, dict):
            raise SchedulerUnavailable("PSI/J did not answer with states")
        return {native_id: make_job(native_id, *told) for native_id, told in states.items()}

    def cancel(self, native_id: str) -> None:
        """Ask for a job's end."""
        if not native_id or native_id.startswith("-"):
            raise SchedulerError(f"{native_id!r} is not the id of a job")
        self._call("cancel", id=native_id)

    def inside(self, environment: Mapping[str, str]) -> JobNodes:
        """Hosts by the scheduler's environment; their cores by ``[queues]``, the end by the script.

        Raises:
            SchedulerError: not inside a job, or the script's template does not tell what it must.
            SchedulerUnavailable: its hosts cannot be read.
        """
        end, name = environment.get(JOB_END, ""), environment.get(JOB_QUEUE, "")
        queue = self._settings.queues.get(name)
        if not end.isdecimal() or queue is None:
            raise SchedulerError(
                f"not inside a job of PSI/J: {JOB_END} is {end!r} and {JOB_QUEUE} is {name!r}; "
                "the template of the batch script must export both, as psij.sh.j2 does"
            )
        native_id, hosts = psij_inside.job_of(self._executor, environment, self._commands)
        nodes = tuple(
            NodeCapacity(
                name=host,
                cores=tuple(range(max(1, queue.cores_per_node))),
                gpus=tuple(range(queue.gpus_per_node)),
                memory=queue.memory_per_node,
            )
            for host in hosts
        )
        return JobNodes(nodes, float(end), native_id, virtual=self._executor == "local")

    def _call(self, verb: str, **call: Any) -> dict[str, Any]:
        """Make a call of the library.

        Raises:
            SchedulerError: it says that the scheduler refused.
            SchedulerUnavailable: it did not come to an answer, or a command failed in a way that
                leaves open what was done.
        """
        plain = {"executor": self._executor, "work_directory": str(self._directory), **call}
        done = self._commands.run(call_argv(verb, plain))
        try:
            answer = json.loads(done.out.splitlines()[-1]) if done.status == 0 else None
        except (ValueError, IndexError):
            answer = None
        if not isinstance(answer, dict):
            last = done.err.strip().splitlines() or [done.message]
            raise SchedulerUnavailable(f"PSI/J ({self._executor}), {verb}: {last[-1]}")
        if "refused" in answer:
            raise SchedulerError(f"PSI/J ({self._executor}): {answer['refused']}")
        if "unknown" in answer:
            raise SchedulerUnavailable(f"PSI/J ({self._executor}), {verb}: {answer['unknown']}")
        return answer


def call_argv(verb: str, call: Mapping[str, Any]) -> list[str]:
    """The command of one call; it holds no secret."""
    return [
        sys.executable,
        "-P",
        "-m",
        "balsam_celery.schedulers.psij_call",
        verb,
        json.dumps(call),
    ]


def make_job(native_id: str, state: str, message: str) -> Job:
    """A job by PSI/J's state.

    Raises:
        SchedulerUnavailable: a state that PSI/J 0.9 does not have.
    """
    if state not in STATES:
        raise SchedulerUnavailable(f"job {native_id}: PSI/J's state {state!r} is not known")
    reason = " ".join(message.split()) or _REASONS.get(state, "")
    return Job(native_id=native_id, name="", state=STATES[state], reason=reason)


def attributes(executor: str, directives: Sequence[str], account: str = "") -> dict[str, Any]:
    """``directives`` as PSI/J takes them: ``account``, ``reservation`` and those of the scheduler.

    ``--account=abc`` is PSI/J's own and goes before ``account``, the queue's;
    ``-core_isolation=2`` becomes ``lsf.core_isolation``.
    """
    known = {"account": account, "reservation": ""}
    custom = {}
    for directive in directives:
        name, _, value = directive.lstrip("-").partition("=")
        if name in known:
            known[name] = value
        else:
            custom[f"{executor}.{name}"] = value
    return {**known, "custom": custom}


def make_psij(settings: Settings, local_dir: Path) -> PsijScheduler:
    """The adapter of a site whose scheduler is reached through PSI/J.

    Raises:
        SettingsError: the library is not installed, or no executor of it is named.
    """
    if importlib.util.find_spec("psij") is None:
        raise SettingsError(
            "scheduler.kind is 'psij', and PSI/J is not installed: "
            "pip install 'balsam_celery[psij]'"
        )
    executor = settings.scheduler.executor
    if executor not in EXECUTORS:
        raise SettingsError(
            f"scheduler.executor is {executor!r}: give one of {', '.join(EXECUTORS)}"
        )
    return PsijScheduler(executor, settings, local_dir / "psij")
