"""What ``qstat -f -F json`` tells of a job → :class:`~.base.Job`. Pure.

Sources: the reference guide of PBS Professional 2021.1 (job states and substates; exit statuses of
jobs), OpenPBS 23.06's ``src/include/job.h`` (JOB_SUBSTATE, JOB_EXEC), and captured answers.

``qstat`` guesses types: a value that looks like a number comes as one (``007`` as 7). Names of
attributes and their order are kept, so ``Job_Name`` stands before all that a user may have written.
"""

from __future__ import annotations

import calendar
import json
import re
from collections.abc import Mapping
from typing import Any

from balsam_celery.schedulers.base import Job, JobState

Attributes = Mapping[str, Any]

#: PBS's letter for a job's state → ours. E (exiting) still has processes: the epilogue, copying.
STATES = {
    "Q": JobState.QUEUED,
    "H": JobState.QUEUED,  # held
    "W": JobState.QUEUED,  # waits for its time, or for files
    "T": JobState.QUEUED,  # on the way to another server
    "M": JobState.QUEUED,  # moved there: how it goes on is not told here
    "R": JobState.RUNNING,
    "B": JobState.RUNNING,  # an array that has begun
    "S": JobState.RUNNING,  # suspended
    "U": JobState.RUNNING,  # suspended: the workstation is in use
    "E": JobState.RUNNING,
    "F": JobState.ENDED,
    "X": JobState.ENDED,  # part of an array that is done
}

#: Exit_status below zero: PBS itself ended the job, or could not run it (JOB_EXEC_* of job.h).
PBS_ENDED = {
    -1: "PBS could not start it",
    -2: "PBS could not start it",
    -3: "PBS could not start it",
    -4: "its first node's PBS was started anew",
    -10: "PBS could not start it: its user is not known there",
    -11: "PBS ended it, to run it again",
    -12: "it was checkpointed and ended",
    -14: "one of its nodes failed",
    -16: "a hook of the site refused it",
    -17: "a hook of the site refused it",
    -18: "a hook of the site ended it",
    -19: "a hook of the site ended it",
    -20: "its first node was lost",
    -24: "it used more cores than it asked for",
    -25: "it used more cores than it asked for",
    -26: "it used more virtual memory than it asked for",
    -27: "it used more memory than it asked for",
    -28: "its processor time was over",
    -29: "its wall time was over",
    -30: "its nodes could not be joined",
}
_TERMINATED, _FAILED = 91, 93  # substates of an ended job: deleted, failed (92: finished)
_WAITS_FOR_JOB = 22  # substate of a held job
_HOLDS = {"u": "by its user", "o": "by an operator", "s": "by PBS", "p": "its password is wrong"}
#: Comments of jobs that no waiting helps (scheduler/constant.h; server/req_runjob.c).
_NEVER = ("Can Never Run", "job held, too many failed attempts to run")

_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_TIME = re.compile(r"[A-Z][a-z]{2} ([A-Z][a-z]{2}) +(\d+) (\d\d):(\d\d):(\d\d) (\d{4})", re.ASCII)
_NAME = re.compile(r'"Job_Name":\s*(?:"([^"\\]*)|([^",\s}]+))')
_HOST = re.compile(r"([^/+]+)/[^+]*")


class Unreadable(ValueError):
    """The answer is not what PBS is known to answer."""


def name_of(text: str) -> str:
    """The name of the one job in the JSON ``text``, which need not be valid; empty if not found."""
    match = _NAME.search(text)
    return (match[1] or match[2] or "") if match else ""


def document(text: str) -> dict[str, Any]:
    """The JSON object in ``text``.

    Raises:
        Unreadable: no valid JSON. Some versions do not escape what users wrote.
    """
    try:
        # strict=False: line feeds inside of strings are taken as they are
        plain = json.loads(text, strict=False)
    except ValueError as error:
        raise Unreadable(f"not valid JSON: {error}") from None
    if not isinstance(plain, dict):
        raise Unreadable("not a JSON object")
    return plain


def attributes(text: str) -> Attributes:
    """What is told of the one job in ``text``.

    Raises:
        Unreadable: not valid, or not of one job.
    """
    jobs = document(text).get("Jobs")
    told = list(jobs.values()) if isinstance(jobs, dict) else []
    if len(told) != 1 or not isinstance(told[0], dict):
        raise Unreadable("it does not tell of one job")
    return told[0]


def owner(told: Attributes) -> str:
    """The user who submitted the job (``Job_Owner``: ``user@host``)."""
    return str(told.get("Job_Owner", "")).partition("@")[0]


def make_job(native_id: str, told: Attributes) -> Job:
    """The job of which ``told`` is told.

    Raises:
        Unreadable: its state is not one of PBS's.
    """
    letter = str(told.get("job_state", ""))
    state = STATES.get(letter)
    if state is None:
        raise Unreadable(f"the state {letter!r} is not one of PBS's")
    comment = str(told.get("comment", ""))
    return Job(
        native_id=native_id,
        name=str(told.get("Job_Name", "")),
        state=state,
        started=None if state is JobState.QUEUED else moment(told.get("stime")),
        ended=_ended(told) if state is JobState.ENDED else None,
        reason=_reason(state, letter, comment, told),
        impossible=state is JobState.QUEUED and comment.startswith(_NEVER),
        nodes=hosts(told) if state is JobState.RUNNING else (),
        expected_start=_estimated(told) if state is JobState.QUEUED else None,
    )


def _estimated(told: Attributes) -> float | None:
    """``estimated.start_time``, which PBS makes where a site lets it (``est_start_time_freq``).

    OpenPBS's ``src/cmds/qstat.c`` prints it as other times, or ``UNKNOWN``.
    """
    estimated = told.get("estimated")
    return moment(estimated.get("start_time")) if isinstance(estimated, Mapping) else None


def _ended(told: Attributes) -> float | None:
    history = integer(told.get("history_timestamp"))
    return moment(told.get("obittime")) or history or moment(told.get("mtime"))


def _reason(state: JobState, letter: str, comment: str, told: Attributes) -> str:
    if state is JobState.ENDED:
        return ended_because(
            integer(told.get("Exit_status")), integer(told.get("substate")), comment
        )
    if state is JobState.RUNNING:
        return {"S": "suspended", "U": "suspended"}.get(letter, "")
    if letter == "M":
        return "moved to another PBS server: what becomes of it is not known here"
    if letter == "W" and told.get("Execution_Time"):
        return f"waits until {told['Execution_Time']}"
    if letter == "H":
        if integer(told.get("substate")) == _WAITS_FOR_JOB:
            return "held: waits for another job"
        by = [_HOLDS[kind] for kind in str(told.get("Hold_Types", "")) if kind in _HOLDS]
        return ": ".join(part for part in (f"held {', '.join(by)}".strip(), comment) if part)
    return comment


def ended_because(status: int | None, substate: int | None, comment: str = "") -> str:
    """Why a job ended, in words; empty for one that ended by itself with status 0.

    Args:
        status: ``Exit_status``: of the script; 256 more than a signal that ended it (128 more when
            its shell says so); below zero PBS's own (:data:`PBS_ENDED`). ``None``: it never ran.
        substate: 91 deleted, 92 finished, 93 failed.
        comment: PBS's, for a job that never ran.
    """
    if status is None:
        if substate == _TERMINATED:
            return "cancelled before it started"
        return f"it never ran: {comment}" if comment else "it never ran"
    if status < 0:
        return PBS_ENDED.get(status, f"PBS ended it with status {status}")
    if substate == _TERMINATED:
        # 265 = 256 + KILL: "-W force" makes the server forget the job without its nodes' word
        return "cancelled by force" if status == 265 else "cancelled"
    if status > 256:
        return f"ended by signal {status - 256}"
    if status == 0:
        return "it failed" if substate == _FAILED else ""
    return f"exit status {status}"


def hosts(told: Attributes) -> tuple[str, ...]:
    """Hosts in ``exec_host`` (``pbs4/1*2+pbs5/0*2``), each once, in order."""
    return tuple(dict.fromkeys(_HOST.findall(str(told.get("exec_host", "")))))


def moment(text: object) -> float | None:
    """Seconds since the epoch at ``Sun Nov 22 16:01:23 2026`` (in UTC); ``None`` if it is none.

    The names of months are those of the C locale, whatever this process's is.
    """
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[1] not in _MONTHS:
        return None
    day, hour, minute, second, year = (int(match[group]) for group in range(2, 7))
    month = _MONTHS.index(match[1]) + 1
    return float(calendar.timegm((year, month, day, hour, minute, second)))


def seconds(clock: object) -> int | None:
    """Seconds in a PBS duration: ``01:30:00``, ``30:00``, or a number of them."""
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+)", str(clock), re.ASCII)
    if match is None:
        return None
    hours, minutes, rest = (int(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + rest


def size(text: object) -> int:
    """Bytes in a PBS size: ``4gb``, ``102400kb``, ``12b``, ``8mw`` (words of 8 bytes); else 0."""
    match = re.fullmatch(r"(\d+)([kmgtp]?)([bw]?)", str(text).lower(), re.ASCII)
    if match is None:
        return 0
    power = " kmgtp".index(match[2] or " ")
    return int(match[1]) << 10 * power << (3 if match[3] == "w" else 0)


def integer(value: object) -> int | None:
    """``value`` as a whole number, which may have come as text."""
    try:
        return int(str(value))
    except ValueError:
        return None
