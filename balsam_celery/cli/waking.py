"""Telling the service that rows have changed: a hint, for it looks by itself too."""

from __future__ import annotations

import redis

from balsam_celery import keys
from balsam_celery.celeryapp import redis_client
from balsam_celery.cli.output import say
from balsam_celery.site import Site
from balsam_celery.wire import Report, Wake, encode

#: Seconds that a command waits for Redis; what it did is in the database already.
TIMEOUT = 3.0


def wake(site: Site) -> None:
    """Wake the service; when Redis is down, tell the user what follows from it."""
    report = encode(Report(records=((0, Wake()),)))
    try:
        with redis_client(site, timeout=TIMEOUT) as client:
            client.rpush(keys.inbox(site.settings.key_prefix), report)
    except redis.RedisError:
        say(
            "Redis does not answer: the request is in the database, and takes effect once the"
            " site is up ('balsam up')"
        )
