"""Which complaints of commands that PSI/J runs mean that the scheduler said no. Pure.

PSI/J tells of every command that failed in the same way, without its exit status. Whatever is not
known here counts as a lost answer: the job may exist, and is not submitted a second time.

Sources: IBM Spectrum LSF 10.1 (bsub, bkill: messages), OpenPBS 23.06's answers as captured, Slurm's
as :mod:`~balsam_celery.schedulers.slurm_refusals`. Of Cobalt's none is known well enough.
"""

from __future__ import annotations

import re

from balsam_celery.schedulers.commands import Done
from balsam_celery.schedulers.slurm_refusals import is_refusal

#: bsub says "Job not submitted." also when it could not reach LSF: it is not enough.
_LSF = (
    "No such queue",
    "User cannot use the queue",
    "Queue has been closed",
    "Queue does not accept",
    "Cannot exceed queue's hard limit",
    "Bad resource requirement syntax",
    "Bad argument",
    "Illegal option",
    "Request aborted by esub",
    "Too many processors requested",
    "User permission denied",
    "Pending job threshold reached",
)
_PBS = (
    "Unknown queue",
    "Queue is not enabled",
    "Job violates queue and/or server resource limits",
    "Unknown resource",
    "Illegal attribute or resource value",
    "illegal -",
    "Unauthorized Request",
    "Access to queue is denied",
    "Job rejected by all possible destinations",
    "Maximum number of jobs already in",
    "would exceed",
)
_SUBMISSIONS = {"lsf": _LSF, "pbs": _PBS, "pbs_classic": _PBS}

#: bkill, scancel, qdel: not this user's job, or no job's id.
_CANCELLATION = re.compile(
    "Operation not permitted|permission denied|Unauthorized Request|illegally formed job identifier"
    "|Illegal job ID|Invalid job id",
    re.IGNORECASE,
)


def refuses_job(executor: str, complaint: str) -> bool:
    """Tell whether a failed submission means that the scheduler has no such job.

    Args:
        executor: its name in PSI/J.
        complaint: what the command printed.
    """
    if executor == "slurm":
        return is_refusal(Done(1, "", complaint))
    return any(words in complaint for words in _SUBMISSIONS.get(executor, ()))


def refuses_end(complaint: str) -> bool:
    """Tell whether a failed cancellation cannot succeed, however often it is tried."""
    return _CANCELLATION.search(complaint) is not None
