"""What planning expects a task to run: as given, else learned from those that have finished."""

from __future__ import annotations

import math
from collections import defaultdict

from balsam_celery.simulate.workload import Kind

#: Buckets of a histogram for each doubling of the runtime.
_STEPS = 4
#: Below this number of finished tasks nothing is known.
_LEAST = 8


class Estimates:
    """Quantiles of finished runtimes by application and resources.

    Args:
        quantile: which is taken for the expected time, 0 to 1.
    """

    def __init__(self, quantile: float = 0.75) -> None:
        self._quantile = quantile
        self._counts: dict[object, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._totals: dict[object, int] = defaultdict(int)
        self._known: dict[object, tuple[int, float | None]] = {}

    def learn(self, kind: Kind, runtime: float) -> None:
        """A task of ``kind`` finished after ``runtime`` seconds."""
        key = (kind.application, kind.resources)
        self._counts[key][math.ceil(math.log2(max(runtime, 1.0)) * _STEPS)] += 1
        self._totals[key] += 1

    def expected(self, kind: Kind) -> float | None:
        """Seconds, ``None`` when not known."""
        if kind.expected_time is not None:
            return kind.expected_time
        key = (kind.application, kind.resources)
        total = self._totals.get(key, 0)
        if total < _LEAST:
            return None
        known = self._known.get(key)
        # a tenth more changes little, and plans stay as they are in between
        if known is None or total > 1.1 * known[0]:
            known = total, self._of(key, total)
            self._known[key] = known
        return known[1]

    def _of(self, key: object, total: int) -> float:
        seen = 0
        counts = self._counts[key]
        for bucket in sorted(counts):
            seen += counts[bucket]
            if seen >= self._quantile * total:
                return float(2.0 ** (bucket / _STEPS))
        raise AssertionError("a quantile lies within the counts")
