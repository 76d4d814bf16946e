"""Indexes for what the service reads again and again, however much there is of it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    """Find what is over by when it ended, and what waits to be looked at in turns."""
    op.drop_index("ix_allocation_state", "allocation")
    op.create_index("ix_allocation_state_ended", "allocation", ["state", "ended"])
    op.drop_index("ix_pilot_state", "pilot")
    op.create_index("ix_pilot_state_ended", "pilot", ["state", "ended"])
    op.create_index("ix_pilot_state_end_time", "pilot", ["state", "end_time"])
    given = _where("giving_back IS NOT NULL")
    op.create_index("ix_pilot_giving_back", "pilot", ["registered"], **given)
    open_step = _where("state IN ('DISPATCHED', 'RUNNING') AND kind = 'celery'")
    op.create_index("ix_task_open_step", "task", ["changed", "id"], **open_step)
    op.drop_index("ix_task_kill_requested", "task")
    killed = _where(
        "kill_requested IS NOT NULL AND state NOT IN ('JOB_FINISHED', 'FAILED', 'USER_KILLED')"
    )
    op.create_index("ix_task_kill_requested", "task", ["kill_requested", "id"], **killed)
