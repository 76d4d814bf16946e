"""Finds attempts that no worker holds: messages lost with Redis, or never sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import redis

from balsam_celery.site import Site
from balsam_celery.store.engine import Store
from balsam_celery.wire import KillOrder


def reconcile(
    store: Store,
    client: redis.Redis,
    site: Site,
    *,
    send: Callable[[str, str, Sequence[KillOrder]], None],
) -> list[tuple[str, int]]:
    """Send a KillOrder for each attempt on a live pilot that its worker does not hold.

    The worker's answer (``fenced``, or the outcome that it has) brings the task back.

    Args:
        send: sends orders to a worker: (pilot, node or ``keys.GANG``, orders).

    Returns:
        The (task id, attempt) pairs for which an order was sent.
    """
    raise NotImplementedError
