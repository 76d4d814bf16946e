"""``mpirun`` of Open MPI: 4.x with its own runtime, from 5.0 on with PRRTE."""

from __future__ import annotations

import re

from balsam_celery.launchers import steps
from balsam_celery.launchers.base import Launch, Ranks
from balsam_celery.launchers.mpiexec import Mpiexec
from balsam_celery.launchers.remote import Remote

#: help-errmgr-base.txt of Open MPI and PRRTE, [node-died]: "… Remote daemon: [[1,0],2] on node n3".
_LOST = re.compile(r"Remote daemon:? +\S+ on node (\S+)")


class OpenMpi(Mpiexec):
    """``mpirun``.

    Options: mpirun(1) of Open MPI 4.1, ``ompi_info --all``; for 5.0 prterun(1) of PRRTE 3.

    Args:
        major: Open MPI's first number.
    """

    kind = "openmpi"

    def __init__(
        self,
        path: str,
        options: tuple[str, ...] = (),
        remote: Remote | None = None,
        major: int = 4,
    ) -> None:
        super().__init__(path, options, remote)
        self.major = major

    def launch(self, ranks: Ranks) -> Launch:
        slots = [f"{node}:{ranks.ranks_per_node}" for node in ranks.nodes]
        if ranks.one_host:
            slots = [f"localhost:{ranks.count}"]  # it looks names up, and virtual ones are unknown
        argv = [self.path, "--host", ",".join(slots), "--bind-to", "none"]
        mapping = "" if ranks.one_host else f"ppr:{ranks.ranks_per_node}:node"
        if self.major >= 5:
            argv += ["--map-by", f"{mapping}:OVERSUBSCRIBE"]
        else:
            argv.append("--oversubscribe")
            argv += ["--map-by", mapping] if mapping else []
        if ranks.root:
            argv.append("--allow-run-as-root")
        # without this, ranks that wait for each other on too few cores spin instead of yielding
        environment = {"OMPI_MCA_mpi_yield_when_idle": "1"}
        files: dict[str, str] = {}
        step = ""
        if ranks.survives:
            argv += self._survival()
        if not ranks.one_host:
            bootstrap, files = self._bootstrap(ranks)
            environment.update(bootstrap)
            step = ranks.name if self.remote.slurm else ""
            for name in ranks.exports:
                argv += ["-x", name]
        argv += ["-n", str(ranks.count), *self.options, *ranks.argv]
        return Launch(tuple(argv), environment, step, files)

    def _survival(self) -> list[str]:
        if self.major >= 5:
            return ["--runtime-options", "recoverable,continuous"]
        return ["--enable-recovery", "--mca", "orte_abort_on_non_zero_status", "0"]

    def _bootstrap(self, ranks: Ranks) -> tuple[dict[str, str], dict[str, str]]:
        """Settings for the start of its daemons, as variables: they may hold blanks; and files."""
        prefix, rsh = ("PRTE_MCA_", "ssh") if self.major >= 5 else ("OMPI_MCA_", "rsh")
        if self.remote.slurm:
            # its daemons need no PMI themselves
            options = " ".join([*steps.step_options(ranks), "--mpi=none"])
            return {f"{prefix}plm_slurm_args": options}, {}
        if self.remote.tmrsh:
            agent, files = self.remote.agent(ranks)
            settings = {
                f"{prefix}plm_{rsh}_agent": " ".join(agent),
                # only processes of the job itself may use the task manager, not those that it made
                f"{prefix}plm_{rsh}_no_tree_spawn": "1",
            }
            return settings, files
        return {}, {}

    def lost_node(self, line: str) -> str | None:
        found = _LOST.search(line)
        return found[1] if found else None
