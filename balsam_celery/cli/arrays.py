"""Many tasks from one command: ``--array`` and ``--each-line``.  Pure but for reading the file.

``{array}`` (or ``{line}``) in an argument stands for the element's value, and only when
``--array`` (or ``--each-line``) is given; nothing else in an argument ever means anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from balsam_celery.errors import InvalidInput

_RANGE = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
#: The most tasks that one call makes.
LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Element:
    """One task of many.

    Attributes:
        placeholder: what its value replaces: ``{array}`` or ``{line}``.
        value: an index as text, or a line of the file.
        suffix: what tells its name from the others': the index, or the line's number.
        environment: ``BALSAM_ARRAY_INDEX``, or ``BALSAM_LINE`` and ``BALSAM_LINE_NUMBER``.
    """

    placeholder: str
    value: str
    suffix: str
    environment: dict[str, str]

    def fill(self, text: str) -> str:
        """``text`` with the value in place of the placeholder."""
        return text.replace(self.placeholder, self.value)


def parse_array(text: str) -> list[Element]:
    """The elements of ``1-100``, ``0-10:2`` or ``1,5,7-9``.

    Raises:
        InvalidInput: none of these, empty, or too many.
    """
    indices: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise InvalidInput(f"--array is {text!r}: give FROM-TO, FROM-TO:STEP or a list of them")
        first, last, step = (int(group) if group else None for group in match.groups())
        assert first is not None
        last = first if last is None else last
        if step == 0:
            raise InvalidInput(f"--array is {text!r}: give a step of 1 or more")
        if last < first:
            raise InvalidInput(f"--array is {text!r}: {first}-{last} goes down; turn it round")
        new = range(first, last + 1, step or 1)
        if len(indices) + len(new) > LIMIT:
            raise InvalidInput(f"--array is {text!r}: give {LIMIT:,} indices at the most")
        indices.extend(new)
    return [
        Element("{array}", str(index), str(index), {"BALSAM_ARRAY_INDEX": str(index)})
        for index in dict.fromkeys(indices)
    ]


def read_lines(file: BinaryIO, name: str) -> list[Element]:
    """An element for each line of ``file`` that is not empty; ``\\r`` at the end is dropped.

    Raises:
        InvalidInput: a line that is not UTF-8 or holds a NUL byte, none at all, or too many.
    """
    elements: list[Element] = []
    for number, raw in enumerate(file, 1):
        try:
            line = raw.rstrip(b"\r\n").decode()
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{name}, line {number}: not UTF-8 ({error.reason})") from None
        if "\0" in line:
            raise InvalidInput(f"{name}, line {number}: a NUL byte, which no argument can hold")
        if not line:
            continue
        if len(elements) == LIMIT:
            raise InvalidInput(f"{name} has more than {LIMIT:,} lines: split it")
        environment = {"BALSAM_LINE": line, "BALSAM_LINE_NUMBER": str(number)}
        elements.append(Element("{line}", line, str(number), environment))
    if not elements:
        raise InvalidInput(f"{name} has no lines: nothing to submit")
    return elements


def fill_all(arguments: Sequence[str], element: Element) -> list[str]:
    """``arguments`` with the element's value; a line that none of them names is put last."""
    filled = [element.fill(argument) for argument in arguments]
    if element.placeholder == "{line}" and not any("{line}" in a for a in arguments):
        filled.append(element.value)
    return filled
