"""Why each allocation was asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of allocations that are there it is not known any more."""
    # with a constant default, so that neither database writes the rows anew
    op.add_column(
        "allocation", sa.Column("asked_for", sa.Text(), server_default="", nullable=False)
    )
