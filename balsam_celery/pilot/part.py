"""What the batch system's variables tell a program that is executed directly: its task's nodes.

A job is a pilot's and has all of its nodes. A program that starts more processes by its own means
asks these variables where to. Launchers that the pilot itself uses are given nodes, and know from
the job's own variables which of its nodes those are.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

from balsam_celery.launchers.steps import inner_steps
from balsam_celery.pilot.context import WorkerContext
from balsam_celery.pilot.ranks import step_name
from balsam_celery.schedulers.hostlist import fold
from balsam_celery.wire import TaskSpec


class Part:
    """Makes these variables for the attempts of one worker.

    Args:
        context: the worker.
    """

    def __init__(self, context: WorkerContext) -> None:
        pilot = context.pilot
        self._names = tuple(node.name for node in pilot.nodes)
        # names of virtual nodes are the site's, not those of a job that it may run in
        known = {} if pilot.virtual else pilot.environment
        self._slurm_job = known.get("SLURM_JOB_ID", "")
        self._pbs_job = known.get("PBS_JOBID", "")
        self._pbs_file = ""
        if self._pbs_job and len(context.nodes) == 1:
            self._pbs_file = self._node_file(pilot.directory / f"{context.node}.pbs", context.node)

    def variables(self, spec: TaskSpec, environment: Mapping[str, str]) -> dict[str, str]:
        """Those to set for ``spec``; it may write a file into its work directory.

        The user's own stay, but for what keeps job steps to the task's nodes, which adds to them.

        Args:
            environment: of the program, with the user's own.
        """
        nodes = [share.node for share in spec.shares]
        if self._slurm_job:
            own = set(nodes)
            others = [name for name in self._names if name not in own]
            told = _not_set(_slurm_part(spec), spec)
            return {**told, **inner_steps(environment, self._slurm_job, others)}
        if self._pbs_job and len(nodes) < len(self._names):
            directory = Path(spec.work_dir) / ".balsam-pbs"
            file = self._pbs_file or self._node_file(directory, *nodes)
            return _not_set({"PBS_NODEFILE": file}, spec)
        return {}

    def _node_file(self, directory: Path, *nodes: str) -> str:
        """A file of PBS's kind with these nodes, once each as in the job's own.

        Its name is the job's id: Open MPI 4 opens the file of that name beside ``PBS_NODEFILE``
        (``ras_tm_module.c``).
        """
        directory.mkdir(exist_ok=True)
        file = directory / self._pbs_job
        file.write_text("".join(f"{node}\n" for node in nodes), encoding="utf-8")
        return str(file)


def _not_set(variables: Mapping[str, str], spec: TaskSpec) -> dict[str, str]:
    """Those that the user has not set otherwise."""
    return {name: value for name, value in variables.items() if name not in spec.environment}


def _slurm_part(spec: TaskSpec) -> dict[str, str]:
    """Slurm's, as ``sbatch`` would set them for the task's nodes and cores alone.

    sbatch(1), "OUTPUT ENVIRONMENT VARIABLES". Open MPI reads ``SLURM_NODELIST`` and
    ``SLURM_TASKS_PER_NODE`` (``ras_slurm_module.c``), hydra these or the ones with ``JOB``
    (``slurm_query_node_list.c``), srun the numbers of nodes; ``bin/srun`` the name.
    """
    nodes = fold(share.node for share in spec.shares)
    cores = [max(1, len(share.cores)) for share in spec.shares]
    counts = ",".join(
        f"{count}(x{times})" if (times := len([*same])) > 1 else str(count)
        for count, same in itertools.groupby(cores)
    )
    return {
        "SLURM_JOB_NAME": step_name(spec.id, spec.attempt),
        "SLURM_JOB_NODELIST": nodes,
        "SLURM_NODELIST": nodes,
        "SLURM_JOB_NUM_NODES": str(len(spec.shares)),
        "SLURM_NNODES": str(len(spec.shares)),
        "SLURM_TASKS_PER_NODE": counts,
        "SLURM_JOB_CPUS_PER_NODE": counts,
        "SLURM_CPUS_ON_NODE": str(cores[0]),
    }
