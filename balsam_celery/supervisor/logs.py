"""Logs of the site's processes, rotated by copy and truncation.

The processes write to a descriptor that they inherit, in append mode, so a log can be cut off
without a word to its writer. What is written between copy and cut is lost, a few lines at most.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from balsam_celery.site import Site


def log_path(site: Site, name: str) -> Path:
    """The log of the process ``name``."""
    return site.log_dir / f"{name}.log"


def open_log(path: Path) -> int:
    """A descriptor to append to the log (0600); the caller closes it."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def rotate(path: Path, max_bytes: int, backups: int) -> bool:
    """Rotate the log if it is longer than ``max_bytes``; tell whether it was.

    The newest of at most ``backups`` older pieces is ``<path>.1``.
    """
    if max_bytes <= 0 or not path.exists() or path.stat().st_size <= max_bytes:
        return False
    for number in range(backups, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        newer = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        if number == 1:
            scratch = path.with_name(f".{path.name}.copy")
            shutil.copyfile(newer, scratch, follow_symlinks=False)
            scratch.chmod(0o600)
            scratch.replace(older)
        elif newer.exists():
            newer.replace(older)
    os.truncate(path, 0)
    return True


def tail(path: Path, lines: int = 3, size: int = 4096) -> str:
    """The last non-empty lines of a log, joined by `` | ``; ``""`` when there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - size))
        text = file.read().decode(errors="replace")
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])
