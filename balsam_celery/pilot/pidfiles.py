"""Pid files: which process of a pilot is which, for those that come later."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from balsam_celery import procs

logger = logging.getLogger(__name__)


def write_pid_file(path: Path) -> None:
    """Note this process's identity."""
    own = procs.own_identity()
    content = {"pid": own.pid, "start_time": own.start_time, "boot_id": own.boot_id}
    path.write_text(json.dumps(content), encoding="utf-8")


def read_pid_file(path: Path) -> procs.Identity | None:
    """The process that a pid file names, ``None`` when there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return procs.Identity(content["pid"], content["start_time"], content["boot_id"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        logger.warning("%s does not name a process", path)
        return None
