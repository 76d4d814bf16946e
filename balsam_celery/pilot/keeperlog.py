"""A keeper's log, written to its file by a process of its own.

The file lies on the file system that the nodes share, which may hang with the network. A keeper
that is cut off must not hang with it: it has to end what runs on its node. So it writes into a
pipe and never waits for that; what does not fit because nobody takes it is lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path

from balsam_celery.pilot.worker import log_by

#: Seconds that the last lines have to reach the file.
_LAST_WITHIN = 2.0
_POLL = 0.02


class KeeperLog:
    """Takes what this process logs, and what it and its children print.

    Make it while the process has nothing that the one which writes must not share.

    Attributes:
        pid: of that one, a child of this process.
    """

    def __init__(self, path: Path, level: str) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(writer)
            os._exit(_copy(reader, path))
        os.close(reader)
        os.set_blocking(writer, False)
        _print_to(writer)
        log_by(logging.StreamHandler(_Unwaiting()), level)

    def close(self) -> None:
        """Let the last lines be written, if that is soon."""
        logging.shutdown()
        sys.stderr.flush()
        _print_to(os.open(os.devnull, os.O_WRONLY))
        deadline = time.monotonic() + _LAST_WITHIN
        try:
            while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    os.kill(self.pid, signal.SIGKILL)
                    return
                time.sleep(_POLL)
        except ChildProcessError:
            return  # it has been reaped


class _Unwaiting:
    """The standard error output, without what that does not take at once."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))


def _print_to(file: int) -> None:
    for standard in (1, 2):
        os.dup2(file, standard)
    os.close(file)


def _copy(reader: int, path: Path) -> int:
    """The life of the process that writes; it ends with the last of those that print."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        with path.open("ab", buffering=0) as file:
            while data := os.read(reader, 65536):
                file.write(data)
    except OSError:
        return 1
    return 0
