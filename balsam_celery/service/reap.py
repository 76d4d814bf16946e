"""Takes back what an ended allocation held; called only on the scheduler's word (R4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import redis

from balsam_celery.site import Site
from balsam_celery.store.engine import Store
from balsam_celery.wire import Ended


def reap(
    store: Store,
    site: Site,
    allocation: str,
    *,
    record: Callable[[Sequence[Ended]], None],
    client: redis.Redis | None,
) -> list[str]:
    """Record what the outboxes hold, restart the rest, end the pilots.

    Args:
        allocation: id of an allocation that is ENDED.
        record: records outcomes in committed transactions (``service.record``), as for
            outcomes that arrived through the inbox. It is called first with what the outboxes
            hold, then with one made-up ``Ended(outcome="drained", reason="allocation … ended…")``
            for each attempt that is still DISPATCHED or RUNNING.
        client: where the pilots' keys are deleted; ``None`` when Redis is away.

    Returns:
        Ids of the pilots that were marked ENDED, for the ledger.
    """
    raise NotImplementedError
