"""One record that SQL refuses keeps no other from being written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from balsam_celery.errors import StoreError
from balsam_celery.service.leading import NotLeading

log = logging.getLogger(__name__)

#: Characters told of a fault.
_SAID = 300

T = TypeVar("T")
R = TypeVar("R")


def together_or_apart(
    write: Callable[[Sequence[T]], R], several: Sequence[T], bare: Callable[[T, str], T | None]
) -> list[R]:
    """Write all in one transaction; if one of them has a fault, each in its own.

    Of those with a fault the least is written that must be known; where that cannot be either, they
    are dropped. The log tells of them.

    Args:
        write: writes some of them in a transaction of its own.
        several: records, in order.
        bare: what must be known of one, given what its fault is; ``None``: nothing.

    Returns:
        What the calls of ``write`` that went through have returned.

    Raises:
        NotLeading: the lease is another's; what was not written yet is not.
        StoreError: the database cannot be used, whatever was to be written; the same.
    """
    try:
        return [write(several)]
    except (NotLeading, StoreError, MemoryError):
        raise
    except Exception:
        log.exception("a batch of %d records has a fault; trying each alone", len(several))
    done = []
    for one in several:
        least: T | None = one
        while least is not None:
            try:
                done.append(write([least]))
                break
            except (NotLeading, StoreError, MemoryError):
                raise
            except Exception as error:
                log.exception("a record has a fault: %.300r", least)
                fault = f"{type(error).__name__}: {error}"[:_SAID]
                least = bare(one, fault) if least is one else None
        if least is None:
            log.error("dropped a record: %.300r", one)
    return done
