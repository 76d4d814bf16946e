"""Finds steps and hooks that no worker knows any more: their worker died, or Redis lost them.

Workers on the login node keep no outbox. So the service asks: a message that waits in no queue and
that no living worker knows, twice in a row with a pause between, is lost, and is sent again (a
step as a new attempt, so that a late end of the old one changes nothing). As long as a worker that
has answered before does not, nothing is lost: that one may have it, and a second copy of a hook
would end the first; nor is that lost whose end lies in the inbox. What had begun may have taken
its worker along: it is counted as cut short, and given up after too many of these.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis
from celery import Celery
from sqlalchemy import Connection, select, text, tuple_

from balsam_celery import keys
from balsam_celery.copies import hook_order, last_begun, later_than
from balsam_celery.service import inbox, steps, transitions
from balsam_celery.service.cases import Batch, Change
from balsam_celery.service.hooks import Outstanding, StepKey, message_id
from balsam_celery.service.leading import Leadership
from balsam_celery.service.release import settle
from balsam_celery.settings import RetrySettings
from balsam_celery.store import scans, schema
from balsam_celery.store.engine import Store
from balsam_celery.store.rows import EffectKind
from balsam_celery.wire import StepEnded, TransitionEnded

log = logging.getLogger(__name__)

#: Seconds between two checks, and before a message that was just sent is asked for.
PAUSE = 10.0
#: Seconds that workers have to answer.
_ANSWER = 2.0
#: Seconds of silence after which a worker is not waited for any more. One that is started again
#: has the same name and answers sooner.
FORGET = 600.0
#: How many steps are looked for at once; of more, in turns.
_MANY = 1000
#: How many messages of a queue are read at once.
_PAGE = 1000
#: How many of those that are taken next are always read, for each that is looked for.
_BESIDE = 4


@dataclass(frozen=True, slots=True)
class _Sought:
    """A message that should be somewhere: its Celery id and queue."""

    id: str
    queue: str


class Checks:
    """Asks at most once in :data:`PAUSE` seconds; for one thread at a time."""

    def __init__(
        self,
        store: Store,
        app: Celery[Any],
        client: redis.Redis,
        prefix: str,
        leadership: Leadership,
        outstanding: Outstanding,
        retry: RetrySettings,
    ) -> None:
        self._store = store
        self._app = app
        self._client = client
        self._prefix = prefix
        self._leadership = leadership
        self._outstanding = outstanding
        self._retry = retry
        self._missed: set[object] = set()
        self._after = scans.BEGIN
        self._answered: dict[str, dict[str, float]] = {}  # by role and worker: when, the last time
        self._checked = 0.0

    def run(self) -> list[Change]:
        """Look for lost steps and hooks when it is time to; returns what changed in SQL.

        Raises:
            redis.exceptions.RedisError, kombu.exceptions.OperationalError: Redis is away.
            StoreError: the database did not answer.
            NotLeading: another service leads now.
        """
        now = self._store.clock()
        if self._checked <= now < self._checked + PAUSE:
            return []
        self._checked = now
        with self._store.read() as conn:
            open_steps, last = _open_steps(conn, now - PAUSE, self._after)
        open_hooks = {
            key: message_id(key)
            for key, sent in list(self._outstanding.sent.items())
            if sent <= now - PAUSE
        }
        missing_steps = self._missing(open_steps, keys.TASKS_QUEUE)
        missing_hooks = self._missing(
            {key: _Sought(id, keys.TRANSITIONS_QUEUE) for key, id in open_hooks.items()},
            keys.TRANSITIONS_QUEUE,
        )
        if not missing_steps:  # else the same are looked for again
            self._after = last
        missing: set[object] = {*missing_steps, *missing_hooks}
        lost, self._missed = missing & self._missed, missing - self._missed
        if lost:
            lost -= self._told()
        self._send_again([key for key in missing_hooks if key in lost])
        return self._restart([key for key in missing_steps if key in lost])

    def _missing(self, sought: dict[Any, _Sought], role: str) -> list[Any]:
        """Keys of messages that are in no queue and that no worker of ``role`` knows."""
        if not sought:
            return []
        ids = [one.id for one in sought.values()]
        known = self._known(ids, role)
        if known is None:
            return []
        missed = {one.id for key, one in sought.items() if key in self._missed}
        # queues after workers: what a worker took in between has left the queue only after it
        # was asked, and counts as missing once, not twice
        for queue in {one.queue for one in sought.values()}:
            left = {one.id for one in sought.values() if one.queue == queue} - known
            known |= self._queued(queue, left, left & missed)
        return [key for key, one in sought.items() if one.id not in known]

    def _told(self) -> set[object]:
        """Steps and hooks whose end lies in the inbox, and that SQL takes to go on."""
        told: set[object] = set()
        for record in inbox.waiting(self._client, self._prefix):
            if isinstance(record, TransitionEnded):
                told.add((record.id, record.attempt, record.step))
            elif isinstance(record, StepEnded):
                told.add((record.id, record.attempt))
        return told

    def _known(self, ids: Collection[str], role: str) -> set[str] | None:
        """Ids that the workers of ``role`` have; ``None``: not all of them answer, or none."""
        matcher: Any = "glob"  # its name, whatever the stubs say
        inspect = self._app.control.inspect(timeout=_ANSWER, pattern=f"{role}@*", matcher=matcher)
        told = inspect.query_task(*ids) or {}
        answers = {name: answer for name, answer in told.items() if "error" not in answer}
        now = self._store.clock()
        known = {
            name: last for name, last in self._answered.get(role, {}).items() if now - last < FORGET
        }
        silent = known.keys() - answers.keys()
        self._answered[role] = known | dict.fromkeys(answers, now)
        if silent:
            log.info("%s: no answer, so nothing is taken for lost", ", ".join(sorted(silent)))
        if silent or not answers:
            return None
        return {id for answer in answers.values() for id in answer}

    def _queued(self, queue: str, wanted: set[str], missed: set[str]) -> set[str]:
        """Those of ``wanted`` that wait in ``queue``.

        The oldest steps are those that are taken next. So that a long queue is not read at every
        check, only what was ``missed`` there the last time is looked for in all of it.
        """
        if not wanted:
            return set()
        name = f"{self._prefix}{queue}"
        found = wanted & {*_ids(self._client.lrange(name, -_BESIDE * len(wanted), -1))}
        first = 0
        # from the end at which messages come in, so that none slips by from one page to the next
        while not missed <= found:
            page = self._client.lrange(name, first, first + _PAGE - 1)
            found |= wanted & {*_ids(page)}
            if len(page) < _PAGE:
                break
            first += _PAGE
        return found

    def _send_again(self, lost: Collection[StepKey]) -> None:
        if not lost:
            return
        self._drop_unacknowledged({message_id(key) for key in lost})
        last = {key: self._last_begun(key) for key in lost}
        begun = {key: float(last[key] or 0.0) for key in lost if self._had_begun(key, last[key])}
        given_up = self._leadership.run(lambda conn: self._cut(conn, begun)) if begun else {}
        now = self._store.clock()
        for key in lost:
            log.warning("step %s of task %s was lost and is sent again", key[2], key[0])
            sent = later_than(last[key], self._outstanding.copies.get(key), now)
            self._outstanding.lose(key, sent, given_up.get(key, ""))

    def _last_begun(self, key: StepKey) -> str | None:
        return last_begun(self._client, self._prefix, keys.hook_message(message_id(key)))

    def _had_begun(self, key: StepKey, last: str | None) -> bool:
        copy = self._outstanding.copies.get(key)
        return last is not None and (copy is None or last == hook_order(copy))

    def _cut(self, conn: Connection, begun: Mapping[StepKey, float]) -> dict[StepKey, str]:
        """Count these, that may have taken their worker along; why some are given up."""
        batch = Batch(conn, self._store.clock(), "service", retry=self._retry)
        batch.load([id for id, _, _ in begun])
        return {
            key: transitions.cut(batch, *key, "its worker died", sent)
            for key, sent in begun.items()
        }

    def _restart(self, lost: Collection[tuple[str, int]]) -> list[Change]:
        if not lost:
            return []
        log.warning("%d steps were lost with their worker and start again", len(lost))
        self._drop_unacknowledged({id for id, _ in lost})

        def write(conn: Connection) -> list[Change]:
            batch = Batch(conn, self._store.clock(), "service", retry=self._retry)
            for id, attempt in lost:
                steps.lost(batch, id, attempt, "its worker died")
            settle(batch)
            return batch.changes

        return self._leadership.run(write)

    def _drop_unacknowledged(self, ids: Collection[str]) -> None:
        """Keep kombu from restoring, an hour later, what the dead worker had not acknowledged."""
        key = f"{self._prefix}unacked"
        for tag, stored in self._client.hscan_iter(key):
            if any(id in ids for id in _ids([_first(stored)])):
                self._client.hdel(key, tag)


def _open_steps(
    conn: Connection, before: float, after: scans.Place
) -> tuple[dict[tuple[str, int], _Sought], scans.Place]:
    """Steps that were sent, by (id, attempt), whose message is not waiting as an effect.

    The oldest first, those ``after``; and after which to look the next time.
    """
    task, effect = schema.task, schema.effect
    unsent = (
        select(effect.c.id)
        .where(effect.c.task == task.c.id, effect.c.kind == EffectKind.SEND.value)
        .exists()
    )
    order = (task.c.changed, task.c.id)
    query = (
        scans.by_index(
            select(task.c.id, task.c.attempt, task.c.celery, task.c.changed), "ix_task_open_step"
        )
        .where(text(schema.OPEN_STEP_SQL), task.c.changed < before, ~unsent, tuple_(*order) > after)
        .order_by(*order)
        .limit(_MANY)
    )
    rows = conn.execute(query).all()
    found = {
        (row.id, row.attempt): _Sought(
            row.id, (row.celery.get("options") or {}).get("queue") or keys.TASKS_QUEUE
        )
        for row in rows
    }
    return found, (rows[-1].changed, rows[-1].id) if len(rows) == _MANY else scans.BEGIN


def _first(stored: bytes | str) -> bytes:
    """The message in an entry of kombu's table of unacknowledged ones: [message, exchange, key]."""
    try:
        entry = json.loads(stored)
    except ValueError:
        return b""
    return json.dumps(entry[0]).encode() if isinstance(entry, list) and entry else b""


def _ids(messages: Iterable[bytes | str]) -> Iterable[str]:
    """Celery ids in raw messages; what is not one of Celery's messages has none."""
    for message in messages:
        try:
            id = json.loads(message)["headers"]["id"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(id, str):
            yield id
