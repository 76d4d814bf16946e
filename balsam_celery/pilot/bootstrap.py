"""MPI, for the start of a pilot on its nodes and for nothing else.

One rank reads what all keepers need and broadcasts it, so that a thousand nodes do not read the
same files; MPI is finalized before any program runs. Plain bytes travel: no pickle (R10).
"""

from __future__ import annotations

import importlib
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

from balsam_celery.errors import BalsamError

_NAME = 256  # bytes for a node's name


class BootstrapError(BalsamError):
    """The nodes cannot be brought together; one line says why and what would mend it."""


def share(count: int, read: Callable[[], str], place: Callable[[str, int], str]) -> tuple[str, str]:
    """Bring all nodes together; called by one rank on each, before which nothing may use MPI.

    Args:
        count: nodes that there should be.
        read: reads what is to be known; called by the first rank only.
        place: from that text and the rank's number to the name of its node.

    Returns:
        What was read, and the name of this node.

    Raises:
        BootstrapError: MPI cannot be used, the launcher started something else than one rank on
            each node, or ``read`` failed.
    """
    mpi = _load()
    mpi.Init()
    try:
        world = mpi.COMM_WORLD
        if world.size != count:
            raise BootstrapError(
                f"the launcher started communicators of size {world.size}, not {count}: it does not"
                " belong to the MPI library of mpi4py; choose another [launcher] kind or mpi, or"
                " set MPI4PY_MPIABI or MPI4PY_LIBMPI in [scheduler] setup"
            )
        text = _broadcast(mpi, read)
        name = place(text, world.rank)
        names = bytearray(count * _NAME)
        world.Allgather(bytearray(name.encode().ljust(_NAME)), names)
        found = [names[n * _NAME : (n + 1) * _NAME].decode().strip() for n in range(count)]
        twice = [name for name, times in Counter(found).items() if times > 1]
        if twice:
            raise BootstrapError(
                f"the launcher started several ranks on {', '.join(sorted(twice))}, and not one on"
                " each node: look at [launcher] options"
            )
        return text, name
    finally:
        mpi.Finalize()


def _load() -> Any:
    """mpi4py's MPI, loaded only now: after the keeper was forked, and only where it is needed."""
    try:
        package: Any = importlib.import_module("mpi4py")
        package.rc.initialize = False
        package.rc.finalize = False
        package.rc.threads = False
        return importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise BootstrapError(
            f"mpi4py cannot be used on {socket.gethostname()}: {reason}; install mpi4py and an MPI"
            " library for this Python, or name one by MPI4PY_LIBMPI in [scheduler] setup"
        ) from None


def _broadcast(mpi: Any, read: Callable[[], str]) -> str:
    """What the first rank reads, on all of them; its failure too."""
    world = mpi.COMM_WORLD
    content, failure = b"", None
    if world.rank == 0:
        try:
            content = b"+" + read().encode()
        except (BalsamError, OSError, ValueError) as error:
            failure = str(error)
            content = b"-" + failure.encode()
    length = bytearray(len(content).to_bytes(8, "little"))
    world.Bcast(length, root=0)
    buffer = bytearray(content) or bytearray(int.from_bytes(length, "little"))
    world.Bcast(buffer, root=0)
    if buffer[:1] != b"+":
        raise BootstrapError(buffer[1:].decode())
    return buffer[1:].decode()
