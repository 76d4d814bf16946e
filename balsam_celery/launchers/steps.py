"""Job steps of Slurm: the options of those that we make, and their end."""

from __future__ import annotations

from collections.abc import Mapping

from balsam_celery.errors import SchedulerUnavailable
from balsam_celery.launchers.base import Ranks
from balsam_celery.schedulers.commands import Commands

_TIMEOUT = 30.0  # seconds for one command


def step_options(ranks: Ranks) -> list[str]:
    """Options of ``srun``, the same for ranks and for the daemons of another launcher.

    Steps overlap: which cores a program has is decided by placement, and every step may use all
    of its nodes. Since Slurm 20.11 they would wait for each other otherwise.

    So no option may make a step "exact". ``--cpus-per-task`` does (srun(1);
    ``_create_job_step_create_request`` of its source): Slurm would choose that many cores for it,
    confine it to them where it constrains cores by cgroups, perhaps the same as for a step beside
    it, and refuse more than the smallest node has. Without, a step gets all cores that the job has
    on each of its nodes (``_pick_step_cores`` with ``SSF_WHOLE`` in the controller's). With
    ``--overcommit`` this holds for more tasks than cores too, which are refused otherwise.
    """
    options = [
        "--overlap",
        "--overcommit",
        "--mem=0",
        "--cpu-bind=none",
        "--export=ALL",
        "--wait=0",
    ]
    if ranks.survives:
        options += ["--no-kill", "--kill-on-bad-exit=0"]
    if ranks.name:
        options.append(f"--job-name={ranks.name}")
    return options


def end_step(name: str, environment: Mapping[str, str]) -> bool:
    """End the steps of this name in the job of ``environment``; see ``Launcher.end_step``.

    ``scancel`` of a step that has ended is no error, so the list alone tells.
    """
    commands = Commands(_TIMEOUT, additions=dict(environment))
    job = environment["SLURM_JOB_ID"]
    try:
        listed = commands.run(
            ["squeue", "--steps", "--noheader", "--format=%i|%j", f"--jobs={job}"]
        )
        if listed.status != 0:
            return False
        steps = [line.partition("|") for line in listed.out.splitlines()]
        found = [step.strip() for step, _, named in steps if named.strip() == name]
        if found:
            commands.run(["scancel", "--signal=KILL", *found])
        return not found
    except SchedulerUnavailable:
        return False
