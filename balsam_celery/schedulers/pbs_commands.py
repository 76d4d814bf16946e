"""The commands of PBS: how to call them, what their exit statuses mean, where they are.

Sources: the reference guide of PBS Professional 2021.1 (chapter 2), OpenPBS 23.06's
``src/include/pbs_error.h`` and ``src/cmds/*.c``, and captured answers of OpenPBS 23.06
(``tests/data/openpbs``).
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Makes the times that ``qstat`` prints, which it writes in its own time zone, those of UTC.
UTC = {"TZ": "UTC0"}

#: A job's id: number and server, ``60.pbsserver``. Arrays (``78[].pbsserver``) are never ours.
_JOB_ID = re.compile(r"(\d+)(?:\.\S+)?", re.ASCII)


def _statuses(*errors: int) -> frozenset[int]:
    """Exit statuses of errors of ``pbs_error.h``: the number's last eight bits."""
    return frozenset(error % 256 for error in errors)


#: ``qstat``, ``qdel``: no such job (PBSE_UNKJOBID).
UNKNOWN_JOB = 15001 % 256  # 153
#: ``qdel``: the job has ended (HISTJOBID), or is ending (ALRDYEXIT, delProgress): as was wished.
HARMLESS_TO_CANCEL = _statuses(15001, 15139, 15050, 15085)
#: ``qdel`` that cannot succeed: not allowed (PERM), not an id.
NOT_TO_CANCEL = _statuses(15007) | {1, 2}

#: ``qsub`` was told no, by the server or by itself: nothing was submitted. Every other status but 0
#: (no server, no contact, too many connections, an answer that broke off, a signal) says nothing.
REFUSED = {1, 2, 3} | _statuses(
    15002, 15003, 15004, 15007,  # NOATTR, ATTRRO, IVALREQ, PERM
    15014,  # BADATVAL: a bad value, such as walltime=abc
    15018, 15021, 15022, 15023,  # UNKQUE, QUNOENB (disabled), QACESS, BADUSER
    15024, 15028, 15029,  # HOPCOUNT, QUENBIG, NOSUP
    15032, 15035, 15036, 15037,  # BADATLST, UNKRESC, EXCQRESC (over a limit), QUENODFLT
    15039, 15042, 15045, 15046,  # ROUTEREJ, BADSCRIPT, BADGRP, MAXQUED
    15048, 15049, 15054, 15055,  # EXLIMIT, BADACCT, BADDEPEND, DUPLIST
    15062, 15084, 15089,  # UNKNODE, UNKRESVID, BADNODESPEC
    15108, 15109, 15110, 15111, 15116,  # INVALSELECTRESC, INVALJOBRESC, …NODEPLACE, PLACENOSELECT
    15136, 15142, 15143, 15144,  # HOOKERROR (a site's hook said no), ENTLIMCT, ENTLIMRESC, range
    15162, 15163, 15169, 15173, 15175,  # walltimes, HOOK_REJECT, JOBNBIG, JOBSCRIPTMAXSIZE
)  # fmt: skip

#: ``pbs_release_nodes``: it cannot be, by ``req_relnodesjob`` in ``src/server/req_message.c``: no
#: such job (UNKJOBID, HISTJOBID), not allowed (PERM), not the vnodes of such a job (SYSTEM),
#: it does not run (BADSTATE), or no plain job (NOSUP); by the command itself (1, 2).
NOT_TO_RELEASE = {1, 2} | _statuses(15001, 15139, 15007, 15010, 15016, 15029)
#: … and of vnodes that the job does not have any more: ``src/server/vnparse.c``.
NOT_THERE = "requested to be released not part of the job"

#: Seconds for which jobs that have ended are still looked for by name.
RECENT = 3600.0


def submit(script: Path) -> list[str]:
    """Submit a script, whose ``#PBS`` lines hold all options.

    With ``-f`` no background process stays, which could submit after this command was given up.
    """
    return ["qsub", "-f", str(script)]


def cancel(native_id: str) -> list[str]:
    """Ask for a job's end."""
    return ["qdel", native_id]


def release(native_id: str, vnodes: Sequence[str]) -> list[str]:
    """Take vnodes out of a running job; never those of its first host."""
    return ["pbs_release_nodes", "-j", native_id, *vnodes]


def job(native_id: str, *, history: bool) -> list[str]:
    """All of one job; with several ids the JSON would hold the first one alone."""
    return ["qstat", *(["-x"] if history else []), "-f", "-F", "json", native_id]


def living(user: str) -> list[str]:
    """Ids of a user's jobs that have not ended."""
    return ["qselect", "-u", user]


def recent(user: str, now: float) -> list[str]:
    """Ids of a user's jobs made since :data:`RECENT` seconds before ``now``, ended ones too."""
    since = time.strftime("%Y%m%d%H%M", time.gmtime(now - RECENT))
    return ["qselect", "-x", "-u", user, f"-tc.gt.{since}"]


def queues() -> list[str]:
    """All queues."""
    return ["qstat", "-Q", "-f", "-F", "json"]


def server() -> list[str]:
    """The server: its default queue."""
    return ["qstat", "-B", "-f", "-F", "json"]


def nodes(name: str = "") -> list[str]:
    """One node, or all."""
    return ["pbsnodes", *([] if name else ["-a"]), "-F", "json", *([name] if name else [])]


def number(native_id: str) -> str:
    """The number in a job's id; empty for what is not the id of a plain job."""
    match = _JOB_ID.fullmatch(native_id)
    return match[1] if match else ""


def find(name: str, environment: Mapping[str, str]) -> str:
    """Path of a PBS command: on PATH, else where PBS says that it is installed.

    Jobs start with the PATH of a login shell, which may lack PBS. ``name`` itself if not found.
    """
    conf = Path(environment.get("PBS_CONF_FILE", "/etc/pbs.conf"))
    try:
        lines = conf.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = [
        line.removeprefix("PBS_EXEC=").strip() for line in lines if line.startswith("PBS_EXEC=")
    ]
    places = [environment.get("PBS_EXEC", ""), *told, "/opt/pbs"]
    path = [environment.get("PATH", ""), *(f"{place}/bin" for place in places if place)]
    return shutil.which(name, path=":".join(part for part in path if part)) or name
