"""Takes back what an ended allocation held; called only on the scheduler's word (R4)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import redis
from sqlalchemy import Connection, select

from balsam_celery import keys
from balsam_celery.resources import NodeCapacity
from balsam_celery.service import outboxes
from balsam_celery.service.orders import LIFE
from balsam_celery.site import Site
from balsam_celery.store import allocations, schema
from balsam_celery.store.allocations import LIVE_PILOTS
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import AllocationRow, AllocationState, PilotRow, PilotState
from balsam_celery.wire import Ended, from_plain

log = logging.getLogger(__name__)

#: Outcomes recorded in one transaction.
_BATCH = 200

Attempt = tuple[str, int]
Read = Callable[[Path], outboxes.Found]


def reap(
    store: Store,
    site: Site,
    allocation: str,
    *,
    record: Callable[[Sequence[Ended]], object],
    client: redis.Redis | None,
    read: Read = outboxes.read,
) -> list[str]:
    """Record what the outboxes hold, restart the rest, end the pilots.

    Harmless when run twice: what is recorded once changes nothing the second time.

    Args:
        store: the site's database.
        site: the site.
        allocation: id of an allocation that is ENDED.
        record: records outcomes in committed transactions (``service.record``), as for
            outcomes that arrived through the inbox. It is called first with what the outboxes
            hold, then with one made-up ``drained`` outcome for each attempt that is still open.
        client: where the pilots' keys are deleted; ``None`` when Redis is away.
        read: reads the outboxes in a directory.

    Returns:
        Ids of the pilots that are ENDED now, for the ledger.

    Raises:
        Hangs: a file system does not answer yet; what was recorded stays, reap it again later.
        NotFound: no such allocation.
        StoreError: the database did not answer.
        ValueError: the scheduler has not said that the allocation has ended.
    """
    with store.read() as conn:
        row = allocations.get_allocation(conn, allocation)
        pilots = allocations.list_pilots(conn, allocation=row.id)
    if row.state is not AllocationState.ENDED:
        raise ValueError(f"allocation {row.id} is {row.state}, not ENDED")
    ids = [pilot.id for pilot in pilots]
    unread = _record_outboxes(store, row, ids, record, read)
    reason = f"allocation {row.id} ended: {row.reason}"
    if unread:
        reason += f" (outcomes could not be read: {'; '.join(unread)})"
    ended = row.ended if row.ended is not None else store.clock()
    left = [
        Ended(id, attempt, "drained", reason, max(ended, started or 0.0), started)
        for (id, attempt), started in sorted(_open_attempts(store, ids).items())
    ]
    for first in range(0, len(left), _BATCH):
        record(left[first : first + _BATCH])
    if left:
        log.warning("%d attempts were cut short: %s", len(left), reason)
    # whoever wrote to them until now leaves keys in Redis: the sweep begins to count here
    store.run(lambda conn: _end_pilots(conn, ids, row, store.clock()))
    if client is not None:
        for pilot in pilots:
            delete_keys(client, site.settings.key_prefix, pilot)
    return ids


def _record_outboxes(
    store: Store,
    row: AllocationRow,
    pilots: Sequence[str],
    record: Callable[[Sequence[Ended]], object],
    read: Read,
) -> list[str]:
    """Record outcomes of open attempts; returns what could not be read, and why.

    Raises:
        Hangs: as of ``read``.
        StoreError: the database did not answer.
    """
    unread: list[str] = []
    for pilot in pilots:
        directory = Path(row.run_dir) / pilot
        waiting = _open_attempts(store, [pilot])
        if not waiting:
            continue
        outcomes, failed = read(directory)
        unread += failed
        found = _wanted(outcomes, waiting)
        for first in range(0, len(found), _BATCH):
            record(found[first : first + _BATCH])
    return unread


def _wanted(outcomes: Sequence[Ended], waiting: Collection[Attempt]) -> list[Ended]:
    return [one for one in outcomes if (one.id, one.attempt) in waiting]


def _open_attempts(store: Store, pilots: Sequence[str]) -> dict[Attempt, float | None]:
    """Attempts without an end on the pilots, and when each started."""
    attempt = schema.attempt.c
    query = select(attempt.task, attempt.number, attempt.started).where(
        attempt.pilot.in_(pilots), attempt.ended.is_(None)
    )
    with store.read() as conn:
        return {(row.task, row.number): row.started for row in conn.execute(query)}


def _end_pilots(conn: Connection, pilots: Sequence[str], row: AllocationRow, now: float) -> None:
    for pilot in allocations.list_pilots(conn, LIVE_PILOTS, allocation=row.id):
        if pilot.id in pilots:
            allocations.update_pilot(
                conn,
                pilot.id,
                LIVE_PILOTS,
                state=PilotState.ENDED,
                ended=now,
                reason=pilot.reason or row.reason,
            )


def delete_keys(client: redis.Redis, prefix: str, pilot: PilotRow, *, orders: bool = True) -> None:
    """Delete all that a dead pilot, its workers and its allocation have in Redis.

    Not its ``orders`` once it may have been told to end: these are forgotten after an hour, also
    where whoever gave them was killed before it had said so.

    A worker that was killed leaves its queue, and a mailbox for remote control that would gather
    every broadcast for ever. A failure is logged; ``housekeep.sweep`` tries again.
    """
    names = [from_plain(NodeCapacity, plain).name for plain in pilot.nodes]
    doomed = [
        *([keys.control(prefix, pilot.id)] if orders else []),
        keys.heartbeats(prefix, pilot.id),
        keys.limits(prefix, pilot.id),
        keys.acks(prefix, pilot.id, "pilot"),
        keys.claim(prefix, pilot.allocation),
    ]
    mailboxes = []
    # kombu keeps the bindings that do not expire a second time
    bindings = [f"{prefix}_kombu.{kind}." for kind in ("binding", "binding_permanent")]
    for node in (*names, keys.GANG):
        queue = keys.pilot_queue(pilot.id, node)
        mailbox = f"{keys.worker_name(pilot.id, node)}.celery.pidbox"
        mailboxes.append(mailbox.encode())
        doomed += [
            keys.acks(prefix, pilot.id, node),
            prefix + queue,
            *(kind + queue for kind in bindings),
            prefix + mailbox,
        ]
    try:
        with client.pipeline(transaction=False) as pipe:
            pipe.delete(*doomed)
            pipe.expire(keys.control(prefix, pilot.id), LIFE)
            for shared in (kind + "celery.pidbox" for kind in bindings):
                members = client.smembers(shared)
                bound = [member for member in members if any(box in member for box in mailboxes)]
                if bound:
                    pipe.srem(shared, *bound)
            pipe.execute()
    except redis.RedisError as error:
        log.warning("keys of pilot %s are not deleted yet: %s", pilot.id, error)
