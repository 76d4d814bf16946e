"""How long the attempts of a task ran that were cut short."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of attempts that are over nothing is said; the next one that is cut tells."""
    op.add_column("task", sa.Column("ran", sa.Double()))
