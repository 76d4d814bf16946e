"""How long programs run, learned from those that did.  Pure (R9): plain values in and out.

Runs are counted by application and shape in steps of time that grow by a tenth each, so that a
hundred rows hold what a million runs took, no value is off by more than one step, and the row of a
run is known without reading any other.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

#: Step 0 ends at LEAST seconds, each later one GROWTH times as far.
LEAST, GROWTH = 0.01, 1.1
#: Runs from which something is said: the least of which one is beyond a quantile of 0.9.
ENOUGH = 10


class Run(NamedTuple):
    """A run that ended well: ``shape`` is of :func:`shape_of`."""

    application: str
    shape: str
    seconds: float


def shape_of(
    num_nodes: int, ranks_per_node: int, threads_per_rank: int, gpus_per_rank: float
) -> str:
    """What of a task's resources changes its runtime, as text."""
    return (
        f"nodes={num_nodes} ranks={ranks_per_node} threads={threads_per_rank}"
        f" gpus={gpus_per_rank:g}"
    )


def bucket_of(seconds: float) -> int:
    """The step in which a run of ``seconds`` ended."""
    if seconds < LEAST:
        return 0
    return 1 + math.floor(math.log(seconds / LEAST, GROWTH))


def end_of(bucket: int) -> float:
    """Seconds at which a step ends."""
    return LEAST * GROWTH**bucket


class Histogram:
    """Runs by the step in which they ended.

    Args:
        counts: step → runs, one or more; in all one or more.

    Attributes:
        count: of all runs.
    """

    __slots__ = ("_begins", "_counts", "_ends", "_later_runs", "_later_seconds", "count")

    def __init__(self, counts: Mapping[int, int]) -> None:
        steps = sorted(counts)
        self._counts = [counts[step] for step in steps]
        self._ends = [end_of(step) for step in steps]
        self._begins = [end_of(step - 1) if step else 0.0 for step in steps]
        #: of the steps from each one on: runs, and the sum of what they took
        self._later_runs, self._later_seconds = [0], [0.0]
        for at in reversed(range(len(steps))):
            seconds = self._counts[at] * (self._begins[at] + self._ends[at]) / 2
            self._later_runs.append(self._later_runs[-1] + self._counts[at])
            self._later_seconds.append(self._later_seconds[-1] + seconds)
        self._later_runs.reverse()
        self._later_seconds.reverse()
        self.count = self._later_runs[0]

    def quantile(self, q: float) -> float:
        """Seconds in which at least the fraction ``q`` (0 to 1) ended: the end of that step."""
        left = max(1, math.ceil(q * self.count - 1e-9))
        for at, end in enumerate(self._ends):
            if self.count - self._later_runs[at + 1] >= left:
                return end
        raise ValueError(f"no quantile {q} of {self.count} runs")

    @property
    def mean(self) -> float:
        """Mean seconds."""
        return self.remaining(0.0)

    def remaining(self, elapsed: float) -> float:
        """Mean seconds that a run goes on which has lasted for ``elapsed``: of those that did.

        Of one that has outlived them all, see :func:`outlived`.
        """
        at = bisect.bisect_right(self._ends, elapsed)
        if at == len(self._ends):
            return outlived(elapsed)
        within = self._counts[at] * (max(self._begins[at], elapsed) + self._ends[at]) / 2
        whole = (within + self._later_seconds[at + 1]) / self._later_runs[at]
        return max(0.0, whole - elapsed)  # rounding aside, never below


def outlived(elapsed: float) -> float:
    """Seconds that a run goes on which has outlived whatever was known: as long again.

    An estimate that has expired must grow, and by steps that grow too, as the corrections of
    Tsafrir, Etsion and Feitelson do (Backfilling Using System-Generated Predictions Rather than
    User Runtime Estimates, IEEE TPDS 18(6), 2007).
    """
    return elapsed


def counted(runs: Iterable[Run]) -> dict[tuple[str, str, int], int]:
    """``runs`` as numbers by application, shape and step, in that order."""
    counts = Counter((run.application, run.shape, bucket_of(run.seconds)) for run in runs)
    return dict(sorted(counts.items()))


@dataclass(frozen=True, slots=True)
class Learned:
    """What is known of all applications.

    Attributes:
        shapes: by application and shape.
        applications: over all shapes of each.
    """

    shapes: Mapping[tuple[str, str], Histogram] = field(default_factory=dict)
    applications: Mapping[str, Histogram] = field(default_factory=dict)

    @classmethod
    def of(cls, counts: Mapping[tuple[str, str, int], int]) -> Learned:
        """From what :func:`counted` gives."""
        shapes: dict[tuple[str, str], Counter[int]] = {}
        applications: dict[str, Counter[int]] = {}
        for (application, shape, bucket), count in counts.items():
            shapes.setdefault((application, shape), Counter())[bucket] += count
            applications.setdefault(application, Counter())[bucket] += count
        return cls(
            {key: Histogram(found) for key, found in shapes.items()},
            {key: Histogram(found) for key, found in applications.items()},
        )

    def histogram(self, application: str, shape: str) -> Histogram | None:
        """The best there is: of that shape, else of the application, else nothing."""
        for found in (self.shapes.get((application, shape)), self.applications.get(application)):
            if found is not None and found.count >= ENOUGH:
                return found
        return None
