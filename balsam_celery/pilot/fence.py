"""The fence between incarnations of an allocation's pilot: a file that names the newest one."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from balsam_celery.pilot.children import fork_with_pipe

logger = logging.getLogger(__name__)

INCARNATION = "incarnation"
#: Seconds between looks.
_EVERY = 10.0
_YES = b"y"


class Fence:
    """Looks from time to time whether a newer incarnation has begun.

    A child does each look: the file is on the file system of the site, which may hang, and the
    pilot must go on meanwhile.

    Args:
        directory: of the allocation.
        pilot: this incarnation.
        adopt: told of each child, which the caller reaps.
    """

    def __init__(self, directory: Path, pilot: str, adopt: Callable[[int], None]) -> None:
        self._file = directory / INCARNATION
        self._pilot = pilot
        self._adopt = adopt
        self._answer = -1
        self._next = 0.0
        self._hindered = False

    def raise_up(self) -> None:
        """This is the newest incarnation.

        Raises:
            OSError: the file cannot be written.
        """
        self._file.write_text(self._pilot, encoding="utf-8")

    def closed(self) -> bool:
        """A newer incarnation has begun, as far as the looks until now have told; never blocks."""
        if self._answer < 0:
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + _EVERY
                self._look()
            return False
        try:
            answer = os.read(self._answer, 1000)
        except BlockingIOError:
            return False
        os.close(self._answer)
        self._answer = -1
        if answer not in (b"", _YES):
            logger.warning("%s cannot be read: %s", self._file, answer.decode(errors="replace"))
        return answer == _YES

    def _look(self) -> None:
        try:
            pid, self._answer, write = fork_with_pipe()
        except OSError as error:
            # programs may have taken all processes that there can be: later looks will do
            if not self._hindered:
                logger.error("%s cannot be looked at: %s: trying again", self._file, error.strerror)
            self._hindered = True
            return
        self._hindered = False
        if pid:
            os.close(write)
            self._adopt(pid)
            return
        try:
            # what hangs must keep no connection of the pilot open
            os.dup2(write, 0)
            os.closerange(1, os.sysconf("SC_OPEN_MAX"))
            if self._file.read_text(encoding="utf-8") not in ("", self._pilot):
                os.write(0, _YES)
        except OSError as error:
            os.write(0, str(error.strerror).encode()[:1000])
        finally:
            os._exit(0)
