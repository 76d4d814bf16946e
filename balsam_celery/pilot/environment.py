"""The environment of programs, and its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from balsam_celery.launchers.shim import has_amd_gpus, masked
from balsam_celery.outer import clean_environment
from balsam_celery.pilot.attempt import Attempt
from balsam_celery.pilot.context import WorkerContext
from balsam_celery.settings import Settings

#: What the pilot's own start left there: directories of another process, switches of its libraries.
_OF_THE_PILOT = ("PWD", "OLDPWD", "SPT_NOENV", "_MP_FORK_")
#: Marks by which the local scheduler finds the processes of its jobs: programs must carry them.
_KEPT = ("BALSAM_LOCAL_JOB",)


def inherited(environ: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """What programs inherit of the pilot's environment.

    Nothing of the site's, no secret (R11), nothing of an outer MPI launcher.
    """
    secret = {settings.database.url_env, settings.redis.url_env}
    return {
        name: value
        for name, value in clean_environment(environ).items()
        if name in _KEPT
        or not (
            name in secret or name.startswith(("BALSAM_", "CELERY_", "FLOWER_", *_OF_THE_PILOT))
        )
    }


class Environments:
    """Makes the environment of each attempt of one worker.

    Args:
        context: the worker.
        nodefile: file that names the worker's own node, for tasks on one node.
        amd: GPUs are AMD's; looked up on this host unless told.
    """

    def __init__(self, context: WorkerContext, nodefile: str, *, amd: bool | None = None) -> None:
        self._base = context.pilot.environment
        self._nodefile = nodefile
        self._amd = has_amd_gpus() if amd is None else amd
        name, _, value = context.mark.partition("=")
        self._own = {name: value}

    def make(self, attempt: Attempt, files: Mapping[str, str]) -> tuple[dict[str, str], str]:
        """The variables of an attempt's program, and their digest.

        The digest leaves out what is set here for each attempt, and the marks of the job: a digest
        is there to tell whether two attempts ran in the same environment. Variables by which a
        batch system tells of the job (``SLURM_JOB_ID``) are in it: it compares attempts of one
        allocation.

        The GPU masks are those of the head node as a whole; ranks that a launcher starts get
        theirs from ``launchers.shim``.

        Args:
            files: ``BALSAM_*`` variables that name files made for this attempt.
        """
        spec = attempt.spec
        head = spec.shares[0]
        environment = dict(self._base)
        environment["OMP_NUM_THREADS"] = str(spec.threads_per_rank)
        if head.gpus:
            masks = masked([share.index for share in head.gpus], amd=self._amd)
            for name, mask in masks.items():
                if mask is None:
                    environment.pop(name, None)
                else:
                    environment[name] = mask
        environment.update(spec.environment)
        digest = _digest({k: v for k, v in environment.items() if k not in _KEPT})
        mark, _, value = attempt.mark.partition("=")
        nodes = len(spec.shares)
        environment.update(
            {
                **self._own,
                mark: value,
                "PWD": spec.work_dir,
                "BALSAM_TASK_ID": spec.id,
                "BALSAM_TASK_NAME": spec.name,
                "BALSAM_ATTEMPT": str(spec.attempt),
                "BALSAM_NODES": ",".join(share.node for share in spec.shares),
                "BALSAM_NODEFILE": self._nodefile,
                "BALSAM_NUM_NODES": str(nodes),
                "BALSAM_RANKS": str(nodes * spec.ranks_per_node),
                "BALSAM_RANKS_PER_NODE": str(spec.ranks_per_node),
                "BALSAM_CORES": ",".join(map(str, head.cores)),
                "BALSAM_GPUS": ",".join(str(share.index) for share in head.gpus),
                "BALSAM_WORK_DIR": spec.work_dir,
                **files,
            }
        )
        return environment, digest


def _digest(environment: Mapping[str, str]) -> str:
    text = "\0".join(f"{name}={environment[name]}" for name in sorted(environment))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
