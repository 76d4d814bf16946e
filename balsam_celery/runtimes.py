"""How long programs run, learned from those that did.  Pure (R9): plain values in and out.

Runs are counted by application and shape in steps of time that grow by a tenth each, so that a
hundred rows hold what a million runs took, no value is off by more than one step, and the row of a
run is known without reading any other.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

#: Step 0 ends at LEAST seconds, each later one GROWTH times as far.
LEAST, GROWTH = 0.01, 1.1
#: Runs from which something is said: the least of which one is beyond a quantile of 0.9.
ENOUGH = 10
#: Of a task that must end before its pilot does: it starts where nine of ten would have ended.
#: The tenth is cut short and runs again, which costs less than nodes that idle for the longest.
FITS = 0.9
#: Where users said how long it runs, so many times that must be left: they are wrong by a factor of
#: two now and then, and a run that is cut is lost whole, while a node that idles is given back.
SURE = 2.0
#: Runs of one application and shape beyond which the older ones fade.
MEMORY = 1000


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


class _Steps(NamedTuple):
    """Steps in which runs ended, in order; ``later_…``: the sums from each step on, and a 0."""

    begins: list[float]
    ends: list[float]
    runs: list[int]
    later_runs: list[int]
    later_seconds: list[float]


class Histogram:
    """Runs by the step in which they ended.

    Args:
        counts: step → runs, one or more; in all one or more.

    Attributes:
        count: of all runs.
    """

    def __init__(self, counts: Mapping[int, int]) -> None:
        self._counts = counts
        self.count = sum(counts.values())

    @functools.cached_property
    def _steps(self) -> _Steps:
        # made when it is asked for: of what is learned few are, in one pass
        steps = sorted(self._counts)
        begins = [end_of(step - 1) if step else 0.0 for step in steps]
        ends = [end_of(step) for step in steps]
        runs = [self._counts[step] for step in steps]
        later_runs, later_seconds = [0], [0.0]
        for begin, end, count in zip(reversed(begins), reversed(ends), reversed(runs), strict=True):
            later_runs.append(later_runs[-1] + count)
            later_seconds.append(later_seconds[-1] + count * (begin + end) / 2)
        return _Steps(begins, ends, runs, later_runs[::-1], later_seconds[::-1])

    def quantile(self, q: float) -> float:
        """Seconds in which at least the fraction ``q`` (0 to 1) ended: the end of that step."""
        left = max(1, math.ceil(q * self.count - 1e-9))
        steps = self._steps
        for end, later in zip(steps.ends, steps.later_runs[1:], strict=True):
            if self.count - later >= left:
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
        steps = self._steps
        at = bisect.bisect_right(steps.ends, elapsed)
        if at == len(steps.ends):
            return outlived(elapsed)
        within = steps.runs[at] * (max(steps.begins[at], elapsed) + steps.ends[at]) / 2
        whole = (within + steps.later_seconds[at + 1]) / steps.later_runs[at]
        return max(0.0, whole - elapsed)  # rounding aside, never below


def outlived(elapsed: float) -> float:
    """Seconds that a run goes on which has outlived whatever was known: as long again.

    An estimate that has expired must grow, and by steps that grow too, as the corrections of
    Tsafrir, Etsion and Feitelson do (Backfilling Using System-Generated Predictions Rather than
    User Runtime Estimates, IEEE TPDS 18(6), 2007).
    """
    return elapsed


def after_cut(expected: float | None, ran: float | None, wall_time: float) -> float | None:
    """Seconds that a task is expected to run, of which a run was cut when an allocation ended.

    Given the same time it would be cut again, in one allocation after the other, so it gets twice
    what was too little: it has outlived that.

    Args:
        expected: what users or other runs tell, ``None``: nothing, then its limit is taken anyway.
        ran: seconds for which the longest run lasted that was cut; ``None``: none was.
        wall_time: its limit, the most that comes out unless more is expected.
    """
    if expected is None or ran is None:
        return expected
    return max(expected, min(float(wall_time), ran + outlived(ran)))


def left(
    expected: float | None,
    known: Histogram | None,
    ran: float | None,
    wall_time: float,
    elapsed: float,
) -> float | None:
    """Mean seconds that a task goes on which has run for ``elapsed``; ``None``: nothing tells.

    Args:
        expected: what its user tells, if anything.
        known: earlier runs, if there are enough.
        ran, wall_time: as of :func:`after_cut`: an attempt runs longer than one that was cut.
        elapsed: seconds.
    """
    given = after_cut(expected, ran, wall_time)
    if given is not None and given > elapsed:
        return given - elapsed
    if known is not None:
        whole = after_cut(known.mean, ran, wall_time) or 0.0
        return max(known.remaining(elapsed), whole - elapsed)
    return None if given is None else outlived(elapsed)


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
        shapes: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
        applications: dict[str, dict[int, int]] = defaultdict(dict)
        for (application, shape, bucket), count in counts.items():
            shapes[application, shape][bucket] = count
            whole = applications[application]
            whole[bucket] = whole.get(bucket, 0) + count
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
