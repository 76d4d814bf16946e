"""Durations as people write them, and those that nobody means."""

from __future__ import annotations

import pytest

from balsam_celery.durations import ENDLESS, parse_duration, parse_pause
from balsam_celery.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        (90, 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("01:30:00", 5400),
        ("2-00:00:01", 172801),
    ],
)
def test_what_people_write(text: object, seconds: int) -> None:
    assert parse_duration(text) == parse_pause(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "0", "soon", "-1", True, None, "99999999999999d", "9999999999s", "99999999-00:00:00",
     ENDLESS, float("nan"), float("inf")],
)  # fmt: skip
def test_what_nobody_means(text: object) -> None:
    with pytest.raises(
        InvalidInput, match="give a time above zero, and below thirty years, such as 90"
    ):
        parse_duration(text, "--older-than")
