"""What a launcher adds to the environment of its ranks goes; what the user has set stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from balsam_celery.launchers import Launcher
from balsam_celery.outer import clean_environment
from balsam_celery.pilot.environment import inherited
from balsam_celery.pilot.starting import NodeStart
from balsam_celery.resources import NodeCapacity
from tests.launchers.test_keepers import ended, pilot, script
from tests.waiting import wait_until

#: As modules and users' set-up lines set them.
USERS = {
    "GFORTRAN_UNBUFFERED_ALL": "y",
    "HYDRA_IFACE": "lo",
    "HYDRA_LAUNCHER_EXTRA_ARGS": "-x",
    "I_MPI_PIN": "on",
    "MPIEXEC_TIMEOUT": "60",
    "MPI_HOME": "/opt/mpi",
    "OMPI_CC": "gcc",
    "OMPI_MCA_btl": "self,tcp",
    "OMPI_MCA_hwloc_base_binding_policy": "core",
    "OMPI_MCA_mpi_yield_when_idle": "0",
    "OMPI_MCA_orte_base_help_aggregate": '"0" or {0}',
    "OMPI_MCA_orte_tmpdir_base": "/var/tmp",
    "PALS_PING_PERIOD": "240",
    "PMIX_MCA_gds": "hash",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "UCX_TLS": "tcp",
}
#: Of the process itself, and hydra's own way to hand on ``HYDRA_IFACE``.
ASIDE = {"_", "PWD", "OLDPWD", "SHLVL", "MPIR_CVAR_NEMESIS_TCP_NETWORK_IFACE"}
DUMP = (
    "import json, os, pathlib, sys\n"
    "if '0' in (os.environ.get('OMPI_COMM_WORLD_RANK'), os.environ.get('PMI_RANK')):\n"
    "    pathlib.Path(sys.argv[1]).write_text(json.dumps(dict(os.environ)))\n"
)


def without_aside(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in ASIDE}


def test_ranks_of_an_outer_launcher(launcher: Launcher, tmp_path: Path) -> None:
    """A site that is brought up in a rank, and ranks that start ranks."""
    program = Path(launcher.path)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    # by its name: called by its path, mpirun puts its installation first in paths
    before = {**clean_environment(os.environ), **USERS, "PATH": path}
    root = ["--allow-run-as-root"] if launcher.kind == "openmpi" and os.geteuid() == 0 else []
    argv = [program.name, *root, "-n", "1", sys.executable, "-c", DUMP, str(tmp_path / "seen")]
    done = subprocess.run(
        argv, env=before, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads((tmp_path / "seen").read_text())
    assert len(seen) > len(before), "the launcher has added some"
    assert without_aside(clean_environment(seen)) == without_aside(before)


def test_keepers_that_a_launcher_starts(launcher: Launcher, tmp_path: Path) -> None:
    """Options of our own launch reach its ranks as settings; programs have their user's."""
    seen = tmp_path / "seen"
    keeper = script(tmp_path / "keeper", f"env -0 > {seen}.part; mv {seen}.part {seen}")
    nodes = (NodeCapacity("localhost", (0,)), NodeCapacity("n2", (0,)))
    context = pilot(tmp_path, keeper, *nodes)
    context.environment.update(USERS)
    start = NodeStart(context, launcher, ["localhost"], again=True, within=60)
    status = wait_until(lambda: ended(start.pid), what="the launcher has ended")
    assert start.ended(status[1]) == "exit status 0", start.last_line
    entries = seen.read_bytes().decode().rstrip("\0").split("\0")
    found = dict(entry.split("=", 1) for entry in entries)
    programs = inherited(found, context.site.settings)
    before = inherited(context.environment, context.site.settings)
    assert without_aside(programs) == without_aside(before)


def test_what_each_launcher_says_of_ranks_goes() -> None:
    outer = {
        "PMI_RANK": "3",
        "PMIX_RANK": "3",
        "PMIX_SERVER_URI41": "665255936.0;tcp4://127.0.0.1:55307",
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_MCA_ess_base_jobid": "1",
        "OMPI_MCA_orte_hnp_uri": "665255936.0;tcp://192.0.2.2:58499",
        "PRTE_MCA_ess_base_vpid": "1",
        "MPI_LOCALRANKID": "1",
        "HYDI_CONTROL_FD": "8",
        "PALS_RANKID": "1",
        "FLUX_TASK_RANK": "1",
        "JSM_NAMESPACE_RANK": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_CPU_BIND": "quiet",
        "SLURM_NTASKS": "8",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_CPUS_PER_TASK": "4",
        "SRUN_CPUS_PER_TASK": "4",
        "SLURM_MEM_PER_CPU": "100",
        "SLURM_DISTRIBUTION": "cyclic",
        "SLURM_EXPORT_ENV": "NONE",
        "SLURM_OVERLAP": "1",
        "SLURM_MPI_TYPE": "pmi2",
        "SLURMD_NODENAME": "n1",
    }
    kept = {
        **USERS,
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NODELIST": "n[1-2]",
        "SLURM_TASKS_PER_NODE": "1(x2)",
        "SLURM_CONF": "/etc/slurm/slurm.conf",
        "PBS_JOBID": "7.head",
        "PBS_NODEFILE": "/var/spool/pbs/aux/7.head",
        "FLUX_URI": "local:///run/flux",
        "PATH": "/bin",
    }
    assert clean_environment({**outer, **kept}) == kept
