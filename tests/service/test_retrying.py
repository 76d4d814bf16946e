"""Which failures are tried again: entry by entry, and what must hold for any of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_celery.errors import InvalidInput
from balsam_celery.retrying import KINDS, Failure, checked, described, forbids, pause

EXIT3 = Failure("error", 3, None, "exit code 3")
KILLED = Failure("signal", None, 9, "ended by signal 9 (SIGKILL)")
LATE = Failure("timeout", None, 15, "its wall_time of 1m was over")
NO_START = Failure("cannot-start", None, None, "cannot start: No such file: prog")


@pytest.mark.parametrize(
    ("entries", "retried", "not_retried"),
    [
        (None, [EXIT3, KILLED, LATE, NO_START], []),
        ([], [EXIT3, KILLED, LATE, NO_START], []),
        (["error"], [EXIT3], [KILLED, LATE, NO_START]),
        (["exit:3"], [EXIT3], [KILLED, LATE]),
        (["exit:1-127", "timeout"], [EXIT3, LATE], [KILLED, NO_START]),
        (["exit:4-127"], [], [EXIT3]),
        (["signal:KILL"], [KILLED], [EXIT3, LATE]),
        (["signal:sigkill"], [KILLED], [EXIT3]),
        (["signal:9", "signal:TERM"], [KILLED], [EXIT3, LATE]),
        (["reason:No such file"], [NO_START], [EXIT3]),
        (["!exit:3"], [KILLED, LATE, NO_START], [EXIT3]),
        (["error", "!exit:1-5"], [], [EXIT3, KILLED]),
        (["!reason:wall_time"], [EXIT3, KILLED], [LATE]),
    ],
)
def test_entries(
    entries: list[str] | None, retried: list[Failure], not_retried: list[Failure]
) -> None:
    assert [forbids(entries, one) for one in retried] == [""] * len(retried)
    assert all(forbids(entries, one) for one in not_retried)


@pytest.mark.parametrize(
    "entry",
    ["rain", "exit", "exit:", "exit:0", "exit:256", "exit:5-2", "exit:-1", "exit:1-", "signal:",
     "signal:0", "signal:NONE", "signal:99", "error:3", "reason:", "!", "!!error", "", 7, "exit:²"],
)  # fmt: skip
def test_what_is_no_entry_is_refused(entry: object) -> None:
    with pytest.raises(InvalidInput, match=r"retry_on holds .*: give some of error, "):
        checked("retry_on", [entry])


CODES = st.integers(1, 255)
ENTRIES = st.one_of(
    st.sampled_from(KINDS),
    CODES.map("exit:{}".format),
    st.tuples(CODES, CODES).map(lambda two: f"exit:{min(two)}-{max(two)}"),
    st.integers(1, 64).map("signal:{}".format),
    st.text(min_size=1).map("reason:{}".format),
)
FAILURES = st.one_of(
    st.builds(Failure, st.just("error"), CODES, st.none(), st.text()),
    st.builds(Failure, st.just("signal"), st.none(), st.integers(1, 64), st.text()),
    st.builds(Failure, st.sampled_from(["timeout", "cannot-start"]), reason=st.text()),
)


@given(st.lists(ENTRIES), FAILURES)
def test_a_no_outweighs_every_yes(entries: list[str], failure: Failure) -> None:
    assert checked("retry_on", entries) == tuple(entries)
    assert forbids([*entries, f"!{described(failure)}"], failure)
    assert forbids([*entries, described(failure)], failure) == ""
    # one more yes never takes a retry away, but where it is the first of them
    if entries and not forbids(entries, failure):
        assert forbids([*entries, "timeout"], failure) == ""


@given(st.lists(ENTRIES), ENTRIES, FAILURES)
def test_a_no_is_the_opposite_of_a_yes(entries: list[str], entry: str, failure: Failure) -> None:
    permits = forbids([entry], failure) == ""
    assert bool(forbids([f"!{entry}"], failure)) == permits
    if not permits:
        assert forbids([*entries, f"!{entry}"], failure) == forbids(entries, failure)


@given(st.integers(0, 10**6), st.integers(1, 10**6), st.integers(1, 10**6))
def test_pauses_grow_up_to_their_limit(delay: int, longest: int, failures: int) -> None:
    now, next_one = pause(delay, longest, failures), pause(delay, longest, failures + 1)
    assert 0 <= now <= next_one <= longest
    assert next_one in (2 * now, longest)
    assert pause(delay, longest, 1) == min(delay, longest)
