"""``mpiexec`` of MPICH and of Intel MPI: the process manager hydra, in two dialects."""

from __future__ import annotations

import re

from balsam_celery.launchers import steps
from balsam_celery.launchers.base import Launch, Ranks
from balsam_celery.launchers.mpiexec import Mpiexec

#: ``control_cb`` of hydra when the connection to a proxy breaks.
_LOST = re.compile(r"connection to proxy \d+ at host (\S+) failed")


class Hydra(Mpiexec):
    """``mpiexec`` of MPICH.

    Options: ``mpiexec -help`` of MPICH 5.0; variables: ``src/pm/hydra/lib/tools/bootstrap``.
    """

    kind = "mpich"

    def launch(self, ranks: Ranks) -> Launch:
        argv = [self.path, "-rmk", "user", "-bind-to", "none", *_passed_on(ranks)]
        environment: dict[str, str] = {}
        files: dict[str, str] = {}
        step = ""
        if ranks.survives:
            # other ranks of its node get SIGUSR1 when one is lost, those of other nodes nothing
            argv.append("-disable-auto-cleanup")
        if ranks.one_host:
            # one proxy for each name, and no name is looked up: MPI sees as many nodes as there
            # are virtual ones, with ranks that share memory only within theirs
            argv += ["-launcher", "fork"]
        elif self.remote.slurm:
            argv += ["-launcher", "slurm"]
            environment["HYDRA_LAUNCHER_EXTRA_ARGS"] = _step(ranks)
            step = ranks.name
        elif self.remote.tmrsh:
            (shell, environment["HYDRA_LAUNCHER_EXTRA_ARGS"]), files = self.remote.agent(ranks)
            argv += ["-launcher", "rsh", "-launcher-exec", shell]
            # also on its own node ranks are to be the batch system's processes, as on the others
            environment["HYDRA_LAUNCHER_AUTOFORK"] = "0"
        else:
            argv += ["-launcher", "ssh"]
        argv += ["-hosts", ",".join(ranks.nodes), "-ppn", str(ranks.ranks_per_node)]
        argv += ["-n", str(ranks.count), *self.options, *ranks.argv]
        return Launch(tuple(argv), environment, step, files)

    def lost_node(self, line: str) -> str | None:
        found = _LOST.search(line)
        return found[1] if found else None


class IntelHydra(Hydra):
    """``mpiexec`` of Intel MPI.

    Options and variables: Intel MPI Library Developer Reference for Linux 2021.15, "Global Hydra
    Options", "Hydra Environment Variables", "Environment Variables for Process Pinning". Unlike
    MPICH's it is not tried out here: only its documentation can be had freely.
    """

    kind = "intelmpi"

    def launch(self, ranks: Ranks) -> Launch:
        argv = [self.path]
        environment = {
            "I_MPI_PIN": "off",
            # or the batch system's ranks per node overrule ours
            "I_MPI_JOB_RESPECT_PROCESS_PLACEMENT": "off",
        }
        files: dict[str, str] = {}
        step = ""
        hosts, per_node = ranks.nodes, ranks.ranks_per_node
        if ranks.survives:
            environment["I_MPI_FAULT_CONTINUE"] = "on"
        if ranks.one_host:
            argv += ["-bootstrap", "fork"]
            hosts, per_node = ("localhost",), ranks.count  # it looks names up
        elif self.remote.slurm:
            argv += ["-bootstrap", "slurm"]
            environment["I_MPI_HYDRA_BOOTSTRAP_EXEC_EXTRA_ARGS"] = _step(ranks)
            step = ranks.name
        elif self.remote.tmrsh:
            (shell, script), files = self.remote.agent(ranks)
            argv += ["-bootstrap", "rsh", "-bootstrap-exec", shell]
            environment["I_MPI_HYDRA_BOOTSTRAP_EXEC_EXTRA_ARGS"] = script
            environment["I_MPI_HYDRA_BOOTSTRAP_AUTOFORK"] = "0"
        else:
            argv += ["-bootstrap", "ssh"]
        argv += [*_passed_on(ranks), "-hosts", ",".join(hosts), "-ppn", str(per_node)]
        argv += ["-n", str(ranks.count), *self.options, *ranks.argv]
        return Launch(tuple(argv), environment, step, files)


def _passed_on(ranks: Ranks) -> tuple[str, ...]:
    """Which variables go from here to ranks; what is not named is that of their own host.

    Each proxy adds these to the environment that it was started in, so ranks on other hosts keep
    their own ``TMPDIR``, ``HOSTNAME`` and ``PBS_NODENUM``.
    """
    if ranks.one_host or not ranks.exports:
        return ("-genvall",)
    return ("-genvlist", ",".join(ranks.exports))


def _step(ranks: Ranks) -> str:
    """Options for the ``srun`` that starts hydra's proxies, which need no PMI themselves."""
    return " ".join([*steps.step_options(ranks), "--mpi=none"])
