"""Nodes that are given back to the scheduler while their allocation goes on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """No node was given back so far, and none is known to be idle."""
    # with constant defaults, so that neither database writes the rows anew
    for name, kind in (("nodes_back", sa.Integer()), ("charged_back", sa.Double())):
        op.add_column("allocation", sa.Column(name, kind, server_default="0", nullable=False))
    for name in ("idle_nodes", "giving_back"):
        op.add_column("pilot", sa.Column(name, _JSON))
