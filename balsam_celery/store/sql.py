"""The few expressions that SQLite and PostgreSQL spell differently; updates of many rows.

Building a statement costs SQLAlchemy more than SQLite takes to answer it. Those of the service's
every turn are therefore built once (``functools.cache``), by dialect where they differ, and are
given their values when they are executed: :func:`given_any`, :func:`given`.
"""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    String,
    Table,
    Update,
    bindparam,
    cast,
    func,
    select,
    update,
)

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


@functools.cache
def given_any(dialect: str, column: ColumnElement[str]) -> ColumnElement[bool]:
    """As :func:`any_of`, for a statement that is kept; the values come by :func:`given`."""
    if dialect == "sqlite":
        each = func.json_each(bindparam("values", type_=String))
        return column.in_(select(each.table_valued("value").c.value))
    array: Any = cast(bindparam("values", type_=ARRAY(String)), ARRAY(String))
    return column == func.any(array)


def given(conn: Connection, values: Collection[str]) -> dict[str, Any]:
    """The parameters of a statement with :func:`given_any`."""
    several = list(values)
    return {"values": json.dumps(several) if conn.dialect.name == "sqlite" else several}


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


def update_each(
    conn: Connection,
    table: Table,
    rows: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]],
    *conditions: ColumnElement[bool],
) -> int:
    """Give each row values of its own, by one statement for each set of columns.

    Args:
        conn: from ``Store.write`` or ``Store.run``.
        table: where.
        rows: by which columns each is found, and what it gets.
        conditions: must hold, too; the same objects each time, for the statement is kept.

    Returns:
        How many were there.
    """
    groups: dict[tuple[tuple[str, ...], ...], list[dict[str, Any]]] = defaultdict(list)
    for at, values in rows:
        bound = {f"at_{name}": value for name, value in at.items()}
        bound.update({f"new_{name}": value for name, value in values.items()})
        groups[tuple(sorted(at)), tuple(sorted(values))].append(bound)
    done = 0
    for (found_by, names), several in groups.items():
        done += conn.execute(_update_of(table, found_by, names, conditions), several).rowcount
    return done


@functools.lru_cache(maxsize=256)
def _update_of(
    table: Table,
    found_by: tuple[str, ...],
    names: tuple[str, ...],
    conditions: tuple[ColumnElement[bool], ...],
) -> Update:
    return (
        update(table)
        .where(*(table.c[name] == bindparam(f"at_{name}") for name in found_by), *conditions)
        .values({name: bindparam(f"new_{name}") for name in names})
    )
