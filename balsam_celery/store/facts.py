"""What a site remembers of itself in its database: its id, the host it runs on."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select, update

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
