"""What the scheduler's word about a job means for the row of its allocation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balsam_celery.keys import ERROR_FILE
from balsam_celery.schedulers.base import Job, JobState
from balsam_celery.store.rows import AllocationRow, AllocationState

#: Seconds for which a job must be missing from the scheduler's answers to count as gone.
GONE_AFTER = 30.0
#: Seconds past its wall time after which the service itself cancels an allocation.
OVERDUE_AFTER = 60.0
#: Begins the reason of an allocation whose job cannot start; once that is gone, it is FAILED.
NEVER = "can never start: "
_LONGEST = 500


@dataclass(frozen=True, slots=True)
class Left:
    """What a pilot left in its allocation's directory that could not register.

    Attributes:
        error: the one line that says why it could not start; ``""``: there is none.
        output: where its job's output is; ``""``: nowhere.
    """

    error: str = ""
    output: str = ""


def change(
    row: AllocationRow,
    job: Job | None,
    *,
    now: float,
    gone: bool,
    overdue: bool,
    served: bool,
    left: Callable[[AllocationRow], Left],
) -> dict[str, Any]:
    """Columns of a QUEUED or RUNNING allocation to be set.

    Args:
        row: the allocation.
        job: its job as the scheduler tells, ``None`` when it does not.
        now: seconds since the epoch.
        gone: the job was missing for so long that it counts as ended.
        overdue: the job has run for longer than its wall time.
        served: a pilot has registered in it.
        left: asked, with ``row``, what is left of one that ended without having served.

    Raises:
        Exception: what ``left`` raises.
    """
    if job is None or job.state is JobState.ENDED:
        if job is None and not gone:
            return {}
        return _over(row, job, now, served, left)
    values: dict[str, Any] = {}
    if job.native_id != row.native_id:
        values["native_id"] = job.native_id
    if job.state is JobState.RUNNING and row.state is AllocationState.QUEUED:
        started = job.started if job.started is not None else now
        values |= {"state": AllocationState.RUNNING, "started": started}
    if row.cancel_requested is not None:
        return values
    if overdue:
        return values | {"cancel_requested": now, "reason": "its wall time is over"}
    reason = job.reason if job.state is JobState.QUEUED else ""
    if job.impossible and job.state is JobState.QUEUED:
        reason = NEVER + reason
    if reason != row.reason:
        values["reason"] = reason
    return values


def _over(
    row: AllocationRow,
    job: Job | None,
    now: float,
    served: bool,
    left: Callable[[AllocationRow], Left],
) -> dict[str, Any]:
    values: dict[str, Any] = {"state": AllocationState.ENDED, "ended": now}
    if job is not None:
        values["started"] = row.started if row.started is not None else job.started
        values["ended"] = job.ended if job.ended is not None else now
    began = row.state is AllocationState.RUNNING or values.get("started") is not None or served
    if row.cancel_requested is not None:
        reason = row.reason
    elif row.reason.startswith(NEVER) and not began:
        values["state"] = AllocationState.FAILED
        reason = row.reason
    else:
        found = Left() if served else left(row)
        reason = job.reason if job is not None else "the scheduler does not know the job any more"
        if found.error:
            reason = f"its pilot did not start: {found.error}"
        elif found.output:
            reason = f"{reason or 'its job has ended'}; see {found.output}"
    values["reason"] = reason or (job.reason if job is not None else "") or "its job has ended"
    return values


def left_behind(row: AllocationRow) -> Left:
    """What lies in the allocation's directory; takes as long as its file system does."""
    return Left(_start_up_error(row), _output(row))


def _output(row: AllocationRow) -> str:
    """The job's output, "" when there is none: what a pilot said that could not say more."""
    names = ("job.out", f"{row.native_id}.out")
    try:
        return next((str(p) for p in (Path(row.run_dir) / n for n in names) if p.exists()), "")
    except OSError:
        return ""


def _start_up_error(row: AllocationRow) -> str:
    """The one line that the allocation's pilot left when it could not start; "" when none."""
    try:
        with (Path(row.run_dir) / ERROR_FILE).open("rb") as file:
            lines = file.read(_LONGEST).decode(errors="replace").splitlines()
    except OSError:
        return ""  # there is none, or the directory is away: the scheduler's reason tells more
    return next((line.strip() for line in lines if line.strip()), "")
