"""File locks of the login node: one daemon, and one ``up`` or ``down`` at a time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from balsam_celery.errors import SiteError
from balsam_celery.site import Site

_POLL = 0.1


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock if it is free (yields whether); a process's end frees it in any case."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextmanager
def control_lock(
    site: Site, progress: Callable[[str], None], timeout: float = 120.0
) -> Iterator[None]:
    """Be the only ``up`` or ``down`` of the site.

    Raises:
        SiteError: another did not end in ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    told = False
    while True:
        with try_lock(site.local_dir / "control.lock") as got:
            if got:
                yield
                return
        if time.monotonic() > deadline:
            raise SiteError(
                f"another up or down of {site.directory} has not ended: try again later"
            )
        if not told:
            progress("waiting for another up or down of this site")
            told = True
        time.sleep(_POLL)
