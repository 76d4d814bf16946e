"""Sets of places (of nodes) as the bits of an int: cheap to copy and to combine."""

from __future__ import annotations

from collections.abc import Iterator

#: With no more rows than this their lengths are looked at one by one.
_FEW = 16


def members(places: int) -> Iterator[int]:
    """The places in a bit set, ascending."""
    while places:
        lowest = places & -places
        yield lowest.bit_length() - 1
        places ^= lowest


def compact(places: int, count: int) -> list[int] | None:
    """``count`` of ``places`` (a bit set), as near to each other as can be.

    Neighbours are taken from the shortest row that holds them, so that long rows stay whole.
    """
    if places.bit_count() < count:
        return None
    # a bit stays where it and the next ``count`` - 1 are all set
    starts, length = places, 1
    while length < count:
        step = min(length, count - length)
        starts &= starts >> step
        length += step
    rows = starts & ~(places << 1)
    if rows:
        first = _shortest(places, rows, count)
        return list(range(first, first + count))
    spread = list(members(places))
    _, first = min(
        (spread[first + count - 1] - spread[first], first)
        for first in range(len(spread) - count + 1)
    )
    return spread[first : first + count]


def _shortest(places: int, rows: int, least: int) -> int:
    """Where the shortest row begins; ``rows``: the beginnings of those of ``least`` or more."""
    if rows.bit_count() <= _FEW:
        return min(members(rows), key=lambda first: (_row_length(places >> first), first))
    length = least
    # one of so many rows is short
    while not (ending := rows & ~(places >> length)):
        length += 1
    return next(members(ending))


def _row_length(places: int) -> int:
    """How many of the lowest bits are set without a gap."""
    return (~places & (places + 1)).bit_length() - 1
