"""Finds attempts that no worker holds: messages lost with Redis, or never sent."""

from __future__ import annotations

import logging
import math
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
LEAST_MARGIN = 5.0

Worker = tuple[str, str]


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


class Reconciler:
    """Compares SQL with what the workers' heartbeats say; one for the life of a service process.

    Clocks of pilots may be wrong by minutes. So a heartbeat counts as written after the last look
    that saw another one, by the service's own clock. A new process learns that by its second look.

    Args:
        store: the site's database.
        client: Redis.
        site: the site.
        send: sends orders to a worker: (pilot, node or ``keys.GANG``, orders).
    """

    def __init__(
        self,
        store: Store,
        client: redis.Redis,
        site: Site,
        send: Callable[[str, str, Sequence[KillOrder]], None],
    ) -> None:
        self._store = store
        self._client = client
        self._prefix = site.settings.key_prefix
        self._margin = max(LEAST_MARGIN, 2.5 * site.settings.pilot.heartbeat_interval)
        self._send = send
        self._looked = -math.inf
        #: The last heartbeat of each worker, and what it was surely written after.
        self._seen: dict[Worker, tuple[Heartbeat, float]] = {}

    def look(self) -> list[tuple[str, int]]:
        """Send a KillOrder for each attempt on a pilot that its worker does not hold.

        The worker's answer (``fenced``, or the outcome that it has) brings the task back. Harmless
        when done twice: an attempt that ended is answered with its outcome again.

        Returns:
            The (task id, attempt) pairs for which an order was sent.

        Raises:
            redis.RedisError: Redis did not answer.
            StoreError: the database did not answer.
        """
        with self._store.read() as conn:
            pilots = [pilot.id for pilot in allocations.list_pilots(conn, LIVE_PILOTS)]
        # Redis before SQL: an outcome that left a heartbeat had been committed before
        self._note(pilots)
        quiet = {
            (pilot, node)
            for pilot, node in self._seen
            if not self._client.llen(self._prefix + keys.pilot_queue(pilot, node))
        }
        with self._store.read() as conn:
            rows = scans.on_pilots(conn)
        held = {worker: set(beat.held) for worker, (beat, _) in self._seen.items()}
        orders: dict[Worker, list[KillOrder]] = defaultdict(list)
        for row in rows:
            if not row.pilot or not row.shares:
                continue
            worker = (row.pilot, worker_of(row.num_nodes, row.shares[0]["node"]))
            if worker not in quiet or self._seen[worker][1] <= row.changed + self._margin:
                continue
            if (row.id, row.attempt) not in held[worker]:
                reason = "no worker holds it: its message was lost"
                orders[worker].append(KillOrder(row.id, row.attempt, reason))
        for (pilot, node), missing in orders.items():
            log.warning("%d attempts are not held by %s of pilot %s", len(missing), node, pilot)
            self._send(pilot, node, missing)
        return [(order.id, order.attempt) for several in orders.values() for order in several]

    def _note(self, pilots: Sequence[str]) -> None:
        before, begun = self._looked, self._store.clock()
        found: dict[Worker, tuple[Heartbeat, float]] = {}
        for pilot in pilots:
            for node, beat in heartbeats(self._client, self._prefix, pilot).items():
                known = self._seen.get((pilot, node))
                if known is None or known[0] != beat:
                    known = (beat, before)
                found[pilot, node] = known
        self._seen, self._looked = found, begun
