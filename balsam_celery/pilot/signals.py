"""Signals as something to wait for beside sockets: signalfd(2), and the one call that waits."""

from __future__ import annotations

import ctypes
import os
import select
import signal
from collections.abc import Collection, Mapping

#: What batch systems warn by, some of them every process of a job. A pilot's main process drains
#: then; all others have to outlive it, by a handler: what is ignored would be so in programs too.
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
#: From the keeper of its node: a worker is to stop alone, or with its pilot. None else sends them.
ALONE, TOGETHER = signal.SIGRTMIN + 1, signal.SIGRTMIN + 2
#: Of the kernel's ``signalfd_siginfo``, which begins with the signal's number.
_INFO_SIZE = 128
#: glibc's and musl's ``sigset_t``: 1024 bits.
_SET_SIZE = 128


class Signals:
    """Signals that stay blocked, in children too, and are read from a descriptor.

    Nothing is interrupted, no handler runs, and a child that is forked at any moment has the same
    blocked signals until it unblocks them.

    Raises (when made):
        OSError: the kernel refused.
    """

    def __init__(self, numbers: Collection[int]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        libc = ctypes.CDLL(None, use_errno=True)
        mask = ctypes.create_string_buffer(_SET_SIZE)
        libc.sigemptyset(mask)
        for number in numbers:
            libc.sigaddset(mask, int(number))
        self._file: int = libc.signalfd(-1, mask, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._file < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))

    def fileno(self) -> int:
        """The descriptor; readable when a signal has come."""
        return self._file

    def take(self) -> set[int]:
        """Numbers of the signals that have come."""
        taken: set[int] = set()
        while True:
            try:
                read = os.read(self._file, 32 * _INFO_SIZE)
            except BlockingIOError:
                return taken
            for start in range(0, len(read), _INFO_SIZE):
                taken.add(int.from_bytes(read[start : start + 4], "little"))


def outlive_warnings() -> None:
    """From now on :data:`WARNINGS` do nothing to this process; for its main thread."""
    for number in WARNINGS:
        signal.signal(number, noted)


def noted(number: int, frame: object) -> None:
    """A handler that does nothing; a wake-up pipe tells of the signal."""


def wait(files: Mapping[int, bool], timeout: float) -> set[int]:
    """Wait for any of ``files``, ``timeout`` seconds at the most; returns those that are ready.

    Args:
        files: descriptors, each with whether it is to be written too.
    """
    poll = select.poll()
    for file, writing in files.items():
        poll.register(file, select.POLLIN | (select.POLLOUT if writing else 0))
    return {file for file, _ in poll.poll(max(0.0, timeout) * 1000)}
