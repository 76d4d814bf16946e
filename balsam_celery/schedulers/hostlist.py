"""Slurm's way to write many node names in one word: ``n[1-3,05],gpu2`` and the like. Pure.

The rules are those of ``scontrol show hostnames`` (Slurm's ``src/common/hostlist.c``): a range
counts from its first number to its last, and its names have as many digits as the first number is
written with; with several brackets in a name the last one counts fastest; names are kept in the
order in which they stand, with their repeats.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

_PART = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)
#: More names than any machine has nodes: a word that means so many is damaged.
_MOST = 1_000_000


def expand(word: str) -> tuple[str, ...]:
    """The names that ``word`` stands for; an empty word for none.

    Raises:
        ValueError: not such a word.
    """
    names: list[str] = []
    for item in _split(word):
        names += _expand_item(item, word)
    return tuple(names)


def fold(names: Iterable[str]) -> str:
    """A word that :func:`expand` turns into ``names`` again: what counts up is one range.

    One variable or argument holds 128 KiB, the names of some 9,000 nodes.
    """
    words: list[str] = []
    for (prefix, digits, _), group in itertools.groupby(enumerate(names), key=_run):
        numbers = [name[len(prefix) :] for _, name in group]
        if not digits or len(numbers) == 1:
            words += [prefix + number for number in numbers]
        else:
            words.append(f"{prefix}[{numbers[0]}-{numbers[-1]}]")
    return ",".join(words)


def _run(numbered: tuple[int, str]) -> tuple[str, int, int]:
    """Equal for names that follow each other and can be one range: prefix, digits, offset."""
    place, name = numbered
    prefix = name.rstrip("0123456789")
    number = name[len(prefix) :]
    if not number:
        return name, 0, place
    # the names of a range have as many digits as its first number
    return prefix, len(number), int(number) - place


def _split(word: str) -> list[str]:
    """The parts between commas that stand outside of brackets."""
    items, depth, start = [], 0, 0
    for place, character in enumerate(word):
        depth += (character == "[") - (character == "]")
        if depth not in (0, 1):
            break
        if character == "," and depth == 0:
            items.append(word[start:place])
            start = place + 1
    if depth != 0:
        raise ValueError(f"{word!r} is not a list of nodes: its brackets do not match")
    return [item.strip() for item in (*items, word[start:]) if item.strip()]


def _expand_item(item: str, word: str) -> list[str]:
    fixed = _PART.split(item)[::2]
    ranges = [_numbers(text, word) for text in _PART.findall(item)]
    made = 1
    for numbers in ranges:
        made *= len(numbers)
    if made > _MOST:
        raise ValueError(f"{word!r} is not a list of nodes: it names {made}")
    return [
        "".join(itertools.chain(*itertools.zip_longest(fixed, chosen, fillvalue="")))
        for chosen in itertools.product(*ranges)
    ]


def _numbers(text: str, word: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (match[1], match[2] or match[1]) if match else ("1", "0")
        if int(last) < int(first) or int(last) - int(first) >= _MOST:
            raise ValueError(f"{word!r} is not a list of nodes: {part!r} is no range")
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return found
