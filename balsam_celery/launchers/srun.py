"""``srun`` of Slurm: ranks as a job step.

Options: srun(1) of Slurm 22.05.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from balsam_celery.launchers import steps
from balsam_celery.launchers.base import Launch, Launcher, Ranks

#: src/api/step_launch.c of Slurm, ``_node_fail_handler``.
_LOST = re.compile(r"srun: error: Node failure on (\S+)")

#: What it says, on Slurm 22.05, while the controller or a node's slurmd is away. A controller that
#: has just come back takes the job it is in for one that is pending, or its nodes for ones without
#: memory.
_NOT_STARTED = re.compile(
    r"^srun: error: (Unable to confirm allocation for job .*|Unable to create step for job"
    r".*(?:Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted"
    r"|Unexpected missing socket error|Memory required by task is not available"
    r"|Required node not available).*"
    r"|Application launch failed: (?:Communication connection failure|Socket timed out).*)$",
    re.MULTILINE,
)
#: What it says of ranks that have run; the words above are then those of a program.
_RAN = re.compile(r"^srun: error: \S+: tasks? \S+: ", re.MULTILINE)


class Srun(Launcher):
    """``srun``.

    A signal to it is no way to end ranks gently: TERM makes it kill them at once, and KILL leaves
    its step behind. So ranks are signalled themselves, and then the step is ended by its name.

    Args:
        mpi: which PMI it gives to ranks (``--mpi``); empty: Slurm's default.
    """

    kind = "srun"
    stays = True
    vouches = True

    def __init__(self, path: str, options: tuple[str, ...] = (), mpi: str = "") -> None:
        super().__init__(path, options)
        self.mpi = mpi

    def launch(self, ranks: Ranks) -> Launch:
        argv = [
            self.path,
            *steps.step_options(ranks),
            f"--nodes={len(ranks.nodes)}",
            f"--ntasks={ranks.count}",
            f"--ntasks-per-node={ranks.ranks_per_node}",
            f"--nodelist={','.join(ranks.nodes)}",
            "--distribution=block",
            "--input=none",
        ]
        if not ranks.survives:
            argv.append("--kill-on-bad-exit=1")
        if self.mpi:
            argv.append(f"--mpi={self.mpi}")
        return Launch((*argv, *self.options, *ranks.argv), step=ranks.name)

    def lost_node(self, line: str) -> str | None:
        found = _LOST.search(line)
        return found[1] if found else None

    def not_started(self, output: str) -> str:
        found = None if _RAN.search(output) else _NOT_STARTED.search(output)
        return f"srun: {found[1]}" if found else ""

    def end_step(self, name: str, environment: Mapping[str, str]) -> bool:
        return steps.end_step(name, environment)
