"""What the families of ``mpiexec`` have in common: daemons of their own on each node."""

from __future__ import annotations

from collections.abc import Mapping

from balsam_celery.launchers import steps
from balsam_celery.launchers.base import Launcher
from balsam_celery.launchers.remote import Remote


class Mpiexec(Launcher):
    """A launcher that starts its daemons by ``remote``.

    Args:
        path: of the program.
        options: more arguments, before the ranks' program.
        remote: what starts a process on another node; ``None``: ``ssh``.
    """

    virtual = True

    def __init__(
        self, path: str, options: tuple[str, ...] = (), remote: Remote | None = None
    ) -> None:
        super().__init__(path, options)
        self.remote = remote or Remote()
        # the daemons are a job step under Slurm, and what ranks leave behind ends with that
        self.stays = self.remote.slurm

    def end_step(self, name: str, environment: Mapping[str, str]) -> bool:
        return steps.end_step(name, environment) if self.remote.slurm else True
