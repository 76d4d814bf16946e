"""Waiting tasks are found by priority and width alone, the oldest of each first."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The index of all that waits by age alone has no reader any more."""
    op.drop_index("ix_task_waiting_created", table_name="task")
