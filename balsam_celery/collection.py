"""Planning without garbage collection beside it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def uncollected(work: Callable[P, T]) -> Callable[P, T]:
    """``work``, for whose time no cycles are collected.

    A pass over thousands of nodes makes many values and no cycles, but each thousand of them would
    set off a look through all the values of the ledger: a third of the pass. What other threads
    leave meanwhile is collected after it.
    """

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if not gc.isenabled():
            return work(*args, **kwargs)
        gc.disable()
        try:
            return work(*args, **kwargs)
        finally:
            gc.enable()

    return run
