"""What the leader sends: bundles of tasks, kill orders, hooks, limits."""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Collection
from typing import Any

import redis
from celery import Celery

from balsam_celery import keys
from balsam_celery.ledger import Ledger
from balsam_celery.pilotfree import PilotFree
from balsam_celery.service import hooks, kill, largest
from balsam_celery.service.place import Sent
from balsam_celery.service.publish import Publisher
from balsam_celery.service.specs import BUNDLE
from balsam_celery.site import Site
from balsam_celery.store.rows import TaskRow
from balsam_celery.wire import KillOrder, PilotOrder, TaskSpec, encode, to_plain

#: Seconds for which the same revoke, forwarded by every worker, is passed on only once.
_SAME = 10.0
#: Seconds that an order waits for a pilot that may be gone.
_ORDER_LIFE = 86400
#: Seconds between two writes of a pilot's concurrency.
_LIMITS = 1.0


class Dispatcher:
    """Sends; for the engine's thread.

    Methods may raise ``kombu.exceptions.OperationalError`` or ``redis.exceptions.RedisError``:
    bundles that were not sent are kept and sent first next time.
    """

    def __init__(self, app: Celery[Any], client: redis.Redis, site: Site) -> None:
        self._app = app
        self._client = client
        self._run_dir = site.run_dir
        self._prefix = site.settings.key_prefix
        self._publisher = Publisher(app)
        self._waiting: deque[tuple[str, list[TaskSpec]]] = deque()
        self._revoked: dict[tuple[str, ...], float] = {}
        self._told: dict[str, tuple[float, dict[str, int]]] = {}
        self._seen: Ledger | None = None
        self._recalled: dict[tuple[str, str, str, int], float] = {}

    def add(self, sent: Collection[Sent]) -> None:
        """Keep committed attempts to be published, in bundles by worker."""
        by_queue: dict[str, list[Sent]] = defaultdict(list)
        for one in sent:
            by_queue[keys.pilot_queue(one.pilot, one.worker)].append(one)
        for queue, several in by_queue.items():
            bundle: list[TaskSpec] = []
            size = 0
            for one in several:
                if bundle and (len(bundle) == BUNDLE or size + one.size > largest.LARGEST):
                    self._waiting.append((queue, bundle))
                    bundle, size = [], 0
                bundle.append(one.spec)
                size += one.size
            self._waiting.append((queue, bundle))

    def flush(self) -> None:
        """Publish what waits."""
        while self._waiting:
            queue, bundle = self._waiting[0]
            self._publisher.task(queue, keys.RUN, [queue, [to_plain(spec) for spec in bundle]])
            self._waiting.popleft()

    def forget(self) -> None:
        """Drop what waits: another leader finds it (no worker holds it)."""
        self._waiting.clear()
        self._told.clear()
        self._recalled.clear()

    def end_hooks(
        self, pending: Collection[hooks.Pending], outstanding: hooks.Outstanding, now: float
    ) -> None:
        """Let the transitions worker end steps."""
        ids: dict[float, list[str]] = defaultdict(list)
        for one in pending:
            # a message may carry a later time than a clock that has gone back tells
            ids[max(now, outstanding.copies.get(one.key) or 0.0)].append(one.message_id)
        for until, several in ids.items():
            kill.end_steps(self._app, self._publisher, several, until)

    def hooks(
        self, pending: Collection[hooks.Pending], outstanding: hooks.Outstanding, now: float
    ) -> None:
        """Send steps to the transitions worker; ``outstanding`` notes each that is sent."""
        hooks.send(self._publisher, pending, self._run_dir, outstanding, now)

    def kill(self, programs: Collection[TaskRow], steps: Collection[TaskRow]) -> None:
        """Send kill orders; steps are revoked on the tasks worker."""
        kill.order(self._publisher, programs)
        if steps:
            attempts = {row.id: row.attempt for row in steps}
            kill.revoke_ordinary(
                self._app, self._publisher, list(attempts), terminate=True, attempts=attempts
            )

    def recall(self, recalled: Collection[tuple[str, str, str, int]], now: float) -> None:
        """Take back what was sent ahead, if it has not started.

        Args:
            recalled: (pilot, worker, task id, attempt) each.
            now: seconds since the epoch; an order that shows no effect may be lost, so it is sent
                again, which is harmless.
        """
        sent = {one: at for one, at in self._recalled.items() if one in recalled}
        due = sorted(one for one in recalled if now - sent.get(one, -math.inf) >= kill.REPEAT)
        orders: dict[tuple[str, str], list[KillOrder]] = defaultdict(list)
        for pilot, worker, task, attempt in due:
            reason = "taken back: it was queued behind a task that runs for long"
            orders[pilot, worker].append(KillOrder(task, attempt, reason, waiting_only=True))
        for (pilot, worker), several in orders.items():
            kill.send(self._publisher, pilot, worker, several)
        self._recalled = sent | dict.fromkeys(due, now)

    def revoke(self, ids: tuple[str, ...], *, terminate: bool) -> None:
        """Revoke ordinary Celery tasks, once for the many workers that forward it."""
        now = time.monotonic()
        self._revoked = {key: at for key, at in self._revoked.items() if now - at < _SAME}
        key = (str(terminate), *ids)
        if key not in self._revoked:
            kill.revoke_ordinary(self._app, self._publisher, ids, terminate=terminate)
            self._revoked[key] = now

    def drain(self, pilot: str, reason: str) -> None:
        """Tell a pilot that has no row to end."""
        key = keys.control(self._prefix, pilot)
        with self._client.pipeline(transaction=True) as both:
            both.rpush(key, encode(PilotOrder("drain", reason)))
            both.expire(key, _ORDER_LIFE)
            both.execute()

    def limits(self, ledger: Ledger, now: float) -> None:
        """Tell the pilots what each worker may run at once, when that changed."""
        if ledger is self._seen:
            return
        is_all_told = True
        for pilot in ledger.pilots.values():
            at, told = self._told.get(pilot.id, (0.0, {}))
            if now < at + _LIMITS:
                is_all_told = False
                continue
            nodes, gang = concurrency(pilot)
            values = {**nodes, keys.GANG: gang} if len(nodes) > 1 else nodes
            if values == told:
                continue
            mapping: dict[Any, Any] = dict(values)
            self._client.hset(keys.limits(self._prefix, pilot.id), mapping=mapping)
            self._told[pilot.id] = (now, values)
        self._told = {id: told for id, told in self._told.items() if id in ledger.pilots}
        self._seen = ledger if is_all_told else None

    def close(self) -> None:
        """Drop the connection."""
        self._publisher.close()


def concurrency(pilot: PilotFree) -> tuple[dict[str, int], int]:
    """What each worker of a pilot may run at once (DESIGN section 6).

    Returns:
        By node name: its cores, 0 while a task of several nodes holds it; and, for the gang
        worker: the nodes that no single-node task holds.
    """
    every = pilot.nodes
    nodes = {
        node.capacity.name: 0 if node.gang or node.lost else len(node.capacity.cores)
        for node in every
    }
    gang = sum(1 for node in every if not node.lost and (node.gang or not node.holders))
    return nodes, gang
