"""Whether the processes of a site answer: Redis, Celery workers, beat's lease, Flower's page.

A probe returns ``""`` when its process answers, else what is the matter, in one line.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterable

import kombu.exceptions
import redis

from balsam_celery.celeryapp import make_site_app, redis_client
from balsam_celery.errors import StoreError
from balsam_celery.redisserver import answers
from balsam_celery.site import Site, connect_store
from balsam_celery.store import lease
from balsam_celery.supervisor.children import worker_host

#: Processes that are Celery workers.
WORKERS = ("service", "transitions", "tasks")


def probe_redis(site: Site) -> str:
    """Redis takes the password and has loaded its data."""
    with redis_client(site, timeout=2.0) as client:
        return answers(client)


def probe_workers(site: Site, names: Iterable[str], timeout: float = 1.0) -> dict[str, str]:
    """Each of the workers answers Celery's ping.

    Args:
        timeout: seconds to wait for answers.
    """
    hosts = {name: worker_host(name) for name in names}
    if not hosts:
        return {}
    try:
        with make_site_app(site) as app:
            inspect = app.control.inspect(list(hosts.values()), timeout=timeout, limit=len(hosts))
            replies = inspect.ping() or {}
    except (kombu.exceptions.OperationalError, redis.exceptions.RedisError, OSError) as error:
        return dict.fromkeys(hosts, f"Redis does not answer: {error}")
    return {
        name: "" if host in replies else "it does not answer Celery's ping"
        for name, host in hosts.items()
    }


def probe_beat(site: Site, pid: int | None) -> str:
    """Beat holds its lease.

    Args:
        pid: of the process that must hold it; ``None``: any.
    """
    store = connect_store(site)
    try:
        held = lease.holder(store, "beat")
    except StoreError as error:
        return str(error)
    finally:
        store.close()
    if held is None or held[1] < time.time():
        return "it does not hold its lease"
    if pid is not None and str(pid) not in held[0].replace("/", ":").split(":"):
        return f"the lease is held by {held[0]}"
    return ""


def probe_flower(site: Site) -> str:
    """Flower serves its pages."""
    settings = site.settings.flower
    connection = http.client.HTTPConnection(settings.host, settings.port, timeout=2.0)
    try:
        connection.request("GET", "/healthcheck")
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException) as error:
        return f"http://{settings.host}:{settings.port}: {error}"
    finally:
        connection.close()
    return "" if response.status == 200 else f"HTTP status {response.status}"


def port_is_taken(host: str, port: int) -> bool:
    """Something listens on the port."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False
