"""What commands print: JSON for programs, aligned columns for people."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from balsam_celery.durations import format_duration

_COLOURS = {
    "JOB_FINISHED": "green",
    "RUNNING": "cyan",
    "DISPATCHED": "cyan",
    "FAILED": "red",
    "USER_KILLED": "magenta",
    "RUN_ERROR": "yellow",
    "RUN_TIMEOUT": "yellow",
    "RESTART_READY": "yellow",
    "LIVE": "green",
    "ENDED": "bright_black",
}


def echo_json(value: Any) -> None:
    """``value`` as indented JSON on stdout; ASCII, so that any terminal and pipe carries it."""
    click.echo(json.dumps(value, indent=2))


def say(message: str) -> None:
    """A remark to the user, on stderr, so that stdout holds results alone."""
    click.echo(f"balsam: {message}", err=True)


def plural(count: int, noun: str) -> str:
    """``3 tasks``, ``1 task``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def local_time(seconds: float | None) -> str:
    """``seconds`` since the epoch on the user's clock: ``2026-11-22 17:54:27``, or ``-``."""
    if seconds is None:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def span(start: float | None, end: float | None) -> str:
    """The time from ``start`` to ``end``, or ``-``."""
    if start is None or end is None:
        return "-"
    return format_duration(max(0.0, end - start))


def visible(text: str) -> str:
    """``text`` on one line, with control characters written out.

    Names and reasons come from users and programs: nothing in them may drive the terminal.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    state_column: int = -1,
    notes: Sequence[str] = (),
) -> None:
    """Rows under their heads, aligned; the last column is cut to the terminal's width.

    Args:
        notes: one for each row, printed whole below it; ``""``: none.
    """
    cells = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(h), *(len(row[i]) for row in cells), 0) for i, h in enumerate(head)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    click.secho(_line(head, widths, room), bold=True)
    for index, row in enumerate(cells):
        line = _line(row, widths, room)
        if state_column >= 0 and (colour := _COLOURS.get(row[state_column])):
            start = sum(widths[:state_column]) + 2 * state_column
            end = start + len(row[state_column])
            line = line[:start] + click.style(line[start:end], fg=colour) + line[end:]
        click.echo(line)
        if notes and notes[index]:
            click.echo(f"    {visible(notes[index])}")


def _line(cells: Sequence[str], widths: Sequence[int], room: int | None) -> str:
    text = "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()
    return text if room is None or len(text) <= room else text[: room - 1] + "…"
