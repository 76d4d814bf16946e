"""Which complaints of ``sbatch`` mean that the job was not taken. Pure.

Whatever is not known here counts as a lost answer: then the job is looked for by its name before it
is submitted anew, so that a refusal taken for a lost answer costs another try, while a lost answer
taken for a refusal could cost a second job.
"""

from __future__ import annotations

from balsam_celery.schedulers.commands import Done

#: ``sbatch`` ends so (``exit(-1)``) only while it reads options, before it sends anything:
#: Slurm's ``src/sbatch/opt.c`` and ``src/common/slurm_opt.c``.
_BAD_OPTION = 255

#: Said by ``sbatch`` itself before it sends anything: ``src/sbatch/sbatch.c``, ``opt.c``.
_OWN_WORDS = (
    "Unable to open file",
    "This does not look like a batch script",
    "Batch script is empty",
    "Batch script contains DOS line breaks",
    "Memory specification can not be satisfied",
    "cli_filter plugin terminated with error",
)

#: Answers of the controller, from ``slurm_errtab`` in ``src/common/slurm_errno.c`` (22.05, 26.05):
#: those by which it declines a submission. Left out, beside failures of communication and
#: authentication, is what tells of a busy controller: "Unable to create job record, try again",
#: "MaxJobCount limit reached", "Requested nodes are busy".
_ANSWERS = (
    "Invalid partition name specified",
    "No partition specified or system default partition",
    "Access/permission denied",
    "User's group not permitted to use this partition",
    "Requested nodes not in this partition",
    "More processors requested than permitted",
    "Node count specification invalid",
    "Job size specification needs to be provided",
    "Job script not specified",
    "Invalid user id",
    "Invalid group id",
    "Pathname of a file, directory or other parameter too long",
    "Requested node configuration is not available",
    "Requested partition configuration not available now",
    "Required partition not available",
    "Partition in DOWN state",
    "Invalid node name specified",
    "Required node not available",
    "I/O error writing script/environment to file",
    "Task distribution specification invalid",
    "Task count specification invalid",
    "CPU count specification invalid",
    "Invalid feature specification",
    "Invalid preferred feature specification",
    "Invalid extra constraints specification",
    "Requested topology configuration is not available",
    "Requested operation not supported on this system",
    "Requested operation is presently disabled",
    "System submissions disabled",
    "Job dependency problem",
    "Memory required by task is not available",
    "Invalid account or account/partition combination specified",
    "Invalid qos specification",
    "Requested account has breached requested QOS usage threshold",
    "Job violates accounting/QOS policy",
    "Invalid wckey specification",
    "Invalid license specification",
    "Invalid generic resource (gres) specification",
    "Duplicate generic resource (gres) specification",
    "Invalid GRES specification",
    "Requested GRES option unsupported",
    "Insufficient GRES available in allocation",
    "Invalid Trackable RESource (TRES) specification",
    "Requested time limit is invalid",
    "Time limit specification required, but not provided",
    "Invalid time-min specification",
    "Invalid time specified",
    "Invalid --nice value",
    "Access denied to requested reservation",
    "Requested reservation is invalid",
    "Requested reservation is in use",
    "Requested reservation not usable now",
    "Burst Buffer permission denied",
    "Burst Buffer resource limit exceeded",
    "Burst Buffer request invalid",
    "Invalid mcs_label specified",
    "Job --batch option is invalid",
    "Multiple partition job request not supported",
    "Invalid cluster name",
    "Environment is missing in job",
    "Unspecified error",  # a site's job_submit plugin declined; its words stand before
)


def is_refusal(done: Done) -> bool:
    """Tell whether a failed ``sbatch`` means that the scheduler has no such job."""
    if done.status == _BAD_OPTION:
        return "sbatch: " in done.err
    return any(words in done.err for words in (*_OWN_WORDS, *_ANSWERS))
