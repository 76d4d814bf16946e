"""A program's stdout and stderr: files in its work directory, and their tails."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)

NAMES = ("stdout", "stderr")
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


class Output:
    """The two files of one attempt, open while its program runs.

    Args:
        directory: where they are.
        append: what an earlier attempt has written there stays.

    Raises (when made):
        OSError: a file cannot be made.
    """

    def __init__(self, directory: Path, *, append: bool = False) -> None:
        self._paths = [f"{directory}/{name}" for name in NAMES]
        self.files: list[int] = []
        try:
            for path in self._paths:
                flags = _FLAGS if append else _FLAGS | os.O_TRUNC
                self.files.append(os.open(path, flags, 0o666))
        except OSError:
            self.close(0)
            raise

    def close(self, length: int) -> tuple[str, str]:
        """Close both, remove those that stayed empty, and return their last ``length`` bytes.

        A tail is text whatever the program wrote: what is not UTF-8, and NUL, which SQL text
        cannot hold, become replacement characters. The program has ended, however its file system
        fares: a file of which that cannot tell any more has no tail.
        """
        tails = ["", ""]
        files, self.files = self.files, []
        for index, (file, path) in enumerate(zip(files, self._paths, strict=False)):
            try:
                size = _close(file)
            except OSError as error:
                logger.warning("%s: %s: its end is not known", path, error.strerror)
                continue
            if size == 0:
                with contextlib.suppress(OSError):  # removed, or replaced, by the program
                    os.unlink(path)  # noqa: PTH108 - one call for each of thousands a second
            elif length:
                tails[index] = tail(path, length)
        return tails[0], tails[1]


def _close(file: int) -> int:
    """Close a file, whatever comes of it; returns its size in bytes."""
    try:
        return os.fstat(file).st_size
    finally:
        os.close(file)


def tail(path: str, length: int) -> str:
    """The last ``length`` bytes of a file as text; ``""`` when it cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - as above
            size = os.fstat(file.fileno()).st_size
            content = os.pread(file.fileno(), length, max(0, size - length))
    except OSError:
        return ""
    return content.decode(errors="replace").replace("\0", "�")
