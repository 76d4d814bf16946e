"""What a site remembers of itself in its database: its id, its host, what it was charged."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from balsam_celery.store import schema


def remember(conn: Connection, key: str, value: str) -> None:
    """Set a fact, new or not."""
    site = schema.site
    changed = conn.execute(update(site).where(site.c.key == key).values(value=value))
    if not changed.rowcount:
        conn.execute(insert(site).values(key=key, value=value))


def recall(conn: Connection, key: str) -> str | None:
    """A fact, ``None`` when it was never set."""
    site = schema.site
    return conn.scalar(select(site.c.value).where(site.c.key == key))


def add(conn: Connection, key: str, amount: float) -> None:
    """Add to a fact that is a number, 0 when it was never set; of several that add none is lost."""
    site = schema.site
    dialect = sqlite if conn.dialect.name == "sqlite" else postgresql
    conn.execute(dialect.insert(site).values(key=key, value="0").on_conflict_do_nothing())
    found = conn.scalars(select(site.c.value).where(site.c.key == key).with_for_update()).one()
    remember(conn, key, repr(float(found) + amount))
