"""How many cores are at work now, by the ledger and the processes themselves."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from balsam_celery import procs
from tests.chaos.ledger import parse

#: Seconds between two looks.
EVERY = 0.2
#: Full work: on average over this many seconds as many cores at work …
OVER = 1.0
#: … as this part of the median before the fault …
PART = 0.6
#: … for this many seconds without a break: longer than most programs, which go on by themselves.
STEADY = 3.0
#: Seconds of undisturbed work that the median is taken of.
BEFORE = 20.0


class Meter(threading.Thread):
    """Looks at the ledger until :meth:`stop`."""

    def __init__(self, path: Path) -> None:
        super().__init__(name="meter", daemon=True)
        self._path = path
        self._stopped = threading.Event()
        self._offset = 0
        self._rest = ""
        self._running: dict[tuple[str, int, str], tuple[procs.Identity, int]] = {}
        self._samples: deque[tuple[float, int]] = deque(maxlen=10_000)

    def run(self) -> None:
        """Look, wait, look."""
        while not self._stopped.wait(EVERY):
            self._look()
            busy = sum(cores for _, cores in self._running.values())
            self._samples.append((time.monotonic(), busy))

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self.join()

    def _look(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        whole, _, self._rest = (self._rest + new.decode()).rpartition("\n")
        for line in parse(whole):
            if line.what == "end":
                self._running.pop(line.run, None)
            elif line.what == "start" and (process := procs.identity(line.pid)) is not None:
                self._running[line.run] = (process, int(line.last))
        for run, (process, _) in list(self._running.items()):
            if not procs.alive(process):
                del self._running[run]

    def level(self, since: float, until: float) -> float:
        """Median of the cores at work between two times of the monotonic clock."""
        values = [busy for when, busy in self._samples.copy() if since <= when <= until]
        return statistics.median(values) if values else 0.0

    def mean(self, since: float) -> float:
        """Mean of the cores at work since a time of the monotonic clock."""
        values = [busy for when, busy in self._samples.copy() if when >= since]
        return statistics.fmean(values) if values else 0.0

    def full_since(self, since: float, level: float) -> float | None:
        """When the full work began that goes on now, if it has lasted for ``STEADY`` seconds.

        Args:
            since: what was before does not count, monotonic clock.
            level: cores at work before the fault.
        """
        return full_since(self._samples.copy(), since, PART * level)


def full_since(samples: Iterable[tuple[float, int]], since: float, least: float) -> float | None:
    """Pure part of :meth:`Meter.full_since`; samples are (time, cores at work)."""
    recent = [sample for sample in samples if sample[0] >= since]
    began: float | None = None
    width = round(OVER / EVERY)
    for last in range(len(recent)):
        window = recent[max(0, last + 1 - width) : last + 1]
        if statistics.fmean(busy for _, busy in window) < least:
            began = None
        elif began is None:
            began = recent[last][0]
    return began if began is not None and recent[-1][0] - began >= STEADY else None
