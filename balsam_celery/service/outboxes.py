"""Reads outboxes: what workers have not been told that it is recorded (R5)."""

from __future__ import annotations

from pathlib import Path

from balsam_celery.outbox import read_outbox
from balsam_celery.wire import Ended

#: Outcomes, and what could not be read, and why.
Found = tuple[list[Ended], list[str]]


def read(directory: Path) -> Found:
    """All that the outboxes of a pilot's directory hold; blocks for as long as the files do."""
    outcomes: list[Ended] = []
    unread = []
    try:
        files = sorted(path for path in directory.iterdir() if path.suffix == ".outbox")
    except OSError as error:
        return [], [f"{directory}: {error.strerror}"]
    for path in files:
        try:
            outcomes += read_outbox(path)
        except OSError as error:
            unread.append(f"{path}: {error.strerror}")
    return outcomes, unread
