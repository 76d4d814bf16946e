"""Pid files: who a process of the site is, since when, and how its earlier lives ended."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from balsam_celery.private import write_private
from balsam_celery.procs import Identity, alive
from balsam_celery.site import Site

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """What the pid file of one process says.

    Attributes:
        name: of the process, such as ``service``.
        process: its identity; ``None`` while it waits to be started again.
        started: when, in seconds since the epoch.
        restarts: how often the daemon started it again.
        failures: how often in a row it ended soon after its start.
        last_exit: how the life before ended, ``""`` for the first.
    """

    name: str
    process: Identity | None
    started: float
    restarts: int = 0
    failures: int = 0
    last_exit: str = ""

    @property
    def is_alive(self) -> bool:
        """Exactly this process runs now."""
        return self.process is not None and alive(self.process)


def _path(site: Site, name: str) -> Path:
    return site.pid_dir / f"{name}.json"


def write(site: Site, record: Record) -> None:
    """Write the pid file as a whole (0600)."""
    write_private(_path(site, record.name), json.dumps(asdict(record)) + "\n")


def read(site: Site, name: str) -> Record | None:
    """The record of ``name``; ``None`` when there is none, or none that can be used."""
    path = _path(site, name)
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        process = plain.pop("process")
        return Record(process=None if process is None else Identity(**process), **plain)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # such a process is still found by its mark
        log.warning("the pid file %s cannot be used: %s", path, error)
        return None


def remove(site: Site, name: str) -> None:
    """Remove the pid file, if there is one."""
    _path(site, name).unlink(missing_ok=True)
