"""Submission: canvases into SQL in one transaction, then a hint to the service."""

from __future__ import annotations

import os
import pwd
import socket
import threading
import warnings
from collections.abc import Iterable
from typing import Any

import redis
from celery import Celery
from celery.result import GroupResult

from balsam_celery.errors import InvalidInput
from balsam_celery.store.insert import insert_tasks
from balsam_celery.tasks.canvas import Call, Compiler
from balsam_celery.tasks.connect import push, site_of, store_of
from balsam_celery.tasks.rows import RowMaker, Upstream
from balsam_celery.wire import Wake


class RedisDown(UserWarning):
    """Redis did not answer; what was asked is in SQL and is done when the service sees it."""


def apply(signature: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
    """Insert one canvas, as its ``apply_async`` would apply it.

    Returns:
        The ``AsyncResult`` or ``GroupResult`` that Celery would have given.

    Raises:
        InvalidInput: a part of it cannot be used; nothing was inserted.
        SiteError: no site here.
        StoreError: the database did not answer.
    """
    options = dict(options)
    add_to_parent = options.pop("add_to_parent", True)
    call = Call(args=tuple(args or ()), kwargs=dict(kwargs or {}), options=options)
    app = signature.app
    (result,) = _submit(app, [(signature, call)])
    parent = app.current_worker_task
    if add_to_parent and parent:
        parent.add_trail(result)
    return result


def submit_many(signatures: Iterable[Any], *, app: Celery[Any] | None = None) -> list[Any]:
    """Insert many signatures or canvases in one transaction: all of them or none.

    Args:
        signatures: of programs, or canvases; an ordinary Celery task becomes a row too.
        app: the Celery application; that of the first signature unless given.

    Returns:
        Their ``AsyncResult`` or ``GroupResult`` objects, in order.

    Raises:
        InvalidInput: one of them cannot be used.
        SiteError: no site here.
        StoreError: the database did not answer.
    """
    given = list(signatures)
    if not given:
        return []
    return _submit(app or given[0].app, [(signature, Call()) for signature in given])


def _submit(app: Celery[Any], calls: list[tuple[Any, Call]]) -> list[Any]:
    if app.conf.task_always_eager:
        raise InvalidInput("task_always_eager is set: programs never run in the calling process")
    store = store_of(app)
    now = store.clock()
    compiler = Compiler(RowMaker(app, site_of(app).settings, store, now))
    results = [_unwrapped(compiler.compile(signature, Upstream(), call).result)
               for signature, call in calls]  # fmt: skip
    if compiler.rows:
        who = user()
        store.run(lambda conn: insert_tasks(conn, compiler.rows, now=now, who=who))
        wake(app)
    return results


def _unwrapped(result: Any) -> Any:
    # as in celery.canvas.group.apply_async: a group of one chain that ends in a group
    if isinstance(result, GroupResult) and len(result) == 1:
        inner: Any = result[0]
        if isinstance(inner, GroupResult):
            return inner
    return result


_told = threading.Event()


def wake(app: Celery[Any]) -> None:
    """Tell the service to look into SQL; says once, as a :class:`RedisDown`, when it cannot."""
    try:
        push(app, Wake())
    except redis.exceptions.RedisError as error:
        if not _told.is_set():
            _told.set()
            warnings.warn(
                f"Redis does not answer ({error}): the request is in the database, and is served"
                " once the site runs ('balsam up')",
                RedisDown,
                stacklevel=2,
            )
    else:
        _told.clear()


def user() -> str:
    """Who asks, for events: user and host."""
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = str(os.geteuid())
    return f"{name}@{socket.gethostname()}"
