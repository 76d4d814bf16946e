"""What an outer launcher or job step says to its own ranks, and an inner one must not hear."""

from __future__ import annotations

from collections.abc import Mapping

_PREFIXES = (
    "PMI_",
    "PMIX_",
    "PRTE_",
    "OMPI_",
    "ORTE_",
    "HYDRA_",
    "HYDI_",
    "MPI_",
    "MPIEXEC_",
    "MV2_COMM_WORLD_",
    "PALS_",
    "ALPS_APP_",
    "JSM_",
    "FLUX_TASK_",
    "SRUN_",
)
_NAMES = frozenset(
    {
        "FLUX_JOB_ID",
        "FLUX_JOB_NNODES",
        "FLUX_JOB_SIZE",
        "FLUX_KVS_NAMESPACE",
        "PMI2_FD",
        # of the node where it was set: a launcher that passes its environment on would tell it to
        # the ranks of all nodes
        "SLURMD_NODENAME",
    }
)
#: Of Slurm's variables these describe the allocation, and Open MPI, hydra and commands need them.
#: The rest is of one step, or an option of ``srun`` as a variable (some sixty of them; srun(1),
#: "Input environment variables"): the batch script's ``SLURM_NTASKS``, ``SLURM_MEM_PER_CPU``,
#: ``SLURM_EXPORT_ENV`` … would change every step inside it.
_SLURM_KEPT = frozenset(
    {
        "SLURM_CLUSTER_NAME",
        "SLURM_CONF",
        "SLURM_CONF_SERVER",
        "SLURM_CPUS_ON_NODE",
        "SLURM_JOBID",
        "SLURM_NNODES",
        "SLURM_NODELIST",
        "SLURM_SUBMIT_DIR",
        "SLURM_SUBMIT_HOST",
        "SLURM_TASKS_PER_NODE",
    }
)


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` without what an outer MPI launcher or job step has put there.

    Allocation-wide variables of the scheduler (``SLURM_JOB_ID``, ``PBS_NODEFILE``) stay: an inner
    launcher needs them. A user's own tuning (``UCX_*``, ``FI_*``, ``MPICH_*``) stays too.
    """
    return {name: value for name, value in environment.items() if not _is_outer(name)}


def _is_outer(name: str) -> bool:
    if name.startswith("SLURM_"):
        return not (name.startswith("SLURM_JOB_") or name in _SLURM_KEPT)
    return name in _NAMES or name.startswith(_PREFIXES)
