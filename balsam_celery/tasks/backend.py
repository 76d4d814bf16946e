"""Celery results of a site: kept in Redis, answered from SQL whenever Redis has nothing.

Ordinary tasks keep Celery's Redis backend as it is, chords included. A task with a row is another
matter: the row is the truth (R1), so the final result that the service puts into Redis is a copy
that may be late, expire or be lost. Waiting is by looking, at first every few milliseconds, later
four times a second: unlike Celery's subscriptions it needs no connection per client, and misses
nothing when Redis restarts.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import redis
from celery import states
from celery.backends.base import SyncBackendMixin
from celery.backends.redis import RedisBackend
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.exceptions import EncodeError
from kombu.utils.encoding import bytes_to_str
from redis.backoff import NoBackoff
from redis.retry import Retry

from balsam_celery.codec import DEPTH, is_too_deep
from balsam_celery.errors import StoreError
from balsam_celery.redisaddress import split_checks
from balsam_celery.service.outcome import celery_result
from balsam_celery.states import FINAL, State
from balsam_celery.store import queries
from balsam_celery.store.queries import TaskFilter
from balsam_celery.store.rows import TaskRow
from balsam_celery.tasks.base import attempt_of
from balsam_celery.tasks.connect import site_of, store_of
from balsam_celery.tasks.report import report_end

log = logging.getLogger(__name__)

#: Seconds after which a Redis that says nothing counts as away.
SILENCE = 3.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.25
#: Seconds between two looks into SQL while Redis answers: the result comes there first.
_SQL_PAUSE = 1.0
#: States that Redis may know better than the row, which has nothing between start and end.
_ROW_STATES = frozenset({states.PENDING, states.RECEIVED, states.STARTED, states.RETRY})

Meta = dict[str, Any]
#: Celery's backend, without its subscriptions: the mixin's waiting comes first.
_Stock: Any = type("_Stock", (SyncBackendMixin, RedisBackend), {})


class SiteBackend(_Stock):  # type: ignore[misc]
    """Result backend of a site's Celery application."""

    def __init__(self, *args: Any, app: Any, url: str | None = None, **kwargs: Any) -> None:
        # without the checks of TLS, which come from the settings: those of a URL are decoded twice
        plain, _ = split_checks(site_of(app).redis_url())
        super().__init__(*args, app=app, url=plain, **kwargs)
        self._copy_expires = site_of(app).settings.results.copy_expires

    def _add_global_keyprefix(self) -> None:
        prefix = site_of(self.app).settings.key_prefix
        for name in ("task_keyprefix", "group_keyprefix", "chord_keyprefix"):
            setattr(self, name, f"{prefix}{getattr(self, name)}")

    def _create_client(self, **params: Any) -> Any:
        # one immediate retry, for a pooled connection that a restart of Redis has broken, and none
        # after a silence: `get(timeout=…)` must not wait long for a server that hangs, SQL answers
        # too; whoever needs more patience has it: `ensure` here, the service's effects
        params |= {
            "retry": Retry(NoBackoff(), 1, (redis.exceptions.ConnectionError,)),
            "socket_timeout": SILENCE,
            "socket_connect_timeout": SILENCE,
        }
        return super()._create_client(**params)

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Nothing to subscribe to: waiting is by looking."""

    def _set(self, key: Any, value: Any, expires: float | None = None) -> None:
        # nobody is subscribed, so nothing is published
        self.client.set(key, value, ex=(self.expires if expires is None else expires) or None)

    # what the service stores

    def final(self, task_id: str, state: str, result: Any) -> bytes | str:
        """The result of a final task, as :meth:`store_finals` takes it.

        Args:
            task_id: the task.
            state: Celery's: SUCCESS, FAILURE or REVOKED.
            result: the JSON value, or the exception.
        """
        meta = self._get_result_meta(
            result=self.encode_result(result, state), state=state, traceback=None, request=None
        )
        payload: bytes | str = self.encode({**meta, "children": [], "task_id": task_id})
        return payload

    def store_finals(self, results: Mapping[str, bytes | str]) -> dict[str, Exception]:
        """Put the results of final tasks into Redis, in one go; again is harmless.

        Args:
            results: from :meth:`final`, by task.

        Returns:
            Why Redis has refused those that it has refused, by task.

        Raises:
            redis.exceptions.RedisError: Redis did not take them; do it again later.
        """
        with self.client.pipeline(transaction=False) as pipe:
            for task_id, payload in results.items():
                pipe.set(self.get_key_for_task(task_id), payload, ex=self._copy_expires)
            answers = pipe.execute(raise_on_error=False)
        told = zip(results, answers, strict=True)
        return {task_id: answer for task_id, answer in told if isinstance(answer, Exception)}

    def forget(self, task_id: str) -> None:
        """Drop a result from Redis; a row, if there is one, still answers.

        Raises:
            redis.exceptions.RedisError: Redis did not answer.
        """
        self._cache.pop(task_id, None)
        self.delete(self.get_key_for_task(task_id))

    # what workers store: a step's end goes to the service, not into Redis

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,
        state: str = states.SUCCESS,
    ) -> None:
        """Store a return value; that of a step is reported to the service."""
        attempt = attempt_of(request)
        if attempt is None:
            super().mark_as_done(task_id, result, request, store_result, state)
            return
        # raises EncodeError for a value that JSON cannot hold: then the task fails, as in Celery
        plain = json.loads(self.encode({"result": self.prepare_value(result)}))["result"]
        if is_too_deep(plain):
            raise EncodeError(f"the result is nested too deep: return {DEPTH} levels at most")
        report_end(self.app, task_id, attempt, state, plain, None)

    def mark_as_failure(
        self,
        task_id: str,
        exc: BaseException,
        traceback: str | None = None,
        request: Any = None,
        store_result: bool = True,
        call_errbacks: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        """Store an exception; that of a step is reported to the service."""
        attempt = attempt_of(request)
        if attempt is None:
            super().mark_as_failure(
                task_id, exc, traceback, request, store_result, call_errbacks, state
            )
            return
        plain = json.loads(self.encode(self.prepare_exception(exc)))
        report_end(self.app, task_id, attempt, state, plain, traceback)

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,
        state: str = states.REVOKED,
    ) -> None:
        """Store that a task was revoked; that of a step is reported to the service."""
        attempt = attempt_of(request)
        if attempt is not None:
            report_end(self.app, task_id, attempt, state, reason, None)
        elif request is not None or self._row(task_id) is None:
            super().mark_as_revoked(task_id, reason, request, store_result, state)
        # else: a task with a row that this worker does not hold: its holder will tell

    def mark_as_retry(
        self,
        task_id: str,
        exc: BaseException,
        traceback: str | None = None,
        request: Any = None,
        store_result: bool = True,
        state: str = states.RETRY,
    ) -> Any:
        """Store that a task tries again by itself; for a step that is no end of its attempt."""
        if attempt_of(request) is None:
            return super().mark_as_retry(task_id, exc, traceback, request, store_result, state)
        return None

    # reading

    def _redis_meta(self, task_id: str) -> Meta | None:
        payload = self.get(self.get_key_for_task(task_id))
        return self.decode_result(payload) if payload else None

    def _row(self, task_id: str) -> TaskRow | None:
        with store_of(self.app).read() as conn:
            return queries.find_tasks(conn, [task_id]).get(task_id)

    def _get_task_meta_for(self, task_id: str) -> Meta:
        try:
            meta = self._redis_meta(task_id)
        except redis.exceptions.RedisError:
            row = self._row(task_id)
            if row is None:
                raise
            return self._meta_of(row)
        if meta is not None and meta["status"] in states.READY_STATES:
            return meta
        row = self._row(task_id)
        if row is None:
            return meta or {"status": states.PENDING, "result": None}
        if meta is not None and meta["status"] not in _ROW_STATES and row.state is State.RUNNING:
            return meta  # the step said so itself, with update_state()
        return self._meta_of(row)

    def _meta_of(self, row: TaskRow) -> Meta:
        state, value = celery_result(row)
        traceback = None
        if isinstance(value, dict) and state in self.EXCEPTION_STATES:
            traceback = value.get("traceback")
            value = self.exception_to_python(value)
        done = None if row.finished is None else datetime.fromtimestamp(row.finished, UTC)
        return {
            "status": state,
            "result": value,
            "traceback": traceback,
            "children": [],
            "date_done": done and done.isoformat(),
            "task_id": row.id,
            "name": row.application,
        }

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        # as Celery's, which asks _get_task_meta_for() for the current state: a worker that stores
        # the result of an ordinary task has no business in SQL
        meta = self._get_result_meta(
            result=result, state=state, traceback=traceback, request=request
        )
        meta["task_id"] = bytes_to_str(task_id)
        current = self._redis_meta(task_id)
        if current is None or current["status"] != states.SUCCESS:
            self._set_with_state(self.get_key_for_task(task_id), self.encode(meta), state)
        return result

    # waiting

    def wait_for_pending(
        self,
        result: Any,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Any = None,
        on_interval: Any = None,
        callback: Any = None,
        propagate: bool = True,
    ) -> Any:
        """``AsyncResult.get``: wait, then return or raise."""
        self._ensure_not_eager()
        meta = self.wait_for(result.id, timeout, interval, no_ack, on_interval)
        if on_message is not None:
            on_message(meta)
        result._maybe_set_cache(meta)
        return result.maybe_throw(propagate=propagate, callback=callback)

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Any = None,
    ) -> Meta:
        """Wait for one task; returns what is known of its result.

        Raises:
            celery.exceptions.TimeoutError: not within ``timeout`` seconds.
        """
        for _, meta in self.get_many([task_id], timeout, interval, on_interval=on_interval):
            return meta
        raise AssertionError("unreachable: get_many yields or raises")

    def get_many(
        self,
        task_ids: Any,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_message: Any = None,
        on_interval: Any = None,
        max_iterations: int | None = None,
        READY_STATES: Any = states.READY_STATES,
    ) -> Iterator[tuple[str, Meta]]:
        """Results as they come: (id, meta) pairs, in no order.

        Raises:
            celery.exceptions.TimeoutError: not all of them within ``timeout`` seconds.
            redis.exceptions.RedisError: Redis is away, and none of the tasks has a row.
        """
        left = {bytes_to_str(task_id) for task_id in task_ids}
        deadline = None if timeout is None else time.monotonic() + timeout
        longest = min(_LONGEST_PAUSE, interval or _LONGEST_PAUSE)
        pause, next_sql, iterations = _FIRST_PAUSE, 0.0, 0
        while left:
            ready, away = self._ready_in_redis(left)
            if away is not None or time.monotonic() >= next_sql:
                ready.update(self._ready_in_sql(left - ready.keys(), away))
                next_sql = time.monotonic() + _SQL_PAUSE
            for task_id, meta in ready.items():
                left.discard(task_id)
                if meta["status"] == states.SUCCESS:
                    self._cache[task_id] = meta
                if on_message is not None:
                    on_message(meta)
                yield task_id, meta
            iterations += 1
            if not left or (max_iterations and iterations >= max_iterations):
                return
            if on_interval is not None:
                on_interval()
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise CeleryTimeoutError(f"not within {timeout} s: {len(left)} tasks are not done")
            pause = _FIRST_PAUSE if ready else min(pause * 1.5, longest)
            time.sleep(pause if remaining is None else min(pause, remaining))

    def _ready_in_redis(
        self, ids: set[str]
    ) -> tuple[dict[str, Meta], redis.exceptions.RedisError | None]:
        keys = list(ids)
        try:
            values = self.mget([self.get_key_for_task(task_id) for task_id in keys])
        except redis.exceptions.RedisError as error:
            return {}, error
        found: dict[str, Meta] = self._mget_to_results(values, keys)
        return found, None

    def _ready_in_sql(
        self, ids: set[str], away: redis.exceptions.RedisError | None
    ) -> dict[str, Meta]:
        """Final rows among ``ids``; ``away`` is why Redis could not be asked."""
        if not ids:
            return {}
        try:
            with store_of(self.app).read() as conn:
                final = queries.select_ids(
                    conn, TaskFilter(ids=tuple(ids), states=tuple(sorted(FINAL)))
                )
                rows = queries.find_tasks(conn, final) if final else {}
                if away is not None and not rows and not queries.find_tasks(conn, list(ids)):
                    raise away
        except StoreError as error:
            if away is not None:
                raise
            log.warning("results are looked for in Redis alone: %s", error)
            return {}
        return {id: self._meta_of(row) for id, row in rows.items()}
