"""The ledger that the programs of a run write: who started and ended when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tests.chaos.plan import Injected


@dataclass(frozen=True, slots=True)
class Line:
    """One line (``tests.chaos.program``).

    Attributes:
        what: ``start``, ``end``, ``overlap`` or ``told``.
        task, attempt, rank: who; ``ID:STEP`` for a hook of a task.
        pid: its process.
        monotonic, wall: when, in seconds, by the clocks of the machine.
        last: cores it holds, its exit status, or the task that it is told of.
    """

    what: str
    task: str
    attempt: int
    rank: str
    pid: int
    monotonic: float
    wall: float
    last: str

    @property
    def is_hook(self) -> bool:
        """Of a task's hook."""
        return ":" in self.task

    @property
    def run(self) -> tuple[str, int, str]:
        """Task, attempt and rank: what runs once at the most."""
        return self.task, self.attempt, self.rank


def parse(text: str) -> list[Line]:
    """Lines of a ledger, in the order of writing.

    Raises:
        ValueError: a line that no program writes.
    """
    return [_line(line) for line in text.splitlines()]


def _line(text: str) -> Line:
    what, task, attempt, rank, pid, monotonic, wall, last = text.split(" ")
    return Line(what, task, int(attempt), rank, int(pid), float(monotonic), float(wall), last)


def overlaps(lines: Iterable[Line]) -> list[str]:
    """Attempts that ran while an earlier one of the same task did, in words.

    Told by the program itself, which found its lock held, or by the times of the lines.
    """
    found = []
    started: dict[str, dict[int, float]] = {}
    ended: dict[str, dict[int, float]] = {}
    for line in lines:
        if line.what == "overlap":
            found.append(f"{line.task}: attempt {line.attempt} found an earlier one alive")
        if line.what not in ("start", "end"):
            continue
        book = started if line.what == "start" else ended
        times = book.setdefault(line.task, {})
        choose = min if line.what == "start" else max
        times[line.attempt] = choose(times.get(line.attempt, line.monotonic), line.monotonic)
    for task, starts in started.items():
        for attempt, end in ended.get(task, {}).items():
            later = [number for number, start in starts.items() if number > attempt and start < end]
            found += [f"{task}: attempt {number} began before {attempt} ended" for number in later]
    return found


def run_twice(lines: Iterable[Line], killed: Iterable[Injected] = ()) -> list[str]:
    """Attempts of which a rank started more than once, and hooks that did, in words.

    Args:
        lines: the ledger.
        killed: faults that have killed the transitions worker: if one came after the start of a
            hook, and before the next, that is right.
    """
    seen: dict[tuple[str, int, str], float] = {}
    found = []
    killed = list(killed)
    for line in lines:
        if line.what != "start":
            continue
        before = seen.get(line.run)
        seen[line.run] = line.monotonic
        if before is None or (
            line.is_hook
            and any(one.monotonic < line.monotonic and before < one.lifted for one in killed)
        ):
            continue
        found.append(f"{line.task}: attempt {line.attempt}, rank {line.rank} ran twice")
    return found


def successes(lines: Iterable[Line]) -> dict[str, set[int]]:
    """Attempts of each task of which every rank that started wrote an end with status 0."""
    started: dict[tuple[str, int], set[str]] = {}
    good: dict[tuple[str, int], set[str]] = {}
    for line in lines:
        key = (line.task, line.attempt)
        if line.what == "start":
            started.setdefault(key, set()).add(line.rank)
        elif line.what == "end" and line.last == "0":
            good.setdefault(key, set()).add(line.rank)
    found: dict[str, set[int]] = {}
    for (task, attempt), ranks in started.items():
        if good.get((task, attempt)) == ranks:
            found.setdefault(task, set()).add(attempt)
    return found
