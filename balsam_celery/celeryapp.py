"""The Celery application: its settings, for the login node and for pilots.

Importing this module reads no site and loads no SQLAlchemy: what depends on the site (broker,
prefix, expiry, imports) is looked up the first time that it is used, so that programs can be
declared anywhere.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import redis
from celery import Celery
from celery.loaders.base import BaseLoader
from redis.backoff import NoBackoff
from redis.retry import Retry

from balsam_celery import keys
from balsam_celery.channel import CarefulChannel
from balsam_celery.redisaddress import celery_settings
from balsam_celery.settings import Settings
from balsam_celery.site import Site, find

#: Environment variable with the role of a process of the site: ``service``, ``tasks``, ….
ROLE_VARIABLE = "BALSAM_ROLE"

#: Settings that no site changes (DESIGN section 3 says why).
_COMMON: dict[str, Any] = {
    "accept_content": ["json"],
    "task_serializer": "json",
    "result_serializer": "json",
    "event_serializer": "json",
    "result_accept_content": ["json"],
    "enable_utc": True,
    "timezone": "UTC",
    "task_acks_late": False,
    "task_track_started": False,
    "task_send_sent_event": False,
    "task_default_queue": keys.TASKS_QUEUE,
    "worker_send_task_events": False,
    "worker_enable_prefetch_count_reduction": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_hijack_root_logger": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    # a Redis that refuses, its disk or memory being full, is as good as away: without this a
    # worker ends, and what it runs with it
    "broker_channel_error_retry": True,
}
_STATIC: dict[str, Any] = {
    **_COMMON,
    "result_backend": "balsam_celery.tasks.backend:SiteBackend",
    "result_extended": True,
    # one at a time, so that a killed worker takes few unstarted steps along
    "worker_prefetch_multiplier": 1,
    "task_routes": {
        "balsam.pack": {"queue": keys.SERVICE_QUEUE},
        "balsam.poll": {"queue": keys.SERVICE_QUEUE},
        "balsam.housekeep": {"queue": keys.SERVICE_QUEUE},
        keys.TRANSITION: {"queue": keys.TRANSITIONS_QUEUE},
    },
}
#: Handlers of our own Celery tasks, loaded by the workers that run them.
_HANDLERS = "balsam_celery.tasks.handlers"


#: Seconds after which kombu sends again what a worker has and has not acknowledged. It may just
#: wait behind something long; and what is lost of steps and hooks ``service.checks`` finds.
_VISIBILITY = 7 * 86400


def _redis_settings(settings: Settings, redis_url: str) -> dict[str, Any]:
    return {
        **celery_settings(redis_url),
        "broker_transport_options": {
            "global_keyprefix": settings.key_prefix,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
    }


def _login_settings(site: Site, role: str) -> dict[str, Any]:
    imports: tuple[str, ...] = ()
    if role in ("service", "transitions"):
        imports = (_HANDLERS,)
    elif role == "tasks":
        imports = site.settings.tasks.imports
    redis_settings = _redis_settings(site.settings, site.redis_url())
    redis_settings["broker_transport_options"]["visibility_timeout"] = _VISIBILITY
    return {
        **redis_settings,
        "result_expires": site.settings.results.expires,
        "imports": imports,
    }


def settings_for(site: Site) -> dict[str, Any]:
    """Celery's settings on the login node: clients, workers, beat, Flower.

    The role in ``BALSAM_ROLE`` decides what a worker imports: users' modules only where users'
    Celery tasks run.

    Raises:
        SiteError: the site's secret cannot be read.
    """
    return {**_STATIC, **_login_settings(site, os.environ.get(ROLE_VARIABLE, ""))}


def pilot_settings(settings: Settings, redis_url: str) -> dict[str, Any]:
    """Celery's settings of a pilot's workers: no result backend, no users' modules, early acks."""
    plain = {
        **_COMMON,
        **_redis_settings(settings, redis_url),
        "result_backend": "disabled://",
        "task_ignore_result": True,
        "worker_prefetch_multiplier": 0,  # placement limits what arrives
        "imports": (),
    }
    # safe, because no correctness rests on acknowledgements (R3), and 2.75 times as fast
    plain["broker_transport_options"]["ack_emulation"] = False
    return plain


class SiteConfiguration(Mapping[str, Any]):
    """Celery's settings, the site's part of them found when first used.

    Raises (on use of a key that depends on the site):
        SiteError: there is no site, or it cannot be used.
    """

    _SITE_KEYS = (
        "broker_url", "broker_use_ssl", "redis_backend_use_ssl", "broker_transport_options",
        "result_expires", "imports",
    )  # fmt: skip

    @functools.cached_property
    def site(self) -> Site:
        """The site that the environment or the working directory names."""
        return find()

    @functools.cached_property
    def _of_site(self) -> dict[str, Any]:
        return _login_settings(self.site, os.environ.get(ROLE_VARIABLE, ""))

    def __getitem__(self, key: str) -> Any:
        if key in self._SITE_KEYS:
            return self._of_site[key]
        return _STATIC[key]

    def __iter__(self) -> Iterator[str]:
        yield from self._SITE_KEYS
        yield from _STATIC

    def __len__(self) -> int:
        return len(self._SITE_KEYS) + len(_STATIC)


class SiteLoader(BaseLoader):
    """Celery loader that reads its configuration from the site."""

    def read_configuration(self, env: str = "CELERY_CONFIG_MODULE") -> Any:
        """The site's settings, looked up lazily; Celery's variable for others is not read."""
        return SiteConfiguration()

    def import_default_modules(self) -> list[Any]:
        """Import what the role needs; users' modules may lie in the site's directory."""
        if os.environ.get(ROLE_VARIABLE) == "tasks":
            directory = str(current_site().directory)
            if directory not in sys.path:
                sys.path.append(directory)
        return super().import_default_modules()


class SiteCelery(Celery[Any]):
    """A Celery application whose workers do not die of what others put into their queues."""

    def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
        """The connection that messages, events and orders come by."""
        connection: Any = super().connection_for_read(url, **options)
        connection.transport.Channel = CarefulChannel
        return connection


app: SiteCelery = SiteCelery(
    "balsam_celery",
    loader=SiteLoader,
    task_cls="balsam_celery.tasks.base:BalsamTask",
    set_as_current=True,
)


def current_site() -> Site:
    """The site whose configuration :data:`app` uses.

    Raises:
        SiteError: there is none, or it cannot be used.
    """
    configuration = app.loader.conf
    assert isinstance(configuration, SiteConfiguration)
    return configuration.site


def make_pilot_app(site: Site) -> Celery[Any]:
    """A Celery application for a pilot's workers.

    Raises:
        SiteError: the site's secret cannot be read.
    """
    pilot_app: Celery[Any] = Celery("balsam_celery.pilot", set_as_current=True)
    pilot_app.config_from_object(pilot_settings(site.settings, site.redis_url()))
    return pilot_app


def make_site_app(site: Site) -> Celery[Any]:
    """A Celery application of ``site`` beside :data:`app`: to ask and order its workers."""
    site_app: Celery[Any] = Celery("balsam_celery.control", set_as_current=False)
    site_app.config_from_object({**settings_for(site), "result_backend": "disabled://"})
    return site_app


def redis_client(site: Site, *, timeout: float = 10.0) -> redis.Redis:
    """A Redis client: answers are bytes, nothing is sent twice, silence ends in an error.

    Args:
        site: the site.
        timeout: seconds to wait for a connection or an answer.
    """
    return redis.Redis.from_url(
        site.redis_url(),
        protocol=2,
        socket_timeout=timeout,
        socket_connect_timeout=min(timeout, 5.0),
        socket_keepalive=True,
        health_check_interval=25,
        retry=Retry(NoBackoff(), 0),
    )
