"""Reads Slurm's list of jobs. Pure.

States are those of ``job_state_string`` in Slurm's ``src/common/slurm_protocol_defs.c``, explained
in ``squeue(1)``, JOB STATE CODES; reasons those of ``src/common/job_state_reason.c``, explained in
JOB REASON CODES. Both were read in versions 22.05 and 26.05.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Collection

from balsam_celery.schedulers.base import Job, JobState
from balsam_celery.schedulers.hostlist import expand

_MARK = "balsam:"
#: For ``squeue --format``. The mark tells where a job begins: another job's name may have a line
#: break, and with several clusters their names are printed between. Only the last two fields can
#: contain a ``|``, and a name of ours has none.
FORMAT = f"{_MARK}%i|%T|%S|%e|%N|%j|%r"
_FIELDS = 7

_QUEUED, _RUNNING, _ENDED = JobState.QUEUED, JobState.RUNNING, JobState.ENDED

#: Whatever else a newer Slurm says counts as RUNNING: only what is known to be an end is one.
STATES = {
    "PENDING": _QUEUED,
    "CONFIGURING": _QUEUED,  # its nodes boot, or a prolog runs; the script has not started
    "REQUEUED": _QUEUED,  # COMPLETING is told first: nothing of its first life runs any more
    "REQUEUE_FED": _QUEUED,
    "REQUEUE_HOLD": _QUEUED,
    "RESV_DEL_HOLD": _QUEUED,
    "SPECIAL_EXIT": _QUEUED,  # requeued and held
    "RUNNING": _RUNNING,
    "SUSPENDED": _RUNNING,
    "STOPPED": _RUNNING,
    "SIGNALING": _RUNNING,
    "RESIZING": _RUNNING,
    "EXPEDITING": _RUNNING,
    "COMPLETING": _RUNNING,  # "some processes on some nodes may still be active"
    "STAGE_OUT": _RUNNING,
    "REVOKED": _RUNNING,  # another cluster of a federation started it
    "BOOT_FAIL": _ENDED,
    "CANCELLED": _ENDED,
    "COMPLETED": _ENDED,
    "DEADLINE": _ENDED,
    "FAILED": _ENDED,
    "NODE_FAIL": _ENDED,
    "OUT_OF_MEMORY": _ENDED,
    "PREEMPTED": _ENDED,
    "TIMEOUT": _ENDED,
}

_ENDS = {
    "BOOT_FAIL": "its nodes did not boot",
    "CANCELLED": "cancelled",
    "COMPLETED": "exit status 0",
    "DEADLINE": "its deadline had passed",
    "FAILED": "failed",
    "NODE_FAIL": "a node failed",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted",
    "TIMEOUT": "its wall time was over",
}

#: A job that waits for one of these waits for a change of itself or of the machine's configuration:
#: - PartitionNodeLimit, PartitionTimeLimit, PartitionConfig: ``job_limits_check`` in
#:   ``src/slurmctld/job_mgr.c``. (That too few nodes are up is said in other words.)
#: - BadConstraints: ``schedule`` in ``job_scheduler.c`` holds such a job for good.
#: - accounts and QOS that are not allowed, reservations that are gone, dependencies that never
#:   can be, more memory than any job may have.
#: Not among them: Resources, Priority, Dependency, Licenses, Reservation, ReqNodeNotAvail, Nodes
#: required for job are DOWN…, PartitionDown, PartitionInactive, JobHeldUser, JobHeldAdmin, QOSGrp…,
#: AssocGrp…, and limits of a user or account: these end by themselves or by somebody's act.
_IMPOSSIBLE = frozenset(
    {
        *("PartitionNodeLimit", "PartitionTimeLimit", "PartitionConfig", "BadConstraints"),
        *("InvalidAccount", "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed"),
        *("DependencyNeverSatisfied", "ReservationDeleted", "ReservationInvalid", "MaxMemPerLimit"),
    }
)
#: Limits of one job alone (``src/slurmctld/acct_policy.c``), such as QOSMaxWallDurationPerJobLimit,
#: AssocMaxNodePerJobLimit, QOSMaxGRESPerNode, QOSMinCpuNotSatisfied.
_LIMIT_OF_A_JOB = re.compile(r"(?:QOS|Assoc)Max\w+Per(?:Job|Node)(?:Limit)?|QOSMin\w+")

_EXIT = re.compile(r"\bExitCode=(\d+):(\d+)")


def parse_jobs(text: str, prefix: str, ids: Collection[str] = ()) -> dict[str, Job]:
    """The jobs in the output of ``squeue --format FORMAT``, by id.

    Args:
        text: the output.
        prefix: only jobs whose name begins so, …
        ids: … or whose id is one of these, whatever their name has become.

    Raises:
        ValueError: a job that is not understood.
    """
    jobs = {}
    for record in re.split(f"^{_MARK}", text, flags=re.MULTILINE)[1:]:
        fields = record.split("|", _FIELDS - 1)
        if len(fields) != _FIELDS:
            raise ValueError(f"a line of {len(fields)} fields: {record!r}")
        if fields[5].startswith(prefix) or fields[0] in ids:
            jobs[fields[0]] = _job(fields)
    return jobs


def _job(fields: list[str]) -> Job:
    id, native, start, end, nodes, name, rest = fields
    state = STATES.get(native, _RUNNING)
    reason = rest.partition("\n")[0]
    reason = "" if reason == "None" else reason
    if state is _QUEUED:
        waits_for = reason or ("" if native == "PENDING" else native)
        impossible = native == "PENDING" and is_impossible(reason)
        # %S of a pending job is when the backfill scheduler expects to start it (squeue(1))
        expected = None if impossible else parse_time(start)
        return Job(
            id, name, state, reason=waits_for, impossible=impossible, expected_start=expected
        )
    started = parse_time(start)
    if state is _RUNNING:
        plain = native == "RUNNING"
        # of a job that completes, only nodes that have not finished yet are told
        held = expand(nodes) if plain else ()
        return Job(id, name, state, started=started, reason="" if plain else native, nodes=held)
    said = _ENDS[native]
    if native == "CANCELLED" and not nodes:
        said = "cancelled before it started"
    elif native == "FAILED" and reason:
        said = f"failed: {reason}"
    return Job(
        id, name, state, started=started if nodes else None, ended=parse_time(end), reason=said
    )


def is_impossible(reason: str) -> bool:
    """Tell whether a job that is pending for ``reason`` cannot start by waiting."""
    return reason in _IMPOSSIBLE or _LIMIT_OF_A_JOB.fullmatch(reason) is not None


def parse_exit(text: str) -> str:
    """How the script ended, from the output of ``scontrol show job``; empty if it is not told."""
    match = _EXIT.search(text)
    if match is None:
        return ""
    status, number = int(match[1]), int(match[2])
    if not number:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"


def parse_time(text: str) -> float | None:
    """A time in seconds since the epoch, or ``None`` for ``N/A``, ``Unknown`` and the like.

    Understands ``%s`` of ``SLURM_TIME_FORMAT`` and Slurm's own form, which is local time.
    """
    if text.isascii() and text.isdigit():
        return float(text) or None
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
