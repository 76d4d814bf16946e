"""Job steps of Slurm: the options of those that we make, and their end."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from balsam_celery.errors import SchedulerUnavailable
from balsam_celery.launchers.base import Ranks
from balsam_celery.schedulers.commands import Commands
from balsam_celery.schedulers.hostlist import fold

_TIMEOUT = 30.0  # seconds for one command
#: Holds an ``srun`` that goes no further than a task's own nodes.
_BIN = str(Path(__file__).with_name("bin"))


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


def inner_steps(
    environment: Mapping[str, str], job: str, others: Collection[str]
) -> dict[str, str]:
    """Variables by which steps that a program of some nodes makes keep off the job's others.

    hydra names the nodes of its step; ``mpirun`` does not if it uses all that it knows of
    (``plm_slurm_module.c``), and may find Slurm's ``srun`` beside itself. An ``srun`` that is
    called by its whole path uses any of the job's nodes. The one in front of it does nothing in
    another job, to which ``sbatch`` hands all variables.

    Args:
        environment: of the program; what is returned adds to it.
        job: the pilot's.
        others: its nodes that are not the program's.
    """
    variables = {
        "PATH": os.pathsep.join([_BIN, environment.get("PATH", os.defpath)]),
        "BALSAM_SLURM_JOB": job,
    }
    if not others:
        return variables
    excluded = fold(others)
    variables["BALSAM_OTHER_NODES"] = excluded
    for name in ("OMPI_MCA_plm_slurm_args", "PRTE_MCA_plm_slurm_args"):
        given = environment.get(name, "").split()
        variables[name] = " ".join([*given, f"--exclude={excluded}"])
    return variables


def end_step(name: str, environment: Mapping[str, str]) -> bool:
    """End the steps of this name in the job of ``environment``; see ``Launcher.end_step``."""
    return end_steps({name}, environment)


def end_steps(names: Collection[str], environment: Mapping[str, str]) -> bool:
    """End the steps of these names; tells whether there are none, as far as Slurm answers.

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
        found = [step.strip() for step, _, named in steps if named.strip() in names]
        if found:
            commands.run(["scancel", "--signal=KILL", *found])
        return not found
    except SchedulerUnavailable:
        return False
