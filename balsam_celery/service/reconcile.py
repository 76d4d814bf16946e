"""Finds attempts that no worker holds: messages lost with Redis, or never sent."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence

import redis

from balsam_celery import keys
from balsam_celery.service.specs import worker_of
from balsam_celery.site import Site
from balsam_celery.store import allocations, scans
from balsam_celery.store.allocations import LIVE_PILOTS
from balsam_celery.store.engine import Store
from balsam_celery.wire import Heartbeat, KillOrder, MalformedMessage, decode

log = logging.getLogger(__name__)

#: Seconds that a message may take from the placement to a worker's heartbeat, at the least.
LEAST_MARGIN = 10.0


def heartbeats(client: redis.Redis, prefix: str, pilot: str) -> dict[str, Heartbeat]:
    """Last heartbeat of each worker of a pilot, by node (``keys.GANG``, and ``"pilot"``).

    Raises:
        redis.RedisError: Redis did not answer.
    """
    found = {}
    for field, text in client.hgetall(keys.heartbeats(prefix, pilot)).items():
        node = field.decode(errors="replace") if isinstance(field, bytes) else field
        try:
            found[node] = decode(Heartbeat, text)
        except MalformedMessage as error:
            log.warning("a heartbeat of pilot %s that is not ours: %s", pilot, error)
    return found


def reconcile(
    store: Store,
    client: redis.Redis,
    site: Site,
    *,
    send: Callable[[str, str, Sequence[KillOrder]], None],
) -> list[tuple[str, int]]:
    """Send a KillOrder for each attempt on a pilot that its worker does not hold.

    The worker's answer (``fenced``, or the outcome that it has) brings the task back. Harmless
    when run twice: an attempt that ended is answered with its outcome again.

    Args:
        store: the site's database.
        client: Redis.
        site: the site.
        send: sends orders to a worker: (pilot, node or ``keys.GANG``, orders).

    Returns:
        The (task id, attempt) pairs for which an order was sent.

    Raises:
        redis.RedisError: Redis did not answer.
        StoreError: the database did not answer.
    """
    prefix = site.settings.key_prefix
    margin = max(LEAST_MARGIN, 5.0 * site.settings.pilot.heartbeat_interval)
    with store.read() as conn:
        pilots = [pilot.id for pilot in allocations.list_pilots(conn, LIVE_PILOTS)]
    # Redis before SQL: an outcome that left a heartbeat had been committed before
    beats = {pilot: heartbeats(client, prefix, pilot) for pilot in pilots}
    quiet = {
        (pilot, node)
        for pilot, by_node in beats.items()
        for node in by_node
        if not client.llen(prefix + keys.pilot_queue(pilot, node))
    }
    with store.read() as conn:
        rows = [row for row in scans.on_pilots(conn) if row.pilot in beats]
    orders: dict[tuple[str, str], list[KillOrder]] = defaultdict(list)
    held = {
        (pilot, node): set(beat.held)
        for pilot, by_node in beats.items()
        for node, beat in by_node.items()
    }
    for row in rows:
        if not row.pilot or not row.shares:
            continue
        worker = (row.pilot, worker_of(row.num_nodes, row.shares[0]["node"]))
        beat = beats[worker[0]].get(worker[1])
        if beat is None or worker not in quiet or beat.time <= row.changed + margin:
            continue
        if (row.id, row.attempt) not in held[worker]:
            reason = "no worker holds it: its message was lost"
            orders[worker].append(KillOrder(row.id, row.attempt, reason))
    for (pilot, node), missing in orders.items():
        log.warning("%d attempts are not held by %s of pilot %s", len(missing), node, pilot)
        send(pilot, node, missing)
    return [(order.id, order.attempt) for several in orders.values() for order in several]
