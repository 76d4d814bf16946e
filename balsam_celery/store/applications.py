"""Applications: commands with a name and defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from balsam_celery.errors import InvalidInput, NotFound
from balsam_celery.store import schema
from balsam_celery.store.rows import ApplicationRow

MAX_NAME = 200


def add(
    conn: Connection,
    *,
    name: str,
    command: Sequence[str],
    defaults: Mapping[str, Any],
    description: str = "",
    replace: bool = False,
    now: float,
) -> None:
    """Add an application (``command``: argv template; ``defaults``: task fields).

    Raises:
        InvalidInput: the name exists and ``replace`` is not set.
    """
    application = schema.application
    if not name or len(name) > MAX_NAME or "\x00" in name:
        raise InvalidInput(f"application name {name[:30]!r}: give 1 to {MAX_NAME} characters")
    if replace:
        conn.execute(delete(application).where(application.c.name == name))
    elif conn.scalar(select(application.c.name).where(application.c.name == name)) is not None:
        raise InvalidInput(f"application {name!r} exists: remove it first, or replace it")
    row = {
        "name": name,
        "command": list(command),
        "defaults": dict(defaults),
        "description": description,
        "created": now,
    }
    conn.execute(insert(application), [row])


def get(conn: Connection, name: str) -> ApplicationRow:
    """The application of that name.

    Raises:
        NotFound: there is none; names the nearest.
    """
    application = schema.application
    row = conn.execute(select(application).where(application.c.name == name)).mappings().first()
    if row is None:
        raise NotFound(_missing(conn, name))
    return ApplicationRow.of(row)


def list_all(conn: Connection) -> list[ApplicationRow]:
    """All applications by name."""
    application = schema.application
    query = select(application).order_by(application.c.name)
    return [ApplicationRow.of(row) for row in conn.execute(query).mappings()]


def remove(conn: Connection, name: str) -> None:
    """Remove an application; tasks made of it stay.

    Raises:
        NotFound: there is none; names the nearest.
    """
    application = schema.application
    if not conn.execute(delete(application).where(application.c.name == name)).rowcount:
        raise NotFound(_missing(conn, name))


def _missing(conn: Connection, name: str) -> str:
    names = list(conn.scalars(select(schema.application.c.name)))
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    mend = f"did you mean {near[0]!r}?" if near else "'balsam app ls' lists those that do"
    return f"application {name!r} does not exist: {mend}"
