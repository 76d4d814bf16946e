"""What planning expects of runtimes: as the user says, else learned (as ``service.estimates``)."""

from __future__ import annotations

from collections import defaultdict

from balsam_celery.resources import Resources
from balsam_celery.runtimes import ENOUGH, FITS, SURE, Histogram, after_cut, bucket_of, left
from balsam_celery.simulate.workload import Kind

#: A histogram is made again once it holds so many times the runs: plans stay as they are meanwhile.
_GROWN = 1.1
Key = tuple[str, Resources | None]


class Estimates:
    """Expected times of what a simulation has seen finish; ``None`` where nothing tells one."""

    def __init__(self) -> None:
        self._counts: dict[Key, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._totals: dict[Key, int] = defaultdict(int)
        self._known: dict[Key, tuple[Histogram, float, float]] = {}

    def learn(self, kind: Kind, runtime: float) -> None:
        """A task of ``kind`` finished after ``runtime`` seconds."""
        bucket = bucket_of(runtime)
        for key in ((kind.application, kind.resources), (kind.application, None)):
            self._counts[key][bucket] += 1
            self._totals[key] += 1

    def fits(self, kind: Kind, ran: float | None = None) -> float | None:
        """Seconds in which one has most likely ended: for a start that must end in time.

        ``ran``: seconds of the longest run of it that was cut, ``None``: none was.
        """
        known = self._of(kind)
        return _expected(kind, None if known is None else known[1], ran, SURE)

    def mean(self, kind: Kind, ran: float | None = None) -> float | None:
        """Mean seconds: for amounts of work."""
        known = self._of(kind)
        return _expected(kind, None if known is None else known[2], ran, 1.0)

    def remaining(self, kind: Kind, ran: float | None, elapsed: float, limit: float) -> float:
        """Mean seconds until one that has run for ``elapsed`` ends, at most ``limit``."""
        known = self._of(kind)
        histogram = None if known is None else known[0]
        rest = left(kind.expected_time, histogram, ran, kind.wall_time, elapsed)
        return limit if rest is None else min(limit, rest)

    def _of(self, kind: Kind) -> tuple[Histogram, float, float] | None:
        """Histogram, quantile and mean: of the shape, else of the application."""
        for key in ((kind.application, kind.resources), (kind.application, None)):
            total = self._totals.get(key, 0)
            if total < ENOUGH:
                continue
            known = self._known.get(key)
            if known is None or total > _GROWN * known[0].count:
                histogram = Histogram(dict(self._counts[key]))
                known = histogram, histogram.quantile(FITS), histogram.mean
                self._known[key] = known
            return known
        return None


def _expected(kind: Kind, learned: float | None, ran: float | None, sure: float) -> float | None:
    given = kind.expected_time
    return after_cut(learned if given is None else sure * given, ran, kind.wall_time)
