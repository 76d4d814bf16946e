"""A progress bar on stderr for long work, where that is a terminal."""

from __future__ import annotations

import sys
from typing import Self


class Bar:
    """Shows how far something is; a context manager. Shows nothing where there is no terminal."""

    def __init__(self) -> None:
        self._progress = None
        if not sys.stderr.isatty():
            return
        # dear to load, and of use at a terminal alone
        from rich import progress
        from rich.console import Console

        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, done: int, total: int | None, text: str) -> None:
        """Show that ``done`` of ``total`` are done; ``None``: of nobody knows how many."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total, description=text)
