"""Migrations: the whole schema, backups, and databases of another age."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, inspect, text
from sqlalchemy.engine import make_url

import balsam_celery
from balsam_celery.errors import SchemaError, StoreError
from balsam_celery.resources import Resources
from balsam_celery.store import allocations, facts, scans, schema
from balsam_celery.store.connect import make_engine, parse_url
from balsam_celery.store.engine import Store
from balsam_celery.store.migrate import HEAD, REVISIONS, current, upgrade
from tests.store.making import add, program, race, task

PACKAGE = Path(balsam_celery.__file__).parent
NEXT = '''"""Of a later package."""
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"

def upgrade():
    # a change that makes SQLite build the table anew, with rows hanging on it
    with op.batch_alter_table("task", {recreate}) as batch:
        batch.add_column(sa.Column("later", sa.Text(), server_default="new"))
'''


@pytest.fixture
def later_package(tmp_path: Path) -> Path:
    """A copy of this package as a later release: with one more revision."""
    root = tmp_path / "later"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, root / "balsam_celery", ignore=ignore)
    store = root / "balsam_celery/store"
    revisions = store / "revisions.py"
    known = f"REVISIONS = {REVISIONS!r}".replace("'", '"')
    assert known in revisions.read_text()
    later = f"REVISIONS = {(*REVISIONS, '9999')!r}"
    revisions.write_text(revisions.read_text().replace(known, later))
    script = NEXT.format(head=HEAD, recreate='recreate="auto"')
    (store / "migrations/versions/later.py").write_text(script)
    return root


def run_later(package: Path, code: str, url: str) -> object:
    """What ``code`` prints as JSON, run by the later package."""
    argv = [sys.executable, "-c", f"import json, sys\nurl = sys.argv[1]\n{code}", url]
    path = [str(package), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    done = subprocess.run(
        argv, env=environment, capture_output=True, text=True, timeout=60, cwd=package, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


OPEN_LATER = """
from balsam_celery.errors import SchemaError
from balsam_celery.store.engine import Store
try:
    Store.open(url).close()
    print(json.dumps("opened"))
except SchemaError as error:
    print(json.dumps(str(error)))
"""
UPGRADE_LATER = """
from pathlib import Path
from balsam_celery.store.migrate import upgrade
print(json.dumps(upgrade(url, Path("backups"))))
"""


def test_revisions_are_those_of_the_scripts() -> None:
    scripts = ScriptDirectory(str(PACKAGE / "store/migrations"))
    assert [script.revision for script in scripts.walk_revisions()][::-1] == list(REVISIONS)


def test_migrated_schema_is_the_declared_one(url: str) -> None:
    with closing(Store.open(url)) as store, store.read() as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_partial_indexes_are_in_the_database(url: str) -> None:
    query = {
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    }[make_url(url).get_backend_name()]
    with closing(Store.open(url)) as store, store.read() as conn:
        indexes = dict(iter(conn.execute(text(query))))
    for name in ("placeable", "on_pilot", "pending_step", "kill_requested"):
        assert " WHERE " in indexes[f"ix_task_{name}"]
    assert "priority DESC" in indexes["ix_task_placeable"]


def test_upgrade_of_nothing_makes_the_schema_and_no_backup(empty_url: str, tmp_path: Path) -> None:
    assert current(empty_url) is None
    assert upgrade(empty_url, tmp_path / "backups") is None
    assert current(empty_url) == HEAD
    assert upgrade(empty_url, tmp_path / "backups") is None
    assert not (tmp_path / "backups").exists()
    Store.open(empty_url).close()


def test_upgrades_at_once_are_harmless(empty_url: str) -> None:
    assert race(3, lambda _: upgrade(empty_url, None)) == [None] * 3
    assert current(empty_url) == HEAD


def test_reading_the_revision_makes_no_file(tmp_path: Path) -> None:
    assert current(f"sqlite:///{tmp_path}/none.sqlite") is None
    assert not (tmp_path / "none.sqlite").exists()


def test_older_schema_is_refused_then_upgraded_after_a_backup(
    own_url: str, later_package: Path
) -> None:
    with closing(Store.open(own_url)) as store:
        add(store, program("task-1", tags=["x"]), program("child1", parents=["task-1"]))
    said = run_later(later_package, OPEN_LATER, own_url)
    assert isinstance(said, str)
    assert "older than this package's 9999: run 'balsam up'" in said

    backup = run_later(later_package, UPGRADE_LATER, own_url)
    assert isinstance(backup, str)
    copy = later_package / backup
    assert copy.stat().st_mode & 0o777 == 0o600
    assert HEAD in copy.name
    if make_url(own_url).get_backend_name() == "sqlite":
        assert current(f"sqlite:///{copy}") == HEAD
        with closing(Store.open(f"sqlite:///{copy}")) as store:
            assert task(store, "task-1").tags == ("x",)
    else:
        assert copy.read_bytes().startswith(b"PGDMP")

    assert run_later(later_package, OPEN_LATER, own_url) == "opened"
    assert run_later(later_package, UPGRADE_LATER, own_url) is None
    with closing(Store.open(own_url, check_schema=False)) as store, store.read() as conn:
        assert conn.scalar(text("SELECT later FROM task WHERE id = 'child1'")) == "new"
        for table, count in (("tag", 1), ("dependency", 1), ("event", 5)):
            assert conn.scalar(text(f"SELECT count(*) FROM {table}")) == count


def first_release(url: str) -> None:
    """A database as the first release made it, with a task, its tag and an allocation."""
    engine = make_engine(parse_url(url)).execution_options(balsam_write=True)
    with engine.begin() as conn:
        config = Config()
        config.set_main_option("script_location", str(PACKAGE / "store/migrations"))
        config.attributes["connection"] = conn
        command.upgrade(config, "0001")
        tables = MetaData()
        tables.reflect(conn)
        row = {
            "id": "task-1", "kind": "program", "name": "old", "application": "old",
            "command": ["/bin/true"], "literal": True, "arguments": {"args": [], "kwargs": {}},
            "celery": {}, "errbacks": [], "argv": ["/bin/true"], "num_nodes": 2,
            "ranks_per_node": 1, "threads_per_rank": 1, "threads_per_core": 1,
            "gpus_per_rank": 0.5, "cpu_affinity": "depth", "environment": {}, "wall_time": 60,
            "priority": 0, "max_retries": 0, "restartable": False, "on_parent_failure": "fail",
            "not_before": 0.0, "hooks": {}, "input_files": [], "data": {},
            "state": "PREPROCESSED", "attempt": 0, "failures": 0, "waiting_on": 0,
            "created": 1.0, "changed": 1.0,
        }  # fmt: skip
        assert not {"memory_per_node", "resources_per_node"} & set(tables.tables["task"].c.keys())
        conn.execute(tables.tables["task"].insert(), [row])
        conn.execute(tables.tables["tag"].insert(), [{"task": "task-1", "tag": "x"}])
        job = {
            "id": "a1", "queue": "q", "nodes": 2, "wall_time": 60, "state": "QUEUED",
            "created": 1.0, "run_dir": "/r",
        }  # fmt: skip
        conn.execute(tables.tables["allocation"].insert(), [job])
    engine.dispose()


def test_a_database_of_the_first_release_is_upgraded(empty_url: str, tmp_path: Path) -> None:
    first_release(empty_url)
    with pytest.raises(SchemaError, match=f"is 0001, older than this package's {HEAD}"):
        Store.open(empty_url)
    backup = upgrade(empty_url, tmp_path / "backups")
    assert backup is not None
    assert "-0001-" in backup
    if make_url(empty_url).get_backend_name() == "sqlite":
        assert current(f"sqlite:///{backup}") == "0001"
    with closing(Store.open(empty_url)) as store:
        row = task(store, "task-1")
        assert row.resources == Resources(num_nodes=2, gpus_per_rank=0.5)
        assert (row.tags, row.command, row.created) == (("x",), ["/bin/true"], 1.0)
        with store.read() as conn:
            [shape] = scans.backlog(conn, now=2.0)
            assert (shape.resources, shape.count) == (row.resources, 1)
            assert [a.id for a in allocations.list_allocations(conn)] == ["a1"]
            context = MigrationContext.configure(conn, opts={"compare_type": True})
            assert compare_metadata(context, schema.metadata) == []
        add(store, program("task-2", memory_per_node=1 << 40))


def test_newer_schema_is_refused_and_left_alone(own_url: str, later_package: Path) -> None:
    run_later(later_package, UPGRADE_LATER, own_url)
    for act in (lambda: Store.open(own_url), lambda: upgrade(own_url, later_package / "b")):
        with pytest.raises(SchemaError, match=r"newer than this package's .*upgrade balsam_celery"):
            act()
    assert current(own_url) == "9999"
    assert not (later_package / "b").exists()


def test_table_made_anew_keeps_what_hangs_on_it(tmp_path: Path, later_package: Path) -> None:
    url = f"sqlite:///{tmp_path}/site.sqlite"
    upgrade(url, None)
    with closing(Store.open(url)) as store:
        add(store, program("task-1", tags=["x"]))
    script = later_package / "balsam_celery/store/migrations/versions/later.py"
    script.write_text(NEXT.format(head=HEAD, recreate='recreate="always"'))
    run_later(later_package, UPGRADE_LATER, url)
    with closing(Store.open(url, check_schema=False)) as store, store.read() as conn:
        assert conn.scalar(text("SELECT count(*) FROM event")) == 3
        assert conn.scalar(text("SELECT count(*) FROM tag")) == 1


def test_failed_upgrade_changes_nothing(own_url: str, later_package: Path) -> None:
    script = later_package / "balsam_celery/store/migrations/versions/later.py"
    script.write_text(script.read_text() + "    op.execute('SELECT * FROM no_such_table')\n")
    code = f"""
from balsam_celery.errors import StoreError
try:
    {UPGRADE_LATER.strip().replace(chr(10), chr(10) + "    ")}
except StoreError:
    print(json.dumps("failed"))
"""
    assert run_later(later_package, code, own_url) == "failed"
    assert current(own_url) == HEAD
    with closing(Store.open(own_url)) as store, store.read() as conn:
        columns = {column["name"] for column in inspect(conn).get_columns("task")}
    assert "later" not in columns


def test_copy_that_fails_stops_the_upgrade(tmp_path: Path, later_package: Path) -> None:
    url = f"sqlite:///{tmp_path}/site.sqlite"
    upgrade(url, None)
    blocked = f"{UPGRADE_LATER.replace('backups', '/proc/nowhere/backups')}"
    code = f"""
try:
    {blocked.strip().replace(chr(10), chr(10) + "    ")}
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
    kind, message = run_later(later_package, code, url)  # type: ignore[misc]
    assert (kind, "nothing was changed" in message) == ("StoreError", True)
    assert current(url) == HEAD


def test_tables_of_someone_else_are_refused(empty_url: str) -> None:
    with closing(Store.open(empty_url, check_schema=False)) as store, store.write() as conn:
        conn.execute(text("CREATE TABLE task (id INTEGER)"))
    with pytest.raises(SchemaError, match="tables of someone else \\(task\\)"):
        upgrade(empty_url, None)


def test_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "site.sqlite"
    path.write_text("this is no database, only text that is long enough" * 30)
    for act in (
        lambda: Store.open(f"sqlite:///{path}"),
        lambda: upgrade(f"sqlite:///{path}", None),
    ):
        with pytest.raises(StoreError, match="not a database"):
            act()


def test_backup_holds_what_is_still_in_the_write_ahead_log(
    tmp_path: Path, later_package: Path
) -> None:
    url = f"sqlite:///{tmp_path}/site.sqlite"
    upgrade(url, None)
    with closing(Store.open(url)) as store:
        with store.write() as conn:
            facts.remember(conn, "late", "yes")
        backup = later_package / str(run_later(later_package, UPGRADE_LATER, url))
    with closing(sqlite3.connect(backup)) as copy:
        assert copy.execute("SELECT value FROM site").fetchall() == [("yes",)]
