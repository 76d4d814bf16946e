"""Run by Alembic for each command; the connection comes from ``balsam_celery.store.migrate``."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from balsam_celery.store.schema import metadata

connection: Connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    # SQLite changes a column by making the table anew
    render_as_batch=True,
    # an upgrade happens whole or not at all, on SQLite too (we begin the transaction ourselves)
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
