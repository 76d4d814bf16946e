"""The figures of runs, added up: as a table for people, as JSON for machines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

#: Seconds to full work, at the most: from the restart of a process of the site …
RESTART = 10.0
#: … and from the loss of a pilot, which the scheduler sees later.
LOST, LOST_PILOT = "kill:pilot", 60.0


@dataclass
class Result:
    """What one run came to.

    Attributes:
        seed, site, database: which run: ``local`` or ``slurm``, ``sqlite`` or ``postgres``.
        tasks, attempts: how many.
        faults: how many of each kind were injected.
        overlapping: how many of them came while another lasted.
        missed: of each kind how often there was nothing to be broken.
        recovery: for faults that were alone, by kind, seconds from the end of each to full work.
        restarted: likewise, of processes of the site alone, seconds from the start of the new one.
        slowest: as ``recovery``, for faults that overlapped, the longest.
        findings: how many of each kind of :class:`tests.chaos.audit.Findings`.
        told: the first of them, in words.
        done_again: tasks whose program ran to a good end more than once.
        stale: allocations that had to be cancelled: Slurm called them running, without a pilot.
        seconds: how long the run took.
    """

    seed: int
    site: str
    database: str
    tasks: int = 0
    attempts: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    overlapping: int = 0
    missed: dict[str, int] = field(default_factory=dict)
    recovery: dict[str, list[float]] = field(default_factory=dict)
    restarted: dict[str, list[float]] = field(default_factory=dict)
    slowest: float = 0.0
    findings: dict[str, int] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    done_again: int = 0
    stale: int = 0
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Nothing was found."""
        return not any(self.findings.values())

    @property
    def key(self) -> tuple[int, str, str]:
        """What makes it the same run."""
        return self.seed, self.site, self.database


def slow(result: Result) -> list[str]:
    """Recoveries of a run that took longer than they must at the most, in words."""
    found = [
        f"{kind}: full work only {seconds} s after the restart, not within {RESTART:.0f} s"
        for kind, several in result.restarted.items()
        for seconds in several
        if seconds > RESTART
    ]
    found += [
        f"{LOST}: full work only {seconds} s after it, not within {LOST_PILOT:.0f} s"
        for seconds in result.recovery.get(LOST, ())
        if seconds > LOST_PILOT
    ]
    return found


def load(path: Path) -> list[Result]:
    """Results of a file with one JSON object a line; of a missing file none."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Result(**json.loads(line)) for line in lines if line]


def append(path: Path, result: Result) -> None:
    """Add a result to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def table(results: Sequence[Result]) -> str:
    """Figures of all runs together, as Markdown."""
    runs = Counter(f"{one.site} with {one.database}" for one in results)
    faults = _sum(one.faults for one in results)
    missed = _sum(one.missed for one in results)
    findings = _sum(one.findings for one in results)
    overlapping = sum(one.overlapping for one in results)
    total = sum(faults.values())
    head = [
        ("runs", ", ".join(f"{count} {name}" for name, count in sorted(runs.items()))),
        ("tasks", sum(one.tasks for one in results)),
        ("attempts", sum(one.attempts for one in results)),
        ("faults injected", total),
        ("of them overlapping another", f"{overlapping} ({overlapping / max(1, total):.0%})"),
        *findings.items(),
        ("program done again (its end was not written down)", sum(r.done_again for r in results)),
        ("allocations cancelled that Slurm called running", sum(r.stale for r in results)),
        (
            "longest from overlapping faults to full work",
            f"{max(r.slowest for r in results):.1f} s",
        ),
    ]
    lines = [
        "| figure | value |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in head),
    ]
    lines += [
        "",
        "| fault | injected | alone, then full work | median | longest | since the restart |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind in sorted(faults | missed):
        times = sorted(time for one in results for time in one.recovery.get(kind, ()))
        shown = f"{times[len(times) // 2]:.1f} s | {times[-1]:.1f} s" if times else "- | -"
        since = [time for one in results for time in one.restarted.get(kind, ())]
        shown += f" | {max(since):.1f} s" if since else " | -"
        lines.append(f"| {kind} | {faults[kind]} | {len(times)} | {shown} |")
    return "\n".join(lines)


def _sum(several: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in several:
        total.update(one)
    return total
