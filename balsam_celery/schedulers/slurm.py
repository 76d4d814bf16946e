"""The Slurm adapter: ``sbatch``, ``squeue``, ``scancel``, ``sinfo`` and ``scontrol``.

``sacct`` is not used: many sites have no accounting database. So a job is known for as long as the
controller keeps its record, some minutes after its end (``MinJobAge``).
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from balsam_celery.errors import SchedulerError, SchedulerUnavailable, SettingsError
from balsam_celery.schedulers.base import (
    JOB_END,
    Capabilities,
    IdleWindow,
    Job,
    JobNodes,
    JobRequest,
    JobState,
    QueueInfo,
    Scheduler,
    job_prefix,
)
from balsam_celery.schedulers.commands import Commands
from balsam_celery.schedulers.slurm_inside import job_id, nodes_inside
from balsam_celery.schedulers.slurm_jobs import FORMAT, parse_exit, parse_jobs, parse_time
from balsam_celery.schedulers.slurm_nodes import (
    PLAN_FORMAT,
    SHAPE_FORMAT,
    STATE_FORMAT,
    idle_windows,
    parse_down,
    parse_partitions,
    parse_plans,
    parse_shapes,
)
from balsam_celery.schedulers.slurm_refusals import is_refusal
from balsam_celery.settings import Settings

#: Variables that would change what the commands do: SQUEUE_PARTITION hides jobs, SBATCH_JOB_NAME
#: and SBATCH_REQUEUE win over the script, SLURM_… of a job around the site get into the new one.
_HIDDEN_PREFIXES = ("SBATCH_", "SQUEUE_", "SINFO_", "SCANCEL_", "SLURM")
_KEPT = (
    *("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"),  # find the controller
    *("SBATCH_ACCOUNT", "SBATCH_QOS", "SBATCH_WCKEY"),  # who pays
)
#: Makes times seconds since the epoch: nobody's time zone matters.
_TIMES = {"SLURM_TIME_FORMAT": "%s"}
_ID = re.compile(r"[1-9]\d*", re.ASCII)
#: With ``--parsable``, alone or with the cluster; the other form is for commands that ignore it.
_SUBMITTED = re.compile(r"^(?:Submitted batch job )?([1-9]\d*)(?:;\S+)?$", re.ASCII | re.MULTILINE)
_CLUSTER_OPTION = re.compile(r"--clusters?\b|-M")
#: What ``scancel`` may say of a job that is gone; of most it says nothing.
_GONE = ("Invalid job id specified", "Job/step already completing or completed")
_DENIED = "Access/permission denied"
#: Of a controller that does not answer: ``slurm_errtab`` in ``src/common/slurm_errno.c``.
_SILENT = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Zero Bytes were transmitted",
    "Communication connection failure",
    "Message receive failure",
    "Slurm backup controller in standby mode",
    # until the accounting database has noted the job's last change of size; without one for ever
    "the DB index is being set, try again in a bit",
    "Unexpected message received",
)
#: Of nodes that are no longer configured; of the others ``scontrol`` tells beside it.
_NO_NODE = re.compile(r"^Node \S+ not found$", re.MULTILINE)


def submit_argv(request: JobRequest) -> list[str]:
    """``sbatch``: all options are in the script."""
    return ["sbatch", "--parsable", str(request.script)]


def jobs_argv(uid: int) -> list[str]:
    """``squeue`` of all jobs of a user, ended ones too, also in partitions that are hidden."""
    user = f"--user={uid}"
    return ["squeue", "--noheader", "--all", "--states=all", user, f"--format={FORMAT}"]


def cancel_argv(native_id: str) -> list[str]:
    """``scancel``."""
    return ["scancel", native_id]


def release_argv(native_id: str, kept: Sequence[str]) -> list[str]:
    """``scontrol``: a running job keeps these of its nodes alone (scontrol(1), ``NodeList``)."""
    return ["scontrol", "update", f"JobId={native_id}", f"NodeList={','.join(kept)}"]


def parse_submitted(text: str) -> str | None:
    """The job's id in the output of ``sbatch``; a site's wrapper may print more around it."""
    found = set(_SUBMITTED.findall(text))
    return found.pop() if len(found) == 1 else None


class SlurmScheduler(Scheduler):
    """Slurm, by its commands.

    Args:
        site: the site's id; its jobs are those whose names begin with ``balsam-<site>-``.
        command_timeout: seconds for one command.
        hidden: names of environment variables that jobs must not see.
    """

    capabilities = Capabilities(
        finds_by_name=True, tells_queues=True, tells_idle=True, releases_nodes=True
    )
    template = "slurm.sh.j2"

    def __init__(self, site: str, command_timeout: float, hidden: Collection[str] = ()) -> None:
        self._prefix = job_prefix(site)
        self._submits = Commands(
            command_timeout, hidden=hidden, hidden_prefixes=_HIDDEN_PREFIXES, kept=_KEPT
        )
        self._asks = Commands(
            command_timeout,
            hidden=hidden,
            hidden_prefixes=_HIDDEN_PREFIXES,
            kept=_KEPT,
            additions=_TIMES,
        )
        self._ends: dict[str, str] = {}  # of jobs that failed and are still told: how they ended

    def submit_command(self, request: JobRequest) -> list[str]:
        """See :func:`submit_argv`."""
        return submit_argv(request)

    def submit(self, request: JobRequest) -> str:
        """Submit a job and return its id.

        Raises:
            SchedulerError: refused; Slurm has no such job.
            SchedulerUnavailable: no answer, or one that leaves open whether the job was taken.
        """
        done = self._submits.run(submit_argv(request))
        if done.status:
            refused = SchedulerError if is_refusal(done) else SchedulerUnavailable
            raise refused(f"sbatch: {done.message}")
        native_id = parse_submitted(done.out)
        if native_id is None:
            raise SchedulerUnavailable(f"sbatch told no job id: {done.message}")
        return native_id

    def jobs(self, ids: Collection[str] = ()) -> dict[str, Job]:
        """All jobs of the site that the controller has a record of."""
        text = self._ask(jobs_argv(os.geteuid()))
        try:
            jobs = parse_jobs(text, self._prefix, ids)
        except ValueError as error:
            raise SchedulerUnavailable(f"squeue: {error}") from None
        self._ends = {id: how for id, how in self._ends.items() if id in jobs}
        return {id: self._explained(job) for id, job in jobs.items()}

    def _explained(self, job: Job) -> Job:
        """With the exit status, which ``squeue`` does not tell."""
        if job.state is not JobState.ENDED or not job.reason.startswith("failed"):
            return job
        how = self._ends.get(job.native_id)
        if how is None:
            done = self._asks.run(["scontrol", "--oneliner", "show", "job", job.native_id])
            if done.status:
                return job  # it has ended, whether or not more is told
            how = self._ends[job.native_id] = parse_exit(done.out) or job.reason
        return replace(job, reason=how)

    def cancel(self, native_id: str) -> None:
        """Ask for a job's end.

        Raises:
            SchedulerError: not an id, or not this user's job.
        """
        if _ID.fullmatch(native_id) is None:
            raise SchedulerError(f"{native_id!r} is not the id of a job of Slurm")
        done = self._asks.run(cancel_argv(native_id))
        if not done.status or any(words in done.err for words in _GONE):
            return
        refused = SchedulerError if _DENIED in done.err else SchedulerUnavailable
        raise refused(f"scancel: {done.message}")

    def release(self, native_id: str, nodes: Collection[str], kept: Sequence[str]) -> None:
        """Let a running job go on with ``kept`` alone.

        Raises:
            SchedulerError: refused, as where ``SchedulerParameters`` has ``disable_job_shrink``.
            SchedulerUnavailable: the controller did not answer.
        """
        # it leaves scripts in its directory, for shells whose SLURM_ variables are to follow
        with tempfile.TemporaryDirectory(prefix="balsam-scontrol-") as directory:
            done = self._asks.run(release_argv(native_id, kept), directory)
        if done.status:
            silent = any(words in done.message for words in _SILENT)
            raised = SchedulerUnavailable if silent else SchedulerError
            raise raised(f"scontrol: {done.message}")

    def inside(self, environment: Mapping[str, str]) -> JobNodes:
        """The nodes of the job whose environment this is.

        Where neither the environment (before Slurm 23.02) nor ``squeue`` tells the job's end, the
        batch script's :data:`JOB_END` serves: a controller that is away when the job starts must
        not cost the job.

        Raises:
            SchedulerError: not the environment of a job of Slurm.
            SchedulerUnavailable: neither Slurm nor the environment says when the job ends.
        """
        native_id = job_id(environment)
        nodes = nodes_inside(environment)
        end = parse_time(environment.get("SLURM_JOB_END_TIME", ""))  # since Slurm 23.02
        if end is None:
            try:
                end = self._end(native_id)
            except SchedulerUnavailable:
                end = parse_time(environment.get(JOB_END, ""))
                if end is None:
                    raise
        return JobNodes(nodes, end, native_id)

    def down_nodes(self, nodes: Collection[str]) -> frozenset[str]:
        """Those of ``nodes`` that Slurm has set down."""
        if not nodes:
            return frozenset()
        done = self._asks.run(["scontrol", "--oneliner", "show", "node", ",".join(sorted(nodes))])
        if done.status and _NO_NODE.search(done.out + done.err) is None:
            raise SchedulerUnavailable(f"scontrol: {done.message}")
        return parse_down(done.out) & frozenset(nodes)

    def queues(self) -> tuple[QueueInfo, ...]:
        """The partitions that this user sees, the default first."""
        partitions = self._ask(["scontrol", "--oneliner", "show", "partition"])
        shapes = self._ask(["sinfo", "--noheader", "--exact", f"--format={SHAPE_FORMAT}"])
        try:
            found = parse_partitions(partitions, parse_shapes(shapes), is_root=os.geteuid() == 0)
        except ValueError as error:
            raise SchedulerUnavailable(f"partitions of Slurm: {error}") from None
        return tuple(found)

    def idle(self) -> tuple[IdleWindow, ...]:
        """Idle nodes by partition, and until when they are planned for no other job."""
        states = self._ask(["sinfo", "--noheader", f"--format={STATE_FORMAT}"])
        waiting = ["--noheader", "--all", "--states=PENDING", f"--format={PLAN_FORMAT}"]
        plans = self._ask(["squeue", *waiting])
        try:
            return idle_windows(states, parse_plans(plans), time.time())
        except ValueError as error:
            raise SchedulerUnavailable(f"nodes of Slurm: {error}") from None

    def _end(self, native_id: str) -> float:
        options = ["--noheader", "--all", f"--jobs={native_id}", "--format=%e"]
        end = parse_time(self._ask(["squeue", *options]).strip())
        if end is None:
            raise SchedulerUnavailable(f"Slurm does not say when job {native_id} ends")
        return end

    def _ask(self, argv: list[str]) -> str:
        done = self._asks.run(argv)
        if done.status:
            raise SchedulerUnavailable(f"{argv[0]}: {done.message}")
        return done.out


def make_slurm(settings: Settings, local_dir: Path) -> SlurmScheduler:
    """The Slurm adapter of a site.

    Raises:
        SettingsError: a directive sends jobs to another cluster than the commands ask.
    """
    directives = [*settings.scheduler.directives]
    for queue in settings.queues.values():
        directives += queue.directives
    for directive in directives:
        if _CLUSTER_OPTION.match(directive):
            raise SettingsError(
                f"the directive {directive!r} would send jobs where nobody looks for them: "
                "set SLURM_CLUSTERS in the environment of `balsam up` instead"
            )
    hidden = [name for name in (settings.database.url_env, settings.redis.url_env) if name]
    return SlurmScheduler(settings.site.id, settings.scheduler.command_timeout, hidden)
