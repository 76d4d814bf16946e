"""Reads outboxes from the file system of the site, which may hang.

A thread does each look, so that a server of files that is away holds up nothing but what is in it.
One that comes back in time loses no outcome; else the directory is named in the reason (R5).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from balsam_celery.outbox import read_outbox
from balsam_celery.wire import Ended

log = logging.getLogger(__name__)

#: Seconds that one call waits for a file system.
_WAIT = 2.0
#: Seconds after which what is in it is given up: servers of files are away for a minute or two
#: when another takes over.
PATIENCE = 120.0

#: Outcomes, and what could not be read, and why.
Found = tuple[list[Ended], list[str]]


class Hangs(Exception):
    """The file system has not answered yet; ask again later."""


def read(directory: Path) -> Found:
    """All that the outboxes of a pilot's directory hold; blocks for as long as the files do."""
    outcomes: list[Ended] = []
    unread = []
    try:
        files = sorted(path for path in directory.iterdir() if path.suffix == ".outbox")
    except OSError as error:
        return [], [f"{directory}: {error.strerror}"]
    for path in files:
        try:
            outcomes += read_outbox(path)
        except OSError as error:
            unread.append(f"{path}: {error.strerror}")
    return outcomes, unread


class _Look(threading.Thread):
    def __init__(self, look: Callable[[], Found]) -> None:
        super().__init__(name="balsam-outboxes", daemon=True)
        self._look = look
        self.begun = time.monotonic()
        self.found: Found | None = None
        self.fault: Exception | None = None

    def run(self) -> None:
        try:
            self.found = self._look()
        except Exception as error:  # noqa: BLE001 - raised where it was asked for
            self.fault = error


class Patient:
    """Reads with patience; one for the life of a service process, called by one thread at a time.

    Args:
        wait: seconds that a call may take.
        patience: seconds after which a directory that has not answered is given up.
    """

    def __init__(self, wait: float = _WAIT, patience: float = PATIENCE) -> None:
        self._wait = wait
        self._patience = patience
        self._looks: dict[Path, _Look] = {}

    def read(self, directory: Path) -> Found:
        """As :func:`read`.

        Raises:
            Hangs: nothing has come yet; the look goes on.
        """
        look = self._looks.get(directory)
        if look is None:
            look = self._looks[directory] = _Look(lambda: read(directory))
            look.start()
            look.join(self._wait)
            if look.is_alive():
                log.warning("the file system does not answer: %s", directory)
        if look.is_alive():
            if time.monotonic() < look.begun + self._patience:
                raise Hangs(f"the file system does not answer: {directory}")
            del self._looks[directory]
            return [], [f"{directory}: the file system does not answer"]
        del self._looks[directory]
        if look.found is None:
            raise look.fault or RuntimeError("a look without an answer")
        return look.found
