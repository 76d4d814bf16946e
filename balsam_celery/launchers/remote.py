"""How an ``mpiexec`` reaches the other nodes of an allocation: Slurm, PBS, or ``ssh``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from balsam_celery.schedulers import pbs_commands

_SCRIPT = Path(__file__).with_name("tmrsh.sh")


@dataclass(frozen=True, slots=True)
class Remote:
    """What starts a process on another node.

    Attributes:
        slurm: job steps, in the allocation of this environment.
        tmrsh: path of PBS's ``pbs_tmrsh``; empty when this is no PBS job, or it has none.
    """

    slurm: bool = False
    tmrsh: str = ""

    @property
    def agent(self) -> tuple[str, ...]:
        """A command that is used like ``rsh``: ``AGENT… HOST TEXT…``, by way of ``pbs_tmrsh``."""
        return ("/bin/sh", str(_SCRIPT), self.tmrsh)


def find_remote(environ: Mapping[str, str]) -> Remote:
    """What the environment of this process offers."""
    if "SLURM_JOB_ID" in environ:
        return Remote(slurm=True)
    if "PBS_JOBID" in environ:
        tmrsh = pbs_commands.find("pbs_tmrsh", environ)
        return Remote(tmrsh=tmrsh if os.path.isabs(tmrsh) else "")  # noqa: PTH117 - text
    return Remote()
