"""What an outer launcher or job step says to its own ranks, and an inner one must not hear."""

from __future__ import annotations

import json
from collections.abc import Mapping

#: Every variable of these families is of one launch, but for those of ``_USERS``.
_PREFIXES = (
    "PMI_",
    "PMIX_",
    "ORTE_",
    "OMPI_COMM_WORLD_",
    "OMPI_MCA_ess",
    "OMPI_MCA_orte_ess_",
    "PRTE_MCA_ess",
    "HYDI_",
    "MV2_COMM_WORLD_",
    "PALS_",
    "ALPS_APP_",
    "JSM_",
    "FLUX_TASK_",
    "SRUN_",
)
#: Settings of users in these families: PMIx's parts and place, time-outs of PALS and of Cray's PMI.
_USERS = (
    "PMIX_MCA_",
    "PMIX_PREFIX",
    "PMIX_INSTALL_PREFIX",
    "PALS_PING_PERIOD",
    "PALS_RPC_TIMEOUT",
    "PMI_MMAP_SYNC_WAIT_TIME",
)
#: What ``mpirun`` tells its ranks beside users' ``OMPI_MCA_*``: of 4.1 ``setup_fork`` and
#: ``setup_child`` of ``schizo_ompi.c``, ``odls_base_default_fns.c``, ``orted_submit.c`` and the
#: command line of ``orted`` (``plm_base_launch_support.c``); of 5.0 ``pmdl_ompi.c`` of PMIx.
_OF_OPEN_MPI = (
    *(
        f"OMPI_{name}"
        for name in (
            "APP_CTX_NUM_PROCS",
            "ARGV",
            "COMMAND",
            "FILE_LOCATION",
            "FIRST_RANKS",
            "NO_USE_CRAY_PMI",
            "NUM_APP_CTX",
            "UNIVERSE_SIZE",
            "WORLD_LOCAL_SIZE",
            "WORLD_SIZE",
        )
    ),
    *(
        f"OMPI_MCA_{name}"
        for name in (
            "cpu_type",
            "initial_wdir",
            "mpi_oversubscribe",
            "num_procs",
            "num_restarts",
            "orte_app_num",
            "orte_base_applied_binding",
            "orte_bound_at_launch",
            "orte_cpu_model",
            "orte_cpu_type",
            "orte_do_not_barrier",
            "orte_externally_bound",
            "orte_hnp_uri",
            "orte_in_parallel_debugger",
            "orte_jobfam_session_dir",
            "orte_launch",
            "orte_local_daemon_uri",
            "orte_node_regex",
            "orte_num_nodes",
            "orte_num_restarts",
            "orte_parent_uri",
            "orte_precondition_transports",
            "orte_top_session_dir",
            "shmem_RUNTIME_QUERY_hint",
        )
    ),
)
_NAMES = frozenset(
    {
        *_OF_OPEN_MPI,
        # src/pm/hydra of MPICH: pmip_cb.c, topo.c
        "MPI_LOCALNRANKS",
        "MPI_LOCALRANKID",
        "HYDRA_USER_PROVIDED_BINDING",
        # prrte 3: schizo_base_stubs.c, schizo_ompi.c, prte.c, prte_init.c
        "PRTE_LAUNCHED",
        "PRTE_SHARED_FS",
        "PRTE_MCA_PREFIXES",
        "PRTE_MCA_pmix_session_server",
        "PRTE_MCA_pmix_system_server",
        "PRTE_MCA_prte_hnp_uri",
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
#: Settings that launchers give their ranks where users have not set them otherwise. They are taken
#: for a launcher's only if they have its value, and only in what it has started (``_STARTED``).
_BY_VALUE = {
    "GFORTRAN_UNBUFFERED_PRECONNECTED": ("y",),  # hydra's get_parameters.c
    "HFI_NO_BACKTRACE": ("1",),  # opal_init.c
    "IPATH_NO_BACKTRACE": ("1",),
    "OMPI_MCA_pmix": ("^s1,s2,cray,isolated", "^s1,s2,cray"),
    "PMIX_MCA_mca_base_component_show_load_errors": ("1",),
}
_STARTED = frozenset({"HYDI_CONTROL_FD", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_SIZE"})
#: Of these, users' settings and what a launch adds have the same names: ``mpirun`` makes options
#: variables of its ranks, and puts its own installation first in paths.
_SETTINGS = (
    "GFORTRAN_",
    "HYDRA_",
    "I_MPI_",
    "MPI4PY_",
    "MPIR_CVAR_",
    "OMPI_MCA_",
    "PMIX_MCA_",
    "PRTE_MCA_",
)
_PATHS = ("LD_LIBRARY_PATH", "PATH")
#: Carries users' settings past a launch.
BEFORE = "BALSAM_MPI_SETTINGS"
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


def settings_before(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment of a launch so that :func:`clean_environment` undoes it."""
    settings = {name: text for name, text in environment.items() if _is_setting(name)}
    return {BEFORE: json.dumps(settings)}


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` without what an outer MPI launcher or job step has put there.

    Allocation-wide variables of the scheduler (``SLURM_JOB_ID``, ``PBS_NODEFILE``) stay: an inner
    launcher needs them. Users' own settings (``OMPI_MCA_btl``, ``HYDRA_IFACE``, ``MPI_HOME``,
    ``UCX_*``) stay too.
    """
    cleaned = {name: value for name, value in environment.items() if not _is_outer(name)}
    if not _STARTED.isdisjoint(environment):
        temporary = (environment.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
        by_value = {**_BY_VALUE, "OMPI_MCA_orte_tmpdir_base": (*temporary, "/tmp")}  # noqa: S108
        cleaned = {
            name: value for name, value in cleaned.items() if value not in by_value.get(name, ())
        }
    if BEFORE in environment:
        cleaned = {
            name: value
            for name, value in cleaned.items()
            if name != BEFORE and not _is_setting(name)
        }
        cleaned |= json.loads(environment[BEFORE])
    return cleaned


def _is_setting(name: str) -> bool:
    return name in _PATHS or name.startswith(_SETTINGS)


def _is_outer(name: str) -> bool:
    if name.startswith("SLURM_"):
        return not (name.startswith("SLURM_JOB_") or name in _SLURM_KEPT)
    return name in _NAMES or (name.startswith(_PREFIXES) and not name.startswith(_USERS))
