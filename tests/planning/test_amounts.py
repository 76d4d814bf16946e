"""Memory and countable resources, as people write them and as the database keeps them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_celery.amounts import (
    counts_from,
    counts_given,
    counts_of,
    counts_text,
    format_bytes,
    parse_bytes,
)
from balsam_celery.errors import InvalidInput
from balsam_celery.resources import Resources

names = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,9}", fullmatch=True)
amounts = st.dictionaries(names, st.integers(1, 2**31 - 1), max_size=5)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (None, 0), (0, 0), (4096, 4096), (4e9, 4_000_000_000), ("0", 0), ("4096", 4096),
        ("4GB", 4_000_000_000), ("4GiB", 4 << 30), ("4 gib", 4 << 30), ("1.5GiB", 3 << 29),
        ("0.1GB", 100_000_000), ("512kB", 512_000), ("2TiB", 2 << 40), ("7b", 7),
    ],
)  # fmt: skip
def test_bytes(given: object, size: int) -> None:
    assert parse_bytes(given, "memory_per_node") == size


@pytest.mark.parametrize(
    "given", [-1, True, 1.5, float("nan"), "4G", "GB", "-1GB", "four", "", [], 2**63, "9999999PiB"]
)
def test_bytes_refused(given: object) -> None:
    with pytest.raises(InvalidInput, match=r"^memory_per_node is .*: give bytes, or text such"):
        parse_bytes(given, "memory_per_node")


@given(st.integers(0, 2**62))
def test_bytes_are_shown_close_to_what_they_are(size: int) -> None:
    shown = parse_bytes(format_bytes(size), "size")
    assert shown <= size <= shown * 1.01 + 1


@given(amounts)
def test_counts_have_one_text(plain: dict[str, int]) -> None:
    counts = counts_of(plain, "resources_per_node")
    Resources(resources_per_node=counts)  # in the order that it wants
    assert dict(counts) == plain
    assert counts_from(counts_text(counts)) == counts
    backwards = dict(reversed(plain.items()))
    assert counts_text(counts_of(backwards, "x")) == counts_text(counts)
    assert counts_given([f"{name}={amount}" for name, amount in plain.items()], "x") == plain


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("licence=2", "give a dict such as"),
        ({"licence": 0}, r"resources_per_node\.licence is 0: give a whole number"),
        ({"licence": True}, "is True: give"),
        ({"licence": 1.5}, "is 1.5: give"),
        ({"licence": 2**31}, "give a whole number"),
        ({"a,b": 1}, "names 'a,b': give a letter"),
        ({"a=b": 1}, "names 'a=b'"),
        ({"": 1}, "names ''"),
        ({5: 1}, "names 5"),
    ],
)
def test_counts_refused(given: object, part: str) -> None:
    with pytest.raises(InvalidInput, match=part):
        counts_of(given, "resources_per_node")


@pytest.mark.parametrize("given", ["licence", "licence=", "=2", "licence=two", "licence=-1", "5=5"])
def test_given_text_refused(given: str) -> None:
    with pytest.raises(InvalidInput, match=r"--resource is '.*': give NAME=AMOUNT, such as"):
        counts_given([given], "--resource")


def test_given_twice() -> None:
    with pytest.raises(InvalidInput, match="licence is given twice"):
        counts_given(["licence=1", "licence=2"], "--resource")
