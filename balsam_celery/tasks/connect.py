"""From a Celery application to its site, its database and the service's inbox."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from celery import Celery

from balsam_celery import keys
from balsam_celery.celeryapp import SiteConfiguration, redis_client
from balsam_celery.errors import SiteError
from balsam_celery.site import Site, connect_store
from balsam_celery.store.engine import Store
from balsam_celery.wire import Record, Report, encode

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Shortest and longest pause, in seconds, while Redis is away.
_PAUSES = (0.05, 5.0)

_stores: dict[tuple[int, str], Store] = {}
_clients: dict[tuple[int, str], redis.Redis] = {}
_lock = threading.Lock()


def site_of(app: Celery[Any]) -> Site:
    """The site whose configuration ``app`` uses.

    Raises:
        SiteError: there is none, it cannot be used, or ``app`` is not one of ours.
    """
    configuration = app.loader.conf
    if not isinstance(configuration, SiteConfiguration):
        raise SiteError(
            f"the Celery application {app.main!r} belongs to no site: use balsam_celery.app"
        )
    return configuration.site


def store_of(app: Celery[Any]) -> Store:
    """The database of the site, one :class:`Store` a process.

    A forked worker opens its own: connections must not be used on both sides of a fork.

    Raises:
        SiteError: the site cannot be used here.
        StoreError: the database does not answer.
    """
    site = site_of(app)
    key = (os.getpid(), str(site.directory))
    with _lock:
        if key not in _stores:
            _stores[key] = connect_store(site)
        return _stores[key]


def client_of(app: Celery[Any]) -> redis.Redis:
    """The Redis of the site, one client a process; safe between threads."""
    site = site_of(app)
    key = (os.getpid(), str(site.directory))
    with _lock:
        if key not in _clients:
            # short: a client that finds Redis down must not stand still (the row is in SQL)
            _clients[key] = redis_client(site, timeout=3.0)
        return _clients[key]


def push(app: Celery[Any], *records: Record) -> None:
    """Put ``records`` into the service's inbox.

    Raises:
        redis.exceptions.RedisError: Redis did not take them.
    """
    report = Report(records=tuple((0, record) for record in records))
    inbox = keys.inbox(site_of(app).settings.key_prefix)
    client_of(app).rpush(inbox, encode(report))


def until_done(what: str, call: Callable[[], T]) -> T:
    """Call, as often as it takes, for a worker that cannot go on without Redis.

    Args:
        what: of a task, for the log.
        call: raises ``redis.exceptions.RedisError`` as long as Redis is away.
    """
    pause = _PAUSES[0]
    while True:
        try:
            return call()
        except redis.exceptions.RedisError as error:
            log.warning("%s waits: %s", what, error)
            threading.Event().wait(pause)
            pause = min(2 * pause, _PAUSES[1])


def close(app: Celery[Any]) -> None:
    """Close what this process has open for the site; the next use opens it again."""
    key = (os.getpid(), str(site_of(app).directory))
    with _lock:
        store, client = _stores.pop(key, None), _clients.pop(key, None)
    if store is not None:
        store.close()
    if client is not None:
        client.close()
