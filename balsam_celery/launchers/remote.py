"""How an ``mpiexec`` reaches the other nodes of an allocation: Slurm, PBS, or ``ssh``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from balsam_celery.launchers.base import Ranks
from balsam_celery.schedulers import pbs_commands

#: rsh by way of PBS's task manager:  /bin/sh FILE HOST TEXT...
#: rsh and ssh give the words of a command, joined, to a shell on the host, and launchers count on
#: that: hydra puts its proxy's path in quotes, Open MPI sets variables first. pbs_tmrsh executes
#: the words as they are, so the shell is named here.
_RSH = """\
host=$1
shift
exec %s "$host" /bin/sh -c "$*"
"""


@dataclass(frozen=True, slots=True)
class Remote:
    """What starts a process on another node.

    Attributes:
        slurm: job steps, in the allocation of this environment.
        tmrsh: path of PBS's ``pbs_tmrsh``; empty when this is no PBS job, or it has none.
    """

    slurm: bool = False
    tmrsh: str = ""

    def agent(self, ranks: Ranks) -> tuple[tuple[str, ...], dict[str, str]]:
        """A command that is used like ``rsh``, and the file that it is: ``AGENT… HOST TEXT…``.

        Launchers split it at blanks, and know no quotes: so it is named from its own directory.
        """
        name = ranks.file("rsh")
        return ("/bin/sh", name), {name: _RSH % shlex.quote(self.tmrsh)}


def find_remote(environ: Mapping[str, str]) -> Remote:
    """What the environment of this process offers."""
    if "SLURM_JOB_ID" in environ:
        return Remote(slurm=True)
    if "PBS_JOBID" in environ:
        tmrsh = pbs_commands.find("pbs_tmrsh", environ)
        return Remote(tmrsh=tmrsh if os.path.isabs(tmrsh) else "")  # noqa: PTH117 - text
    return Remote()
