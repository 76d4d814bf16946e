"""When work is full again, from samples."""

from __future__ import annotations

import pytest

from tests.chaos.meter import EVERY, STEADY, full_since


def samples(*parts: tuple[float, int]) -> list[tuple[float, int]]:
    """Samples of parts of (seconds, cores at work)."""
    found = []
    now = 0.0
    for seconds, busy in parts:
        end = now + seconds
        while now < end:
            found.append((now, busy))
            now += EVERY
    return found


def test_work_that_was_never_disturbed_is_full_from_the_beginning() -> None:
    assert full_since(samples((STEADY + 1, 10)), 0.0, 7.0) == 0.0


def test_what_goes_on_by_itself_for_a_moment_is_not_full_work() -> None:
    assert full_since(samples((2, 10), (5, 0)), 0.0, 7.0) is None


def test_full_work_begins_after_the_last_break() -> None:
    seen = samples((2, 10), (4, 0), (6, 10))
    assert full_since(seen, 0.0, 7.0) == pytest.approx(6.6, abs=0.3)
    assert full_since(seen[:-20], 0.0, 7.0) is None, "not for long enough yet"


def test_nothing_is_known_without_samples() -> None:
    assert full_since([], 0.0, 7.0) is None
