"""Pilots whose job is over by the word of a scheduler that cannot know it of every process.

PBS calls a job finished whose processes it has lost sight of (``Capabilities.end_is_proof``). R4
asks for more: the allocation stays RUNNING, and its tasks where they are, until the pilot has said
farewell, or nothing was heard of any of its workers for as long as one that is cut off takes to end
everything. Meanwhile the pilot is told to end.

A job that another scheduler does not tell of any more is not known, and that is never ended, as
long as its pilot's heartbeats change: an answer may be incomplete, a controller may have lost its
state. Such a pilot goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

import redis
from sqlalchemy import Connection

from balsam_celery import keys
from balsam_celery.durations import format_duration
from balsam_celery.service.orders import give
from balsam_celery.service.reconcile import heartbeats
from balsam_celery.service.verdict import GONE_AFTER
from balsam_celery.site import Site
from balsam_celery.store import allocations
from balsam_celery.store.allocations import LIVE_PILOTS
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import PilotRow, PilotState
from balsam_celery.wire import Heartbeat, PilotOrder

log = logging.getLogger(__name__)

_REASON = "the scheduler calls its job ended"
_MISSING = "the scheduler does not know its job any more"
#: What a worker's heartbeat says once every program of it has ended.
_OVER = "draining"

Beats = dict[str, Heartbeat]


class Lingering:
    """Watches such pilots; one for the life of a service process, by whose timer silence counts.

    A new one begins to count anew, and so does one that could not ask Redis: that only delays.

    Args:
        store, client, site: the site's.
        timer: tells seconds that pass; other than the time of day it is never set.
    """

    def __init__(
        self,
        store: Store,
        client: redis.Redis,
        site: Site,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timer = timer
        self._store = store
        self._client = client
        self._prefix = site.settings.key_prefix
        self._patience = site.settings.over_after
        # three heartbeats may be late
        self._silence = max(GONE_AFTER, 3 * site.settings.pilot.heartbeat_interval)
        self._seen: dict[str, tuple[Beats, float]] = {}  # by pilot; and since when they are so

    def held(self, ended: Collection[str], missing: Collection[str] = ()) -> dict[str, str]:
        """Those of the allocations in which something may live, and what is waited for.

        Args:
            ended: ids of all allocations whose jobs have ended by the scheduler's word.
            missing: ids of all allocations whose jobs it does not tell of; they are watched from
                the first call that names them.

        Raises:
            StoreError: the database did not answer.
        """
        if not ended and not missing:
            self._seen.clear()
            return {}
        with self._store.read() as conn:
            every = allocations.list_pilots(conn, LIVE_PILOTS)
        concerned = {*ended, *missing}
        pilots = [one for one in every if one.allocation in concerned and one.ended is None]
        self._seen = {one.id: self._seen[one.id] for one in pilots if one.id in self._seen}
        try:
            left = {
                one.id: self._left(
                    one, self._patience if one.allocation in ended else self._silence
                )
                for one in pilots
            }
            for one in pilots:
                if one.allocation in ended:
                    give(self._client, self._prefix, one.id, PilotOrder("drain", _REASON))
        except redis.RedisError as error:
            self._seen.clear()
            log.warning("whether pilots still live is not known: %s", error)
            return {
                one.allocation: f"{_REASON if one.allocation in ended else _MISSING};"
                f" whether its pilot lives is not known: {error}"
                for one in pilots
            }
        waiting = [one for one in pilots if left[one.id] > 0]
        draining = [one for one in waiting if one.allocation in ended]
        if any(one.state is PilotState.LIVE for one in draining):
            self._store.run(lambda conn: _drain(conn, draining))
        return {
            one.allocation: f"{_REASON}, but its pilot {one.id} has not said so: its tasks wait"
            f" until it has, or was silent for {format_duration(self._patience)}"
            if one.allocation in ended
            else f"{_MISSING}, but its pilot {one.id} is heard: it goes on until it has said"
            f" farewell, or was silent for {format_duration(self._silence)}"
            for one in waiting
        }

    def _left(self, pilot: PilotRow, patience: float) -> float:
        """Seconds for which the pilot must still be silent; 0 if nothing of it lives."""
        now = self._timer()
        beats = heartbeats(self._client, self._prefix, pilot.id)
        before, since = self._seen.get(pilot.id, (None, now))
        if before != beats:
            since = now
        self._seen[pilot.id] = beats, since
        if len(pilot.nodes) == 1:
            # the one worker of its one node knows of every program; that of a gang does not
            worker = beats.get(pilot.nodes[0]["name"])
            if worker is not None and worker.state == _OVER:
                return 0.0
        return max(0.0, since + patience - now)


def _drain(conn: Connection, pilots: Collection[PilotRow]) -> None:
    for pilot in pilots:
        allocations.update_pilot(
            conn, pilot.id, (PilotState.LIVE,), state=PilotState.DRAINING, reason=_REASON
        )


def tell_strays(client: redis.Redis, prefix: str, pilots: Collection[PilotRow]) -> set[str]:
    """Tell ENDED pilots that still send heartbeats to end; returns their ids.

    Raises:
        redis.RedisError: Redis did not answer.
    """
    with client.pipeline(transaction=False) as pipe:
        for pilot in pilots:
            pipe.hexists(keys.heartbeats(prefix, pilot.id), "pilot")
        found = [pilot for pilot, beats in zip(pilots, pipe.execute(), strict=True) if beats]
    for pilot in found:
        log.warning("pilot %s lives, though its allocation has ended: told to end", pilot.id)
        give(client, prefix, pilot.id, PilotOrder("drain", f"its allocation ended: {pilot.reason}"))
    return {pilot.id for pilot in found}
