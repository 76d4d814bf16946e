"""Pauses before retries, cuts of tasks, and how programs are told of their end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Tasks that are there wait as the site says, and end as they did; none was cut so far."""
    # with constant defaults, so that neither database writes the rows anew
    op.add_column("pilot", sa.Column("stop_at", sa.Double()))
    op.add_column("task", sa.Column("retry_delay", sa.Double()))
    for name in ("checkpoint_grace", "cuts"):
        op.add_column("task", sa.Column(name, sa.Integer(), server_default="0", nullable=False))
    op.add_column(
        "task", sa.Column("end_signal", sa.String(length=16), server_default="TERM", nullable=False)
    )
