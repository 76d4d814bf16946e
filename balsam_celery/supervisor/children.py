"""Which processes a site needs, and how each is started."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from balsam_celery import keys
from balsam_celery.celeryapp import ROLE_VARIABLE
from balsam_celery.redisserver import server_command
from balsam_celery.site import SITE_VARIABLE, Site, config_file, this_host
from balsam_celery.supervisor.logs import log_path

#: Marks every process of a site with ``<site id>/<name>``.
MARK_VARIABLE = "BALSAM_PROCESS"
SUPERVISOR = "supervisor"
#: Module that is run as a worker or beat.
CELERY_COMMAND = "balsam_celery.supervisor.celerycommand"
#: All that ``up`` may start, in the order of starting; stopping goes the other way.
NAMES = ("redis", "service", "transitions", "tasks", "beat", "flower")


@dataclass(frozen=True, slots=True)
class Child:
    """One process to keep running.

    Attributes:
        name: one of :data:`NAMES`.
        argv: its command; runs in the foreground.
        environment: all of its environment.
        log: where its output goes.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path


def names(site: Site) -> tuple[str, ...]:
    """Names of the processes that this site needs, in the order of starting."""
    left_out = set()
    if not site.has_own_redis:
        left_out.add("redis")
    if not site.settings.flower.enabled:
        left_out.add("flower")
    return tuple(name for name in NAMES if name not in left_out)


def worker_host(role: str) -> str:
    """Celery's host name of the login node's worker for ``role``."""
    return f"{role}@{this_host()}"


def mark(site: Site, name: str) -> str:
    """The mark, as ``NAME=VALUE``, in the environment of the process ``name``."""
    return f"{MARK_VARIABLE}={site.settings.site.id}/{name}"


def environment_for(site: Site, name: str) -> dict[str, str]:
    """Environment of the process ``name``: the user's, less what would turn Celery elsewhere."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("CELERY_", "FLOWER_", "BALSAM_PILOT", "BALSAM_LOCAL"))
    }
    if path := environment.get("PYTHONPATH"):
        # relative entries would mean another directory there
        parts = [str(Path(part).absolute()) for part in path.split(os.pathsep) if part]
        environment["PYTHONPATH"] = os.pathsep.join(parts)
    variable, _, value = mark(site, name).partition("=")
    return environment | {
        variable: value,
        SITE_VARIABLE: str(site.directory),
        ROLE_VARIABLE: name,
        "PYTHONUNBUFFERED": "1",
        # setproctitle would otherwise overwrite the environment that /proc shows, mark and all
        "SPT_NOENV": "1",
    }


def child(site: Site, name: str) -> Child:
    """How the process ``name`` is started.

    Raises:
        SiteError: a secret or file that it needs cannot be used.
    """
    return Child(name, tuple(_argv(site, name)), environment_for(site, name), log_path(site, name))


def _argv(site: Site, name: str) -> list[str]:
    settings = site.settings
    if name == "redis":
        return server_command(site)
    # -P: a file of the user's that is called like a module of ours must not take its place
    python = [sys.executable, "-P", "-m"]
    celery = [*python, CELERY_COMMAND]
    level = ["--loglevel", settings.logs.level]
    if name == "beat":
        return [
            *celery, "beat", *level, "--pidfile=",
            "--scheduler", "balsam_celery.beat.scheduler:LeasedScheduler",
            "--schedule", str(site.local_dir / "beat-schedule"),
        ]  # fmt: skip
    if name == "flower":
        flower = [*python, "celery", "-A", "balsam_celery", "flower"]
        return [*flower, f"--conf={config_file('flowerconfig.py')}"]
    worker = [*celery, "worker", *level, "-n", worker_host(name)]
    quiet = ["--without-gossip", "--without-mingle"]
    if name == "service":
        # short bodies that wait for SQL and commands: threads of one process
        return [*worker, *quiet, "-Q", keys.SERVICE_QUEUE, "-P", "threads", "-c", "4"]
    if name == "transitions":
        concurrency = str(settings.transitions.concurrency)
        return [*worker, *quiet, "-Q", keys.TRANSITIONS_QUEUE, "-P", "threads", "-c", concurrency]
    if name == "tasks":
        return [
            *worker,
            *quiet,
            "-Q",
            keys.TASKS_QUEUE,
            "-E",
            "-c",
            str(settings.tasks.concurrency),
        ]
    raise ValueError(f"no process is called {name!r}")
