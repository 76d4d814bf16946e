"""Performs effects: Celery results, steps' messages, errbacks (R7).

Each is repeated until it is acknowledged, and each is harmless when done twice: a result is
brought in line with the row as it is then, a step's message carries its attempt, which begins once
(``copies``), an errback's rows have fixed ids. One that fails by itself, and not because Redis or
SQL is away, keeps no other task's waiting; it is given up after some tries, or after the first if
what is asked for is wrong, and its task says so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from celery import Celery
from kombu.exceptions import OperationalError
from kombu.utils.json import loads as kombu_loads
from redis.exceptions import DataError, RedisError, ResponseError
from sqlalchemy import Connection

from balsam_celery import keys
from balsam_celery.amounts import format_bytes
from balsam_celery.errors import InvalidInput, NotFound, StoreError
from balsam_celery.service import flower_events, largest, steps
from balsam_celery.service.cases import Batch
from balsam_celery.service.largest import measured
from balsam_celery.service.outcome import celery_result
from balsam_celery.service.publish import Publisher
from balsam_celery.service.release import full_arguments, parent_results, settle
from balsam_celery.states import FINAL, ON_PILOT
from balsam_celery.store import effects, queries
from balsam_celery.store.engine import Store
from balsam_celery.store.errbacks import instantiate
from balsam_celery.store.insert import insert_tasks
from balsam_celery.store.rows import AttemptRow, EffectKind, EffectRow, TaskRow
from balsam_celery.store.transitions import add_reason

log = logging.getLogger(__name__)

#: Message header of a step: the number of its attempt.
ATTEMPT_HEADER = "balsam_attempt"
#: How many effects are performed in one go.
BATCH = 200
#: First pause, in seconds, before an effect that failed by itself is tried again; then twice it, …
_PAUSE = 1.0
#: How often, with pauses of 63 s in all, such an effect is tried.
_TRIES = 7
#: What says that Redis is away, and not that something is wrong with one effect.
AWAY = (OperationalError, RedisError, ConnectionError, TimeoutError)
#: A server that refuses everything for now; other refusals are of one command.
_REFUSES = ("MISCONF", "NOREPLICAS", "BUSY", "UNKILLABLE")


def is_away(error: BaseException) -> bool:
    """Whether ``error``, one of :data:`AWAY` or not, is for all effects and may pass by itself."""
    cause = error.__cause__ if isinstance(error, OperationalError) and error.__cause__ else error
    if isinstance(cause, DataError):
        return False
    # subclasses stand for a server that is full, read-only, refuses the password, …
    if type(cause) is ResponseError:
        return any(word in str(cause) for word in _REFUSES)
    return isinstance(cause, AWAY)


class ResultBackend(Protocol):
    """What effects need of the application's result backend (``tasks.backend.SiteBackend``)."""

    def final(self, task_id: str, state: str, result: Any) -> bytes | str:
        """The result of a final task as it is stored, without a worker's part."""

    def store_finals(self, results: Mapping[str, bytes | str]) -> dict[str, Exception]:
        """Store several in one go; returns why those that were refused were, by task."""

    def forget(self, task_id: str) -> None:
        """Drop a result."""

    def exception_to_python(self, exc: Any) -> BaseException | None:
        """The exception that a worker encoded."""


class Performer:
    """Performs due effects; for one thread.

    Args:
        store: the site's database.
        app: the Celery application, whose backend is ``SiteBackend``.
        publisher: for steps' messages and events.
    """

    def __init__(
        self, store: Store, app: Celery[Any], publisher: Publisher, backend: ResultBackend
    ) -> None:
        self._store = store
        self._app = app
        self._publisher = publisher
        self._backend = backend

    def perform(self) -> int:
        """Perform the effects that are due, at most :data:`BATCH`; returns how many were done.

        Raises:
            kombu.exceptions.OperationalError, redis.exceptions.RedisError: Redis is away.
            StoreError: the database did not answer.
        """
        with self._store.read() as conn:
            due = effects.due(conn, self._store.clock(), BATCH)
            ids = sorted({effect.task for effect in due})
            rows = queries.find_tasks(conn, ids) if ids else {}
            attempts = queries.last_attempts(conn, ids) if ids else {}
            sending = [rows[e.task] for e in due if e.kind is EffectKind.SEND and e.task in rows]
            results = parent_results(conn, sending)
        done: list[int] = []
        events: list[flower_events.Event] = []
        failed: list[tuple[EffectRow, Exception]] = []
        try:
            refused = self._store_finals(due, rows)
            stuck: set[str] = set()
            for effect in due:
                row = rows.get(effect.task)
                if effect.task in stuck:
                    continue  # the effects of a task keep their order
                try:
                    if row is not None:
                        self._one(effect, row, attempts.get(row.id), results, refused, events)
                except StoreError:
                    raise
                except Exception as error:
                    if is_away(error):
                        raise
                    if not isinstance(error, InvalidInput):
                        log.exception("effect %s of task %s", effect.kind, effect.task)
                    failed.append((effect, error))
                    stuck.add(effect.task)
                else:
                    done.append(effect.id)
            flower_events.publish(self._app, self._publisher, events)
        finally:
            if done or failed:
                # they are harmless when done twice
                self._store.run(lambda conn: self._note(conn, done, failed), durable=False)
        return len(done)

    def _note(
        self,
        conn: Connection,
        done: Sequence[int],
        failed: Sequence[tuple[EffectRow, Exception]],
    ) -> None:
        given_up = [
            (effect, error)
            for effect, error in failed
            # what is asked for wrongly stays so
            if effect.tries + 1 >= _TRIES or isinstance(error, InvalidInput)
        ]
        effects.done(conn, [*done, *(effect.id for effect, _ in given_up)])
        for effect, _ in failed:
            pause = _PAUSE * 2.0**effect.tries
            effects.failed(conn, effect.id, self._store.clock() + pause)
        batch = Batch(conn, self._store.clock(), "service")
        for effect, error in given_up:
            why = str(error) or type(error).__name__
            reason = f"{_FAULTS[effect.kind]}: {why}".splitlines()[0][:500]
            log.warning("task %s: %s", effect.task, reason)
            if effect.kind is EffectKind.SEND:
                steps.cannot_send(batch, effect.task, effect.payload["attempt"], reason)
            else:
                add_reason(conn, effect.task, reason)
        settle(batch)

    def _one(
        self,
        effect: EffectRow,
        row: TaskRow,
        attempt: AttemptRow | None,
        results: dict[str, list[Any]],
        refused: Mapping[str, Exception],
        events: list[flower_events.Event],
    ) -> None:
        if effect.kind in _RESULTS:
            if row.id in refused:
                raise refused[row.id]
            if row.state not in FINAL:
                self._backend.forget(row.id)
            if row.state in FINAL:
                events += flower_events.of_final(row, attempt)
            elif effect.kind is EffectKind.FORGET and row.kind == "program":
                events.append(flower_events.retried(row.id, "", self._store.clock(), "retried"))
        elif effect.kind is EffectKind.SEND:
            if row.state in ON_PILOT and row.attempt == effect.payload["attempt"]:
                self._send(row, results)
        else:
            self._errback(row, effect.payload)

    def _store_finals(
        self, due: Sequence[EffectRow], rows: Mapping[str, TaskRow]
    ) -> dict[str, Exception]:
        """Bring the Celery results of what is final in line with the rows, all in one go.

        One at a time they took half of this thread, of which the engine's is kept waiting.

        Returns:
            What is wrong with those that cannot be stored, by task.
        """
        ids = dict.fromkeys(effect.task for effect in due if effect.kind in _RESULTS)
        refused: dict[str, Exception] = {}
        encoded: dict[str, bytes | str] = {}
        for id in ids:
            row = rows.get(id)
            if row is None or row.state not in FINAL:
                continue
            try:
                encoded[id] = self._encoded(row)
            except Exception as error:  # noqa: BLE001 - its effect tells of it
                refused[id] = error
        if encoded:
            refused |= self._backend.store_finals(encoded)
        return refused

    def _encoded(self, row: TaskRow) -> bytes | str:
        state, value = celery_result(row)
        if state == "FAILURE" and isinstance(value, dict):
            value = self._backend.exception_to_python(value)
        encoded = self._backend.final(row.id, state, value)
        if len(encoded) > largest.LARGEST:
            raise InvalidInput(f"it takes {format_bytes(len(encoded))}")
        return encoded

    def _send(self, row: TaskRow, results: dict[str, list[Any]]) -> None:
        """Send the Celery message of a step, with nothing of its canvas in it.

        Raises:
            InvalidInput: no message holds what it is given.
        """
        # typed values (dates) were kept as Celery's serializer writes them
        options = kombu_loads(json.dumps(row.celery.get("options", {})))
        arguments = full_arguments(row, results)
        measured(arguments, row.celery.get("options"))
        route = self._app.amqp.router.route(
            {key: options[key] for key in ("queue",) if key in options}, row.application
        )
        queue = getattr(route.get("queue"), "name", route.get("queue")) or keys.TASKS_QUEUE
        headers = {**(options.get("headers") or {}), ATTEMPT_HEADER: row.attempt}
        known = {name: options[name] for name in _MESSAGE_OPTIONS if name in options}
        self._publisher.task(
            queue,
            row.application,
            arguments["args"],
            arguments["kwargs"],
            id=row.id,
            headers=headers,
            **known,
        )

    def _errback(self, row: TaskRow, errback: Mapping[str, Any]) -> None:
        """Insert the rows of an errback, unless they are there.

        Raises:
            InvalidInput: its command asks for something that the failure does not have.
        """
        failure = {**(row.result if isinstance(row.result, dict) else {}), "task_id": row.id}
        failure.setdefault("reason", row.reason)
        failure.setdefault("name", row.name)
        rows = instantiate(errback, failure)

        def insert(conn: Connection) -> None:
            try:
                queries.get_task(conn, rows[0].id)
            except NotFound:
                insert_tasks(conn, rows, now=self._store.clock(), who="service")

        self._store.run(insert)


#: Effects that bring a Celery result in line with its row.
_RESULTS = (EffectKind.RESULT, EffectKind.FORGET)
#: What has failed, for people.
_FAULTS = {
    EffectKind.SEND: "its message cannot be sent",
    EffectKind.ERRBACK: "an error callback of it cannot be called",
    EffectKind.RESULT: "its result cannot be put into Redis, only read from SQL",
    EffectKind.FORGET: "its earlier result cannot be taken out of Redis",
}
#: Options of a signature that are part of its message.
_MESSAGE_OPTIONS = (
    "expires",
    "time_limit",
    "soft_time_limit",
    "shadow",
    "parent_id",
    "argsrepr",
    "kwargsrepr",
)
