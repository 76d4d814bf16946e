"""The tasks worker's part in steps: telling the service of their start and end.

A step is an ordinary Celery task that stands in a canvas with programs. Its message carries the
number of its attempt and nothing of the canvas; the worker's reports are all that the service
needs to go on. A message may come twice or late; its body runs once (``copies``).
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from typing import Any

import redis
from celery import Celery, signals, states
from celery.app.task import Context
from celery.canvas import maybe_signature
from celery.worker import state as worker_state
from celery.worker.request import Request

from balsam_celery import keys
from balsam_celery.copies import Begun, Copy, step_order
from balsam_celery.errors import TaskFailed, TaskTimeout
from balsam_celery.tasks.base import COPY, REPLACED, BalsamTask, attempt_of, end_copy
from balsam_celery.tasks.connect import client_of, push, site_of, until_done
from balsam_celery.wire import StepStarted

log = logging.getLogger(__name__)

#: Celery task that calls an errback of three arguments.
ERRBACK = "balsam.errback"
_REMEMBERED = 10_000

#: Latest attempt of each step that was revoked here.
_revoked: OrderedDict[str, int] = OrderedDict()
#: Steps that processes of this worker have begun: Redis may forget it.
_begun = Begun(_REMEMBERED)


def _order_of(request: Any) -> str:
    return step_order(
        attempt_of(request) or 0,
        getattr(request, "replaced_task_nesting", None) or 0,
        getattr(request, "retries", None) or 0,
    )


def _copy_of(app: Celery[Any], id: str, request: Any) -> Copy:
    """The copy of a step's message that ``request`` holds."""
    key = keys.begun(site_of(app).settings.key_prefix, keys.step_message(id))
    return Copy(key, _order_of(request))


def _begin(app: Celery[Any], id: str, copy: Copy) -> bool:
    """Whether this copy may run; waits for Redis."""
    begins = until_done(f"the start of step {id}", lambda: copy.begin(client_of(app)))
    if not begins:
        log.warning("dropped a message of step %s: it, or a later one, has begun before", id)
    return begins


def _on_prerun(task_id: str, task: Any, **_: Any) -> None:
    attempt = attempt_of(task.request)
    if attempt is None:
        return
    copy = _copy_of(task.app, task_id, task.request)
    if not _begin(task.app, task_id, copy):
        return
    setattr(task.request, COPY, copy)
    started = StepStarted(
        id=task_id, attempt=attempt, time=time.time(), worker=task.request.hostname or ""
    )
    try:
        push(task.app, started)
    except redis.exceptions.RedisError as error:
        # the end is what counts; it implies the start
        log.warning("the start of step %s was not reported: %s", task_id, error)


def _on_postrun(task_id: str, task: Any, state: str, **_: Any) -> None:
    copy = getattr(task.request, COPY, None)
    if copy is None:
        return
    try:
        copy.end(client_of(task.app))
    except redis.exceptions.RedisError as away:
        log.info("what is remembered of step %s stays for longer: %s", task_id, away)
    # Celery stores nothing for a task that raises Ignore, so a canvas would wait for ever
    if state == states.IGNORED and not getattr(task.request, REPLACED, False):
        error = TaskFailed("the task raised Ignore, so it has no result to hand on")
        task.backend.mark_as_failure(task_id, error, request=task.request)


_Stock: Any = Request  # the stubs lack some of it


class StepRequest(_Stock):  # type: ignore[misc]
    """Celery's request of a task; a revoked step may run again as a later attempt."""

    _context: Any  # Celery's; missing in its stubs

    def revoked(self) -> bool:
        """Whether it must not run; says so to the service."""
        attempt = attempt_of(self._context)
        if attempt is None:
            return bool(super().revoked())
        if not self._already_revoked and _begun.has(self.id, _order_of(self._context)):
            log.warning("dropped a message of step %s: it has begun here before", self.id)
            self._drop()
            return True
        if attempt > _revoked.get(self.id, attempt):
            worker_state.revoked.discard(self.id)
            return bool(super().revoked())
        if self.id in worker_state.revoked:
            remember_revoked(self.id, attempt)
        return bool(super().revoked())

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Say that it was revoked or has expired; nothing of a copy of what runs elsewhere."""
        if not terminated and attempt_of(self._context) is not None:
            app = self.task.app
            if not _begin(app, self.id, _copy_of(app, self.id, self._context)):
                self._drop()
                return
        super()._announce_revoked(reason, terminated, signum, expired)

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        """As Celery's: a process has begun it."""
        if attempt_of(self._context) is not None:
            _begun.note(self.id, _order_of(self._context))
        super().on_accepted(pid, time_accepted)

    def _drop(self) -> None:
        worker_state.task_ready(self)
        self.acknowledge()
        self._already_revoked = True


def remember_revoked(id: str, attempt: int) -> None:
    """Attempts of a step up to this one must not run here."""
    _revoked[id] = max(attempt, _revoked.get(id, 0))
    _revoked.move_to_end(id)
    while len(_revoked) > _REMEMBERED:
        _revoked.popitem(last=False)


def call_errback(task: Any, failure: dict[str, Any], plain: dict[str, Any]) -> None:
    """Call an errback as Celery does: with (request, exc, traceback)."""
    app = task.app
    if "exc_type" in failure:
        error = app.backend.exception_to_python(failure)
    else:
        kind = TaskTimeout if failure.get("outcome") == "timeout" else TaskFailed
        error = kind(str(failure.get("reason", "")), failure)
    request = Context(
        id=failure["task_id"],
        task=failure.get("name", ""),
        root_id=failure["task_id"],
        delivery_info={},
    )
    errback: Any = maybe_signature(plain, app)
    errback(request, error, failure.get("traceback"))


def _adopt(task: Any) -> None:
    """Let a task whose base is Celery's own be a step all the same."""
    kind = type(task)  # where Celery looks whether there is anything to call
    own = kind.before_start

    def before_start(self: Any, task_id: str, args: Any, kwargs: Any) -> None:
        end_copy(self.request)
        own(self, task_id, args, kwargs)

    kind.before_start = before_start
    kind.Request = BalsamTask.Request


def install(app: Celery[Any]) -> None:
    """Make this worker report the steps that it runs."""
    signals.task_prerun.connect(_on_prerun)
    signals.task_postrun.connect(_on_postrun)
    for task in app.tasks.values():
        if not isinstance(task, BalsamTask):
            _adopt(task)
    if ERRBACK not in app.tasks:
        app.task(bind=True, name=ERRBACK, shared=False, lazy=False)(call_errback)
