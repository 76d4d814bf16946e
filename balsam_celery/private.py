"""Files and directories that are for their owner alone (R11)."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from balsam_celery.errors import SiteError


def read_secret(path: Path) -> str:
    """Content of a file that only we may read.

    Raises:
        SiteError: it is missing, not ours, open to others, or empty.
    """
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            text = file.read().strip()
    except OSError as error:
        raise SiteError(f"cannot read {path}: {error.strerror}") from None
    if status.st_uid != os.geteuid():
        raise SiteError(f"{path} belongs to user {status.st_uid}, not to you")
    if status.st_mode & 0o077:
        raise SiteError(f"{path} is open to others: chmod 600 {path}")
    if not text:
        raise SiteError(f"{path} is empty")
    return text


def private_dir(path: Path) -> Path:
    """Make the directory (0700) where it is missing; it must be ours and closed to others.

    Raises:
        SiteError: it cannot be made, belongs to another user, or is open to others.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        link = path.lstat()
    except OSError as error:
        raise SiteError(f"cannot make {path}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise SiteError(f"{path} is not a directory")
    # a link that another user laid, as /var/tmp allows, leads where they want
    for owner in (status.st_uid, link.st_uid):
        if owner != os.geteuid():
            raise SiteError(f"{path} belongs to user {owner}, not to you")
    if status.st_mode & 0o077:
        raise SiteError(f"{path} is open to others: chmod 700 {path}")
    return path


def write_private(path: Path, text: str) -> None:
    """Write a file (0600) as a whole: a reader sees the old text or the new."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise SiteError(f"cannot write {path}: {error.strerror}") from None
