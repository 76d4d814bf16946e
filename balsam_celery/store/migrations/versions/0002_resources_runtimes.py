"""Memory and countable resources of tasks; learned runtimes; two indexes for planning."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Tasks that are there ask for neither memory nor resources; nothing is learned yet."""
    # with constant defaults, so that neither database writes the rows anew
    op.add_column(
        "task",
        sa.Column("memory_per_node", sa.BigInteger(), server_default="0", nullable=False),
    )
    op.add_column(
        "task",
        sa.Column("resources_per_node", sa.String(length=500), server_default="", nullable=False),
    )
    waiting = sa.text("state IN ('PREPROCESSED', 'RESTART_READY')")
    op.create_index(
        "ix_task_waiting_created",
        "task",
        ["created"],
        sqlite_where=waiting,
        postgresql_where=waiting,
    )
    op.create_index("ix_allocation_queue_created", "allocation", ["queue", "created"])
    op.create_table(
        "runtime",
        sa.Column("application", sa.String(length=200), nullable=False),
        sa.Column("shape", sa.String(length=100), nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("application", "shape", "bucket", name="pk_runtime"),
    )
