"""Who holds a lease: a name that tells, on the same machine, whether its process still lives."""

from __future__ import annotations

import secrets
import socket

from balsam_celery import procs


def new_holder() -> str:
    """A name unique in the world and time, of this process; it may have several."""
    own = procs.own_identity()
    parts = (socket.gethostname(), own.pid, own.start_time, own.boot_id, secrets.token_hex(4))
    return ":".join(map(str, parts))


def is_dead(holder: str) -> bool:
    """The process that took this name has ended for certain.

    Never of a process of another machine, or of an earlier start of this one: its lease runs out.
    """
    host, *rest = holder.split(":")
    if host != socket.gethostname() or len(rest) != 4 or rest[2] != procs.boot_id():
        return False
    try:
        process = procs.Identity(int(rest[0]), int(rest[1]), rest[2])
    except ValueError:
        return False
    return not procs.alive(process)
