"""What a site is short of: room on its disks, memory of its Redis.

Whoever meets such a shortage waits and tries again, and goes on when it is over; here the user is
told what to see to.
"""

from __future__ import annotations

import os

import redis

from balsam_celery.amounts import format_bytes
from balsam_celery.celeryapp import redis_client
from balsam_celery.errors import BalsamError
from balsam_celery.site import Site

#: Free bytes of a file system below which its state is told.
LEAST_FREE = 16 * 2**20


def shortages(site: Site) -> tuple[str, ...]:
    """A line for each thing that the site is short of; what cannot be looked at is passed over."""
    return (*_disks(site), *_redis(site))


def _disks(site: Site) -> list[str]:
    places = {
        "logs": site.log_dir,
        "work directories and outboxes": site.run_dir,
        "database, Redis": site.local_dir,
    }
    if site.uses_sqlite:
        places["database"] = site.database_path.parent
    found: dict[int, str] = {}
    for what, path in places.items():
        try:
            device, state = path.stat().st_dev, os.statvfs(path)
        except OSError:
            continue
        free = state.f_bavail * state.f_frsize
        # some file systems count no files
        full = free < LEAST_FREE or (state.f_files and not state.f_favail)
        if full and device not in found:
            left = "no more files" if free >= LEAST_FREE else f"{format_bytes(free)} left"
            found[device] = f"the disk is full under {path} ({what}): {left}; make room there"
    return list(found.values())


def _redis(site: Site) -> list[str]:
    try:
        with redis_client(site, timeout=2.0) as client:
            info = client.info()
    except (BalsamError, redis.exceptions.RedisError, OSError):
        return []  # that it does not answer is told beside it
    found: list[str] = []
    most, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    # a write is refused before the last bytes are taken
    if most and used >= 0.98 * most:
        found.append(
            f"Redis has used {format_bytes(used)} of its maxmemory of {format_bytes(most)} and"
            " takes no more: outcomes wait at the workers until it may have more"
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        found.append("Redis cannot write its file, and takes nothing until it can: is a disk full?")
    return found
