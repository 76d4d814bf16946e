"""The tables, the same on SQLite and PostgreSQL.

Times are seconds since the epoch (UTC) as doubles; JSON columns hold plain JSON values. The row of
a task is the truth about it (R1); ``event`` is append only.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    literal_column,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect

from balsam_celery.store.plaintext import clean_text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: JSON on SQLite, JSONB on PostgreSQL; ``None`` is NULL.
Json = JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
#: Autoincrementing key: SQLite gives one only to INTEGER.
Key = BigInteger().with_variant(Integer, "sqlite")


class CleanText(TypeDecorator[str]):
    """Text that may come from a program's output: what a database would refuse is replaced."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """``value`` as it is stored."""
        return None if value is None else clean_text(value)


#: What a site must remember of itself: ``host`` it runs on, ``id``, ``created``, and ``charged``:
#: node-seconds of allocations that were deleted.
site = Table(
    "site",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

application = Table(
    "application",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("command", Json, nullable=False),  # argv template: list of strings
    Column("defaults", Json, nullable=False),  # task fields, as ``program()`` takes them
    Column("description", Text, nullable=False, server_default=""),
    Column("created", Double, nullable=False),
)

task = Table(
    "task",
    metadata,
    Column("id", String(155), primary_key=True),  # also the Celery id
    Column("kind", String(8), nullable=False),  # program | celery
    Column("name", String(200), nullable=False),
    Column("workflow", String(200), nullable=False, server_default=""),
    Column("application", String(200), nullable=False),  # program name, or Celery task name
    # what to run: argv template and its values; argv once rendered
    Column("command", Json, nullable=False),
    Column("literal", Boolean, nullable=False),  # command holds no placeholders
    Column("arguments", Json, nullable=False),  # {"args": [...], "kwargs": {...}} as given
    Column("inputs", String(8), nullable=False, server_default="none"),  # none | single | list
    Column("celery", Json, nullable=False),  # kind celery: message headers and options
    Column("errbacks", Json, nullable=False),  # signatures called when the task ends FAILED
    Column("argv", Json),
    # resources, as ``balsam_celery.resources.Resources``
    Column("num_nodes", Integer, nullable=False),
    Column("ranks_per_node", Integer, nullable=False),
    Column("threads_per_rank", Integer, nullable=False),
    Column("threads_per_core", Integer, nullable=False),
    Column("gpus_per_rank", Double, nullable=False),
    Column("node_packing_count", Integer),
    Column("cpu_affinity", String(16), nullable=False),
    Column("memory_per_node", BigInteger, nullable=False, server_default="0"),  # bytes
    # ``amounts.counts_text``: "licence=2,nvme=1"
    Column("resources_per_node", String(500), nullable=False, server_default=""),
    Column("launcher", String(64)),
    Column("environment", Json, nullable=False),
    # limits and policy; seconds
    Column("wall_time", Integer, nullable=False),
    Column("expected_time", Double),
    Column("priority", Integer, nullable=False),
    Column("max_retries", Integer, nullable=False),
    Column("retry_on", Json),
    Column("retry_delay", Double),  # seconds before the first retry; NULL: the site's
    Column("restartable", Boolean, nullable=False),
    # the program is told so many seconds before its end, by this signal
    Column("checkpoint_grace", Integer, nullable=False, server_default="0"),
    Column("end_signal", String(16), nullable=False, server_default="TERM"),
    Column("on_parent_failure", String(8), nullable=False),  # fail | ignore
    Column("not_before", Double, nullable=False),
    # staging and hooks: {"stage_in": [...], "preprocess": [argv], ...}; empty when none
    Column("hooks", Json, nullable=False),
    Column("input_files", Json, nullable=False),
    Column("data", Json, nullable=False),
    # where it is
    Column("state", String(20), nullable=False),
    Column("attempt", Integer, nullable=False),  # number of the latest attempt, 0 before the first
    Column("failures", Integer, nullable=False),  # attempts that count against max_retries
    # seconds of the longest attempt that was cut short without any fault of its own
    Column("ran", Double),
    # attempts that were cut short so; of a restartable task, in a row
    Column("cuts", Integer, nullable=False, server_default="0"),
    Column("waiting_on", Integer, nullable=False),
    Column("kill_requested", Double),  # when; cleared by retry
    Column("kill_reason", CleanText, nullable=False, server_default=""),
    Column("pilot", String(64)),
    Column("shares", Json),  # list of NodeShare while on a pilot
    Column("work_dir", Text),
    Column("reason", CleanText, nullable=False, server_default=""),
    Column("result", Json),  # JSON that get() returns, or what the error carries
    Column("created", Double, nullable=False),
    Column("changed", Double, nullable=False),
    Column("finished", Double),
)
# SQLite uses a partial index only for a query whose WHERE holds the same literals.
PLACEABLE_SQL = "state IN ('PREPROCESSED', 'RESTART_READY')"
ON_PILOT_SQL = "state IN ('DISPATCHED', 'RUNNING')"
KILL_SQL = "kill_requested IS NOT NULL AND state NOT IN ('JOB_FINISHED', 'FAILED', 'USER_KILLED')"
OPEN_STEP_SQL = f"{ON_PILOT_SQL} AND kind = 'celery'"
PENDING_STEP_SQL = "state IN ('READY', 'STAGED_IN', 'RUN_DONE', 'RUN_ERROR', 'RUN_TIMEOUT')"
#: Among equal tasks the least goes first: see ``placement``.
LINE: ColumnElement[float] = literal_column("(created - coalesce(expected_time, 0))", Double)
for _name, _columns, _where in (
    ("ix_task_placeable", (task.c.priority.desc(), task.c.num_nodes.desc(), LINE), PLACEABLE_SQL),
    ("ix_task_on_pilot", (task.c.pilot,), ON_PILOT_SQL),
    ("ix_task_pending_step", (task.c.state, task.c.changed), PENDING_STEP_SQL),
    ("ix_task_open_step", (task.c.changed, task.c.id), OPEN_STEP_SQL),
    ("ix_task_kill_requested", (task.c.kill_requested, task.c.id), KILL_SQL),
):  # fmt: skip
    Index(_name, *_columns, sqlite_where=text(_where), postgresql_where=text(_where))
Index("ix_task_state_created", task.c.state, task.c.created)
Index("ix_task_workflow_created", task.c.workflow, task.c.created)
Index("ix_task_name_created", task.c.name, task.c.created)
Index("ix_task_created", task.c.created)

tag = Table(
    "tag",
    metadata,
    Column("task", String(155), ForeignKey("task.id", ondelete="CASCADE"), primary_key=True),
    Column("tag", String(200), primary_key=True),
)
Index("ix_tag_tag", tag.c.tag)

dependency = Table(
    "dependency",
    metadata,
    Column("child", String(155), ForeignKey("task.id", ondelete="CASCADE"), primary_key=True),
    Column("parent", String(155), ForeignKey("task.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, nullable=False),  # place of the parent's result in a list
    Column("met", Boolean, nullable=False),
)
Index("ix_dependency_parent", dependency.c.parent)

attempt = Table(
    "attempt",
    metadata,
    Column("task", String(155), ForeignKey("task.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("allocation", String(64)),
    Column("pilot", String(64)),
    Column("nodes", Json, nullable=False),  # list of NodeShare
    Column("argv", Json, nullable=False),
    Column("work_dir", Text),
    Column("environment_digest", String(64), nullable=False, server_default=""),
    Column("dispatched", Double, nullable=False),
    Column("started", Double),
    Column("ended", Double),
    Column("outcome", String(16)),
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("user_time", Double),
    Column("system_time", Double),
    Column("max_memory", BigInteger),
    Column("stdout_tail", CleanText),
    Column("stderr_tail", CleanText),
    Column("reason", CleanText, nullable=False, server_default=""),
)
Index("ix_attempt_pilot", attempt.c.pilot)

event = Table(
    "event",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("task", String(155), ForeignKey("task.id", ondelete="CASCADE"), nullable=False),
    Column("from_state", String(20)),
    Column("to_state", String(20), nullable=False),
    Column("time", Double, nullable=False),
    Column("who", String(200), nullable=False),
    Column("message", CleanText, nullable=False),
)
Index("ix_event_task", event.c.task, event.c.id)

allocation = Table(
    "allocation",
    metadata,
    Column("id", String(64), primary_key=True),  # also the unique job name's last part
    Column("queue", String(100), nullable=False),
    Column("nodes", Integer, nullable=False),
    Column("wall_time", Integer, nullable=False),
    # REQUESTED | QUEUED | RUNNING | ENDED | FAILED; "ended" only on the scheduler's word (R4)
    Column("state", String(16), nullable=False),
    Column("native_id", String(200)),  # "": submitted, and not known whether it was taken
    Column("cancel_requested", Double),
    Column("created", Double, nullable=False),
    Column("submitted", Double),
    Column("started", Double),
    Column("ended", Double),
    Column("reason", CleanText, nullable=False, server_default=""),
    Column("run_dir", Text, nullable=False),
    Column("asked_for", CleanText, nullable=False, server_default=""),  # why; stays
    # nodes that the scheduler has back, and node-seconds that it was charged for them
    Column("nodes_back", Integer, nullable=False, server_default="0"),
    Column("charged_back", Double, nullable=False, server_default="0"),
)
Index("ix_allocation_state_ended", allocation.c.state, allocation.c.ended)
Index("ix_allocation_queue_created", allocation.c.queue, allocation.c.created)

pilot = Table(
    "pilot",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("allocation", String(64), ForeignKey("allocation.id"), nullable=False),
    Column("state", String(16), nullable=False),  # LIVE | DRAINING | ENDED
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("nodes", Json, nullable=False),  # list of NodeCapacity
    Column("registered", Double, nullable=False),
    Column("heartbeat", Double, nullable=False),
    Column("end_time", Double, nullable=False),
    Column("ended", Double),  # of an ENDED one: when it was reaped; before: its farewell
    Column("idle_since", Double),
    Column("reason", CleanText, nullable=False, server_default=""),
    Column("stop_at", Double),  # of a DRAINING one: what still runs then is ended
    Column("idle_nodes", Json),  # since when nothing runs on a node, by name
    Column("giving_back", Json),  # GivingBack by name of the node
)
Index("ix_pilot_allocation", pilot.c.allocation)
Index("ix_pilot_state_ended", pilot.c.state, pilot.c.ended)
Index("ix_pilot_state_end_time", pilot.c.state, pilot.c.end_time)
Index(
    "ix_pilot_giving_back",
    pilot.c.registered,
    sqlite_where=pilot.c.giving_back.is_not(None),
    postgresql_where=pilot.c.giving_back.is_not(None),
)

effect = Table(
    "effect",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("task", String(155), nullable=False),
    Column("kind", String(16), nullable=False),  # result | forget | send | errback
    Column("payload", Json, nullable=False),
    Column("created", Double, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("not_before", Double, nullable=False),
)
Index("ix_effect_not_before", effect.c.not_before)
Index("ix_effect_task", effect.c.task)

#: How long attempts ran that ended with exit 0, counted in steps of time
#: (``balsam_celery.runtimes``); those of tasks that are pruned stay counted.
runtime = Table(
    "runtime",
    metadata,
    Column("application", String(200), primary_key=True),
    Column("shape", String(100), primary_key=True),  # ``runtimes.shape_of``
    Column("bucket", Integer, primary_key=True),
    Column("count", BigInteger, nullable=False),
)

lease = Table(
    "lease",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(255), nullable=False),
    Column("expires", Double, nullable=False),
    Column("term", Integer, nullable=False),  # grows with each change of holder
)
