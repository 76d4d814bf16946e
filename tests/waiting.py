"""Waiting for conditions, never for time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: A loaded machine is no failure: so many times as long as it takes on a quiet one is waited.
PATIENCE = 3.0
#: Seconds between two looks, at first and at the most; in between a twentieth of the wait so far,
#: for many a look is a query or a process of its own, and takes the time of what it waits for.
_FIRST, _LONGEST = 0.02, 0.25


def wait_until(
    condition: Callable[[], T], timeout: float = 60.0, what: str | Callable[[], str] = ""
) -> T:
    """Return the first true value of ``condition``.

    It fails with ``what`` after ``timeout`` seconds, those of a quiet machine. What is only known
    by then is told by a function.
    """
    pause = threading.Event()
    begun = time.monotonic()
    limit = PATIENCE * timeout
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - begun
        if waited > limit:
            said = what() if callable(what) else what
            raise AssertionError(f"not within {limit} s: {said or condition}")
        pause.wait(min(_LONGEST, max(_FIRST, waited / 20)))
