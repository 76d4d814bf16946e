"""Revisions of the schema that this package knows, oldest first.

Kept apart from :mod:`balsam_celery.store.migrate`, so that opening a database needs no Alembic.
"""

from __future__ import annotations

from balsam_celery.errors import SchemaError

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008")
HEAD = REVISIONS[-1]


def check_revision(found: str | None, place: str) -> None:
    """Refuse a database whose schema is not :data:`HEAD`.

    Args:
        found: revision that the database holds; ``None`` when it holds no schema.
        place: the database's address without its password, for the error.

    Raises:
        SchemaError: no schema, an older one, or one that this package does not know.
    """
    if found == HEAD:
        return
    if found is None:
        raise SchemaError(f"the database {place} holds no schema yet: run 'balsam up'")
    if found not in REVISIONS:
        raise SchemaError(newer(found, place))
    raise SchemaError(
        f"the schema of the database {place} is {found}, older than this package's {HEAD}:"
        " run 'balsam up', which makes a backup and upgrades it"
    )


def newer(found: str, place: str) -> str:
    """The message for a revision that this package does not know."""
    return (
        f"the schema of the database {place} is {found}, newer than this package's {HEAD}:"
        " upgrade balsam_celery"
    )
