"""Records with a fault: the others are written, and of them what must be known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from balsam_celery.errors import StoreError
from balsam_celery.service.apart import together_or_apart
from balsam_celery.service.record import bare
from balsam_celery.wire import Ended, StepEnded, Wake


def test_one_with_a_fault_keeps_no_other_from_being_written() -> None:
    written: list[str] = []

    def write(some: Sequence[str]) -> int:
        if faulty := [one for one in some if one.startswith("bad")]:
            raise ValueError(faulty[0])
        written.extend(some)
        return len(some)

    def least(one: str, fault: str) -> str | None:
        return {"bad a": f"least of a ({fault})", "bad b": "bad too"}.get(one)

    several = ["1", "bad a", "2", "bad b", "bad c", "3"]
    assert together_or_apart(write, several, least) == [1, 1, 1, 1]
    assert written == ["1", "least of a (ValueError: bad a)", "2", "3"]


def test_without_a_database_nothing_is_dropped() -> None:
    def away(some: Sequence[str]) -> None:
        raise StoreError("it is away")

    with pytest.raises(StoreError):
        together_or_apart(away, ["1"], lambda one, fault: None)


def test_what_must_be_known_of_an_end() -> None:
    end = Ended(
        "t", 2, "signal", "killed by others", 5.0, started=3.0, signal=9, max_memory=7,
        stdout_tail="x", argv=("x",), environment_digest="x",
    )  # fmt: skip
    least = Ended("t", 2, "signal", "killed by others", 5.0, started=3.0, signal=9)
    assert bare(end, "no room") == least
    step = StepEnded("s", 1, "SUCCESS", {"x": 1}, None, 5.0)
    why = "its end cannot be recorded: no room"
    assert bare(step, "no room") == StepEnded("s", 1, "FAILURE", why, None, 5.0)
    assert bare(Wake(), "no room") is None
