"""Make every table.  Written out: what ``store.schema`` becomes later leaves this as it is."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "allocation",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("queue", sa.String(length=100), nullable=False),
        sa.Column("nodes", sa.Integer(), nullable=False),
        sa.Column("wall_time", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("native_id", sa.String(length=200)),
        sa.Column("cancel_requested", sa.Double()),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("submitted", sa.Double()),
        sa.Column("started", sa.Double()),
        sa.Column("ended", sa.Double()),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("run_dir", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_allocation"),
    )
    op.create_index("ix_allocation_state", "allocation", ["state"])
    op.create_table(
        "application",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("command", _JSON, nullable=False),
        sa.Column("defaults", _JSON, nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_application"),
    )
    op.create_table(
        "effect",
        sa.Column("id", _KEY, autoincrement=True, nullable=False),
        sa.Column("task", sa.String(length=155), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("payload", _JSON, nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_effect"),
    )
    op.create_index("ix_effect_not_before", "effect", ["not_before"])
    op.create_index("ix_effect_task", "effect", ["task"])
    op.create_table(
        "lease",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=255), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("term", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_lease"),
    )
    op.create_table(
        "site",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_site"),
    )
    op.create_table(
        "task",
        sa.Column("id", sa.String(length=155), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("workflow", sa.String(length=200), server_default="", nullable=False),
        sa.Column("application", sa.String(length=200), nullable=False),
        sa.Column("command", _JSON, nullable=False),
        sa.Column("literal", sa.Boolean(), nullable=False),
        sa.Column("arguments", _JSON, nullable=False),
        sa.Column("inputs", sa.String(length=8), server_default="none", nullable=False),
        sa.Column("celery", _JSON, nullable=False),
        sa.Column("errbacks", _JSON, nullable=False),
        sa.Column("argv", _JSON),
        sa.Column("num_nodes", sa.Integer(), nullable=False),
        sa.Column("ranks_per_node", sa.Integer(), nullable=False),
        sa.Column("threads_per_rank", sa.Integer(), nullable=False),
        sa.Column("threads_per_core", sa.Integer(), nullable=False),
        sa.Column("gpus_per_rank", sa.Double(), nullable=False),
        sa.Column("node_packing_count", sa.Integer()),
        sa.Column("cpu_affinity", sa.String(length=16), nullable=False),
        sa.Column("launcher", sa.String(length=64)),
        sa.Column("environment", _JSON, nullable=False),
        sa.Column("wall_time", sa.Integer(), nullable=False),
        sa.Column("expected_time", sa.Double()),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("max_retries", sa.Integer(), nullable=False),
        sa.Column("retry_on", _JSON),
        sa.Column("restartable", sa.Boolean(), nullable=False),
        sa.Column("on_parent_failure", sa.String(length=8), nullable=False),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.Column("hooks", _JSON, nullable=False),
        sa.Column("input_files", _JSON, nullable=False),
        sa.Column("data", _JSON, nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("waiting_on", sa.Integer(), nullable=False),
        sa.Column("kill_requested", sa.Double()),
        sa.Column("kill_reason", sa.Text(), server_default="", nullable=False),
        sa.Column("pilot", sa.String(length=64)),
        sa.Column("shares", _JSON),
        sa.Column("work_dir", sa.Text()),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("result", _JSON),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("changed", sa.Double(), nullable=False),
        sa.Column("finished", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_task"),
    )
    op.create_index("ix_task_created", "task", ["created"])
    op.create_index(
        "ix_task_kill_requested",
        "task",
        ["kill_requested"],
        **_where(
            "kill_requested IS NOT NULL AND state NOT IN ('JOB_FINISHED', 'FAILED', 'USER_KILLED')"
        ),
    )
    op.create_index("ix_task_name_created", "task", ["name", "created"])
    op.create_index(
        "ix_task_on_pilot", "task", ["pilot"], **_where("state IN ('DISPATCHED', 'RUNNING')")
    )
    op.create_index(
        "ix_task_pending_step",
        "task",
        ["state", "changed"],
        **_where("state IN ('READY', 'STAGED_IN', 'RUN_DONE', 'RUN_ERROR', 'RUN_TIMEOUT')"),
    )
    op.create_index(
        "ix_task_placeable",
        "task",
        [sa.literal_column("priority DESC"), sa.literal_column("num_nodes DESC"), "created"],
        **_where("state IN ('PREPROCESSED', 'RESTART_READY')"),
    )
    op.create_index("ix_task_state_created", "task", ["state", "created"])
    op.create_index("ix_task_workflow_created", "task", ["workflow", "created"])
    op.create_table(
        "attempt",
        sa.Column("task", sa.String(length=155), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("allocation", sa.String(length=64)),
        sa.Column("pilot", sa.String(length=64)),
        sa.Column("nodes", _JSON, nullable=False),
        sa.Column("argv", _JSON, nullable=False),
        sa.Column("work_dir", sa.Text()),
        sa.Column("environment_digest", sa.String(length=64), server_default="", nullable=False),
        sa.Column("dispatched", sa.Double(), nullable=False),
        sa.Column("started", sa.Double()),
        sa.Column("ended", sa.Double()),
        sa.Column("outcome", sa.String(length=16)),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("signal", sa.Integer()),
        sa.Column("user_time", sa.Double()),
        sa.Column("system_time", sa.Double()),
        sa.Column("max_memory", sa.BigInteger()),
        sa.Column("stdout_tail", sa.Text()),
        sa.Column("stderr_tail", sa.Text()),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["task"], ["task.id"], name="fk_attempt_task", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task", "number", name="pk_attempt"),
    )
    op.create_index("ix_attempt_pilot", "attempt", ["pilot"])
    op.create_table(
        "dependency",
        sa.Column("child", sa.String(length=155), nullable=False),
        sa.Column("parent", sa.String(length=155), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("met", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["child"], ["task.id"], name="fk_dependency_child", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["parent"], ["task.id"], name="fk_dependency_parent", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("child", "parent", name="pk_dependency"),
    )
    op.create_index("ix_dependency_parent", "dependency", ["parent"])
    op.create_table(
        "event",
        sa.Column("id", _KEY, autoincrement=True, nullable=False),
        sa.Column("task", sa.String(length=155), nullable=False),
        sa.Column("from_state", sa.String(length=20)),
        sa.Column("to_state", sa.String(length=20), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("who", sa.String(length=200), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["task"], ["task.id"], name="fk_event_task", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_event"),
    )
    op.create_index("ix_event_task", "event", ["task", "id"])
    op.create_table(
        "pilot",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("allocation", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("nodes", _JSON, nullable=False),
        sa.Column("registered", sa.Double(), nullable=False),
        sa.Column("heartbeat", sa.Double(), nullable=False),
        sa.Column("end_time", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double()),
        sa.Column("idle_since", sa.Double()),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["allocation"], ["allocation.id"], name="fk_pilot_allocation"),
        sa.PrimaryKeyConstraint("id", name="pk_pilot"),
    )
    op.create_index("ix_pilot_allocation", "pilot", ["allocation"])
    op.create_index("ix_pilot_state", "pilot", ["state"])
    op.create_table(
        "tag",
        sa.Column("task", sa.String(length=155), nullable=False),
        sa.Column("tag", sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(["task"], ["task.id"], name="fk_tag_task", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task", "tag", name="pk_tag"),
    )
    op.create_index("ix_tag_tag", "tag", ["tag"])
