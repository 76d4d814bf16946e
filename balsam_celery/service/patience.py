"""Looks into the file system of the site, which may hang.

A thread does each look, so that a server of files that is away holds up nothing but what is in it.
One that comes back in time loses nothing; else its directory is named in the reason (R5).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from balsam_celery.service import outboxes

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds that one call waits for a file system.
_WAIT = 2.0
#: Seconds after which what is in it is given up: servers of files are away for a minute or two
#: when another takes over.
PATIENCE = 120.0


class Hangs(Exception):
    """The file system has not answered yet; ask again later."""


class _Look(threading.Thread):
    def __init__(self, look: Callable[[], Any]) -> None:
        super().__init__(name="balsam-patience", daemon=True)
        self._look = look
        self.begun = time.monotonic()
        self.found: Any = None
        self.fault: Exception | None = None

    def run(self) -> None:
        try:
            self.found = self._look()
        except Exception as error:  # noqa: BLE001 - raised where it was asked for
            self.fault = error


class Patient:
    """Looks with patience; one for the life of a service process, called by one thread at a time.

    Args:
        wait: seconds that a call may take.
        patience: seconds after which a directory that has not answered is given up.
    """

    def __init__(self, wait: float = _WAIT, patience: float = PATIENCE) -> None:
        self._wait = wait
        self._patience = patience
        self._looks: dict[tuple[Path, str], _Look] = {}

    def look(self, directory: Path, what: str, look: Callable[[], T], silent: T) -> T:
        """What ``look`` returns or raises, or ``silent`` once ``directory`` is given up.

        Args:
            directory: where it looks.
            what: which look it is.
            look: called once, in a thread.
            silent: stands for what is not known.

        Raises:
            Hangs: nothing has come yet; the look goes on.
        """
        key = directory, what
        begun = self._looks.get(key)
        if begun is None:
            # a file system that is away does not cost so much time for each directory in it
            is_away = any(one.is_alive() for one in self._looks.values())
            begun = self._looks[key] = _Look(look)
            begun.start()
            begun.join(self._wait / 20 if is_away else self._wait)
            if begun.is_alive():
                log.warning("the file system does not answer: %s", directory)
        if begun.is_alive():
            if time.monotonic() < begun.begun + self._patience:
                raise Hangs(f"the file system does not answer: {directory}")
            del self._looks[key]
            return silent
        del self._looks[key]
        if begun.fault is not None:
            raise begun.fault
        found: T = begun.found
        return found

    def read(self, directory: Path) -> outboxes.Found:
        """As :func:`balsam_celery.service.outboxes.read`.

        Raises:
            Hangs: nothing has come yet; the look goes on.
        """
        silent: outboxes.Found = [], [f"{directory}: the file system does not answer"]
        return self.look(directory, "outboxes", lambda: outboxes.read(directory), silent)
