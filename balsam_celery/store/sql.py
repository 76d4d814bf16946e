"""The few expressions that SQLite and PostgreSQL spell differently."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from sqlalchemy import ARRAY, ColumnElement, Connection, String, bindparam, cast, func, select

_GLOB_TO_LIKE = str.maketrans({"%": r"\%", "_": r"\_", "\\": r"\\", "*": "%", "?": "_"})


def any_of(
    conn: Connection, column: ColumnElement[str], values: Collection[str]
) -> ColumnElement[bool]:
    """``column`` is one of ``values``: one bound parameter, however many they are."""
    if conn.dialect.name == "sqlite":
        each = func.json_each(bindparam(None, json.dumps(list(values)), String))
        return column.in_(select(each.table_valued("value").c.value))
    array: Any = cast(bindparam(None, list(values), ARRAY(String)), ARRAY(String))
    return column == func.any(array)


def glob(conn: Connection, column: ColumnElement[str], pattern: str) -> ColumnElement[bool]:
    """``column`` fits ``pattern``, where ``*`` is any text and ``?`` any character.

    Case counts on both databases (SQLite's LIKE ignores it, hence GLOB there).
    """
    if conn.dialect.name == "sqlite":
        return column.op("GLOB", is_comparison=True)(pattern.replace("[", "[[]"))
    return column.like(pattern.translate(_GLOB_TO_LIKE), escape="\\")


def starts_with(conn: Connection, column: ColumnElement[str], prefix: str) -> ColumnElement[bool]:
    """``column`` starts with ``prefix``, taken literally."""
    if conn.dialect.name == "sqlite":
        return column.op("GLOB", is_comparison=True)(re.sub(r"[\[?*]", r"[\g<0>]", prefix) + "*")
    return column.startswith(prefix, autoescape=True)
