"""Learned runtimes: what is counted in steps stays close to what was."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_celery.runtimes import (
    ENOUGH,
    GROWTH,
    LEAST,
    Histogram,
    Learned,
    Run,
    after_cut,
    bucket_of,
    counted,
    end_of,
    outlived,
    shape_of,
)

times = st.floats(0, 1e7, allow_nan=False)
samples = st.lists(times, min_size=1, max_size=60)
#: Of a step's end that was computed in two ways.
ROUNDING = 1 + 1e-9


def histogram(seconds: list[float]) -> Histogram:
    learned = Learned.of(counted(Run("a", "s", one) for one in seconds))
    assert set(learned.shapes) == {("a", "s")}
    return learned.shapes["a", "s"]


@given(times)
def test_a_step_holds_its_times(seconds: float) -> None:
    end = end_of(bucket_of(seconds))
    assert seconds <= end * ROUNDING
    assert end <= max(LEAST, seconds * GROWTH) * ROUNDING


def test_clocks_that_went_back_count_as_nothing() -> None:
    assert bucket_of(-5.0) == bucket_of(0.0) == 0


@given(samples, st.floats(0.01, 1))
def test_a_quantile_is_off_by_one_step_at_the_most(seconds: list[float], q: float) -> None:
    true = sorted(seconds)[math.ceil(q * len(seconds) - 1e-9) - 1]
    found = histogram(seconds).quantile(q)
    assert true <= found * ROUNDING
    assert found <= max(LEAST, true * GROWTH) * ROUNDING


@given(samples)
def test_the_mean_is_close(seconds: list[float]) -> None:
    true = sum(seconds) / len(seconds)
    assert abs(histogram(seconds).mean - true) <= LEAST + (GROWTH - 1) * true


@given(samples, st.lists(times, min_size=2, max_size=9))
def test_the_longer_it_has_run_the_later_it_is_expected_to_end(
    seconds: list[float], elapsed: list[float]
) -> None:
    known = histogram(seconds)
    ends = [since + known.remaining(since) for since in sorted(elapsed)]
    assert all(end >= since for since, end in zip(sorted(elapsed), ends, strict=True))
    assert all(one <= two * ROUNDING for one, two in itertools.pairwise(ends))


@given(samples, times)
def test_what_has_lasted_is_compared_with_what_lasted_as_long(
    seconds: list[float], elapsed: float
) -> None:
    known = histogram(seconds)
    first = bucket_of(elapsed)
    longer = [one for one in seconds if bucket_of(one) >= first]
    if not longer:
        assert known.remaining(elapsed) == pytest.approx(outlived(elapsed)) == elapsed
        return
    true = sum(max(one, elapsed) for one in longer) / len(longer) - elapsed
    slack = LEAST + (GROWTH - 1) * max(longer) * ROUNDING
    assert abs(known.remaining(elapsed) - true) <= slack + 1e-6


def test_a_long_tail() -> None:
    """Nine of ten last a minute, the tenth two hours: after five minutes it is one of those."""
    known = histogram([60.0] * 90 + [7200.0] * 10)
    assert known.quantile(0.5) == known.quantile(0.9) == pytest.approx(60, rel=0.1)
    assert known.quantile(0.91) == pytest.approx(7200, rel=0.1)
    assert known.mean == pytest.approx(774, rel=0.06)
    assert known.remaining(300) == pytest.approx(6900, rel=0.06)


def test_a_hundred_rows_hold_a_wide_spread() -> None:
    draw = random.Random(4)
    runs = [Run("a", "s", draw.lognormvariate(6, 1.5)) for _ in range(50_000)]
    assert len(counted(runs)) < 150


def test_too_few_runs_say_nothing_and_a_shape_falls_back_to_its_application() -> None:
    one, two, other = shape_of(1, 1, 1, 0.0), shape_of(2, 4, 1, 0.5), shape_of(3, 1, 1, 0)
    assert len({one, two, other}) == 3
    runs = [Run("a", one, 10.0)] * ENOUGH + [Run("a", two, 100.0)] * (ENOUGH - 1)
    learned = Learned.of(counted(runs))
    found = learned.histogram("a", one)
    assert found is not None
    assert found.count == ENOUGH
    for shape in (two, other):
        whole = learned.histogram("a", shape)
        assert whole is not None
        assert whole.count == 2 * ENOUGH - 1
    assert learned.histogram("b", one) is None
    assert Learned.of(counted(runs[1:ENOUGH])).histogram("a", one) is None


@given(st.floats(0.1, 1e5), st.floats(1, 1e5), st.integers(1, 100_000))
def test_a_task_that_is_cut_soon_gets_all_that_it_may_have(
    expected: float, runs: float, limit: int
) -> None:
    """Whatever was expected: each attempt gets twice the time of the last, until it ends."""
    assert after_cut(expected, None, limit) == expected
    assert after_cut(None, expected, limit) is None
    given, attempts = expected, 1
    while given < min(runs, limit):
        longer = after_cut(expected, given, limit)
        assert longer is not None
        assert longer == pytest.approx(min(2 * given, limit))
        given, attempts = longer, attempts + 1
    assert attempts <= 2 + max(0.0, math.log2(max(1.0, min(runs, limit) / expected)))
