"""Reading a program's output files, which lie on a file system shared with other machines.

A program may do anything in its work directory, and the file system may be away: nothing here
blocks on a pipe, follows a link, or takes a file for complete that cannot be read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

_CHUNK = 1 << 16


class Unreadable(Exception):
    """The file cannot be read here; the message says why."""


def open_output(path: Path) -> int | None:
    """A descriptor of the file, ``None`` when there is none (an empty output leaves no file).

    Raises:
        Unreadable: no work directory, no permission, no plain file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise Unreadable(f"{path.parent} is not there") from None
        return None
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable(f"{path} is not a plain file")
    return descriptor


def chunks(path: Path, offset: int = 0) -> Iterator[bytes]:
    """The file's bytes from ``offset`` on.

    The file is opened anew at each call: on NFS that is what shows another machine's writes.

    Raises:
        Unreadable: it cannot be read here.
    """
    descriptor = open_output(path)
    if descriptor is None:
        return
    try:
        os.lseek(descriptor, offset, os.SEEK_SET)
        while chunk := os.read(descriptor, _CHUNK):
            yield chunk
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def start_of_last_lines(path: Path, lines: int | None) -> int:
    """Offset of the file's last ``lines`` lines; 0 for ``None``.

    It is read backwards, so that its size does not matter.

    Raises:
        Unreadable: it cannot be read here.
    """
    descriptor = open_output(path) if lines is not None else None
    if descriptor is None or lines is None:
        return 0
    try:
        return _scan_back(descriptor, lines)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _scan_back(descriptor: int, lines: int) -> int:
    end = position = os.fstat(descriptor).st_size
    if lines == 0:
        return end
    while position > 0:
        start = max(0, position - _CHUNK)
        block = os.pread(descriptor, position - start, start)
        # a newline at the very end closes the last line and starts none
        cut = len(block) - 1 if position == end and block.endswith(b"\n") else len(block)
        while (cut := block.rfind(b"\n", 0, cut)) >= 0:
            lines -= 1
            if lines == 0:
                return start + cut + 1
        position = start
    return 0


def last_lines_of(text: str, lines: int | None) -> str:
    """The last ``lines`` lines of ``text``; all of it for ``None``."""
    if lines is None:
        return text
    return "".join(text.splitlines(keepends=True)[-lines:]) if lines else ""
