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

from balsam_celery.pilot.signals import WARNINGS
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
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, *WARNINGS):
        signal.signal(number, signal.SIG_IGN)
    file = _File(path)
    while data := os.read(reader, 65536):
        file.write(data)
    return 0


class _File:
    """Written to whenever that is possible; a full disk is not the end of a log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._lost, self._why = 0, ""
        with contextlib.suppress(OSError):
            self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o666)

    def write(self, data: bytes) -> None:
        """Append lines, after a word on those that could not be written before."""
        note = b""
        if self._lost:
            note = f"\nlines that could not be written: {self._lost} ({self._why})\n".encode()
        left = note + data
        try:
            if self._file < 0:
                self._open()
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            if len(left) <= len(data):
                self._lost = 0  # the word on them is there
            self._lost += left[-len(data) :].count(b"\n")
            self._why = error.strerror or str(error)
            self._close()  # a file of a server that came back is to be opened again
        else:
            self._lost = 0

    def _close(self) -> None:
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
        self._file = -1
