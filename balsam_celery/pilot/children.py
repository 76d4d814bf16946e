"""Children of the pilot's processes that answer by a pipe."""

from __future__ import annotations

import os


def fork_with_pipe() -> tuple[int, int, int]:
    """Fork; returns the pid (0 in the child) and both ends of a pipe, to read from and to write to.

    Neither end blocks, and both are open in both processes.

    Raises:
        OSError: there is no room for a process or a descriptor; nothing is left open.
    """
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.fork(), read, write
    except OSError:
        os.close(read)
        os.close(write)
        raise
