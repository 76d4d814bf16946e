"""Among waiting tasks alike, what one is expected to run counts as age."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The index of all that waits, in the order in which it is to start."""
    op.drop_index("ix_task_placeable", table_name="task")
    waits = sa.text("state IN ('PREPROCESSED', 'RESTART_READY')")
    op.create_index(
        "ix_task_placeable",
        "task",
        [
            sa.text("priority DESC"),
            sa.text("num_nodes DESC"),
            sa.text("(created - coalesce(expected_time, 0))"),
        ],
        sqlite_where=waits,
        postgresql_where=waits,
    )
