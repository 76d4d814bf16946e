"""From an attempt to the ranks that a launcher starts.  Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from balsam_celery import brands
from balsam_celery.errors import SettingsError
from balsam_celery.launchers import Launcher, Ranks
from balsam_celery.launchers.shim import divide, in_front
from balsam_celery.pilot.attempt import rank_mark
from balsam_celery.wire import TaskSpec

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: What each node says of itself, and another's ranks must not hear.
_OF_THE_HOST = ("HOST", "PBS_", "PWD", "SLURM", "SSH_", "TMPDIR", "XDG_")


def needs_launcher(spec: TaskSpec) -> bool:
    """Tell whether ``spec`` goes through a launcher: several ranks, or one asked for by name.

    A serial program, and any whose launcher is ``none``, is executed directly: it finds its nodes
    in ``BALSAM_NODES`` and may start more processes itself.
    """
    if spec.launcher is not None:
        return spec.launcher != "none"
    return len(spec.shares) * spec.ranks_per_node > 1


def make_ranks(
    spec: TaskSpec,
    launcher: Launcher,
    *,
    virtual: bool,
    pinned: Mapping[str, bool],
    exports: Collection[str],
    root: bool,
) -> Ranks:
    """The ranks of ``spec``, each behind the shim that binds it.

    Args:
        launcher: what will start them.
        virtual: the nodes are parts of this machine.
        pinned: names of nodes whose core ids are real and the node's alone.
        exports: names of the variables of the program's environment.
        root: the caller is root.

    Raises:
        SettingsError: this launcher knows no virtual nodes.
    """
    if virtual and not launcher.virtual:
        raise SettingsError(
            f"launcher {launcher.kind!r} knows nothing of the virtual nodes of one machine: "
            "make launcher.kind 'mpich' or 'openmpi', or the scheduler a batch system"
        )
    pin = spec.pin and all(pinned.get(share.node, False) for share in spec.shares)
    places = {share.node: divide(share, spec.ranks_per_node, pin=pin) for share in spec.shares}
    brand = f"{spec.id}/{spec.attempt}"
    head = spec.shares[0]
    one_host = virtual or len(spec.shares) == 1
    return Ranks(
        argv=in_front(
            spec.argv,
            places,
            mark=rank_mark(brand),
            brand=brands.value(brand),
            by_rank=virtual and len(places) > 1,
            own=spec.environment,
        ),
        nodes=tuple(places),
        ranks_per_node=spec.ranks_per_node,
        cores_per_rank=max(
            1, min(len(share.cores) for share in spec.shares) // spec.ranks_per_node
        ),
        gpus_per_rank=sum(share.fraction for share in head.gpus) / spec.ranks_per_node,
        exports=() if one_host else exported(exports),
        name=step_name(spec.id, spec.attempt),
        one_host=one_host,
        root=root,
    )


def exported(names: Iterable[str]) -> tuple[str, ...]:
    """Those variables that ranks on other hosts need too, in order."""
    return tuple(
        sorted(
            name
            for name in names
            if _NAME.fullmatch(name) and name != "_" and not name.startswith(_OF_THE_HOST)
        )
    )


def step_name(task: str, attempt: int) -> str:
    """What the job step of an attempt's ranks is called."""
    plain = re.sub(r"[^A-Za-z0-9.-]", "-", task)
    if plain != task:
        plain += f"-{brands.attempt_number(task)}"  # or two ids could become one name
    return f"{plain}.{attempt}"
