"""Indexes that keep what the service reads again and again small, however old a site is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Find what is over by when it ended, too."""
    op.drop_index("ix_allocation_state", "allocation")
    op.create_index("ix_allocation_state_ended", "allocation", ["state", "ended"])
    op.drop_index("ix_pilot_state", "pilot")
    op.create_index("ix_pilot_state_ended", "pilot", ["state", "ended"])
    op.create_index("ix_pilot_state_end_time", "pilot", ["state", "end_time"])
    gives_back = sa.text("giving_back IS NOT NULL")
    op.create_index(
        "ix_pilot_giving_back",
        "pilot",
        ["registered"],
        sqlite_where=gives_back,
        postgresql_where=gives_back,
    )
