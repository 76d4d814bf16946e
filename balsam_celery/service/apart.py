"""One record that SQL refuses keeps no other from being written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from balsam_celery.errors import StoreError
from balsam_celery.service.leading import NotLeading

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


def together_or_apart(write: Callable[[Sequence[T]], R], several: Sequence[T]) -> list[R]:
    """Write all in one transaction; if one of them has a fault, each in its own.

    Those with a fault are dropped, and the log tells of them.

    Args:
        write: writes some of them in a transaction of its own.
        several: records, in order.

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
        try:
            done.append(write([one]))
        except (NotLeading, StoreError, MemoryError):
            raise
        except Exception:
            log.exception("dropped a record: %.300r", one)
    return done
