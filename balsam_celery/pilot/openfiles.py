"""How many files this process may have open: the head of a pilot needs one and more for each node.

Only its main process gets more than it was given: programs may use ``select``, which takes no
number above 1023, or close as many as they may have.
"""

from __future__ import annotations

import resource

_LIMIT = resource.RLIMIT_NOFILE
#: Enough for any machine, where the hard limit is a thousand times that.
_MOST = 2**20

_given: int | None = None


def allow_more() -> None:
    """Raise the soft limit as far as that is allowed."""
    global _given  # a limit belongs to the whole process
    soft, hard = resource.getrlimit(_LIMIT)
    most = _MOST if hard == resource.RLIM_INFINITY else min(_MOST, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(_LIMIT, (most, hard))
        _given = soft


def allow_as_given() -> None:
    """In a child of a process that was allowed more: back to what it was given itself.

    Files that are open stay so, also those with higher numbers.
    """
    if _given is not None:
        resource.setrlimit(_LIMIT, (_given, resource.getrlimit(_LIMIT)[1]))
