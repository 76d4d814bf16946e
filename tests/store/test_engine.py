"""Opening, transactions, what is tried again, and what is refused."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import IntegrityError

from balsam_celery.errors import SchemaError, SiteError, StoreError
from balsam_celery.states import State
from balsam_celery.store import facts, schema
from balsam_celery.store.engine import Store
from balsam_celery.store.filesystems import file_system, network_file_system
from balsam_celery.store.migrate import upgrade
from balsam_celery.store.plaintext import to_json
from balsam_celery.store.queries import attempts
from tests.postgres import PostgresServer
from tests.store.making import add, program, race, task, walk


def test_sqlite_is_opened_as_it_must_be(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/deep/site.sqlite"
    upgrade(url, None)
    store = Store.open(url)
    wanted = {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 10000}

    def pragma(conn: Connection, name: str = "synchronous") -> object:
        return conn.exec_driver_sql(f"PRAGMA {name}").scalar()

    with store.read() as conn:
        assert {name: pragma(conn, name) for name in wanted} == wanted
    # 2: a commit is on the disk when it returns, power cut or not; also on a connection that was
    # used for what may be lost
    for _ in range(2):
        assert store.run(pragma) == 2
        with store.write() as conn:
            assert pragma(conn) == 2
        assert store.run(pragma, durable=False) == 1
    store.close()
    assert (tmp_path / "deep/site.sqlite").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://u:geheim@h/d",
        "nonsense:geheim",
        "postgresql://u:pass@word:geheim@h/d",
    ],
)
def test_unusable_address_is_refused_without_showing_a_password(url: str) -> None:
    with pytest.raises(SiteError, match="give sqlite:////PATH") as caught:
        Store.open(url)
    assert "geheim" not in str(caught.value)


def test_missing_sqlite_file_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="run 'balsam up'"):
        Store.open(f"sqlite:///{tmp_path}/none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()


def test_database_without_schema_is_refused(empty_url: str, tmp_path: Path) -> None:
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(SchemaError, match="holds no schema yet: run 'balsam up'"):
        Store.open(empty_url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://someone:geheim@127.0.0.1:1/nothing",
        "postgresql://someone@127.0.0.1:1/nothing?password=geheim&sslmode=prefer",
    ],
)
def test_postgres_that_is_not_there(url: str) -> None:
    with pytest.raises(StoreError, match="did not answer") as caught:
        Store.open(url)
    assert "geheim" not in str(caught.value)
    assert "someone" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_plain_postgresql_address_means_psycopg(postgres_server: PostgresServer) -> None:
    url = postgres_server.url("postgres").replace("+psycopg", "")
    store = Store.open(url, check_schema=False)
    with store.read() as conn:
        assert conn.scalar(text("SELECT 1")) == 1
    store.close()


def test_transaction_is_whole_or_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.write() as conn:
        facts.remember(conn, "a", "1")
        raise ZeroDivisionError
    with store.read() as conn:
        assert facts.recall(conn, "a") is None


def test_what_a_reading_transaction_wrote_is_undone(store: Store) -> None:
    with store.read() as conn:
        facts.remember(conn, "a", "1")
    with store.read() as conn:
        assert facts.recall(conn, "a") is None


def test_broken_constraint_is_no_store_error(store: Store) -> None:
    calls = []

    def body(conn: Connection) -> None:
        calls.append(1)
        conn.execute(insert(schema.tag).values(task="nobody", tag="x"))

    with pytest.raises(IntegrityError):
        store.run(body)
    assert len(calls) == 1


def test_an_error_does_not_show_the_values_of_its_statement(store: Store) -> None:
    """Among them are users' secrets, and errors go to logs and terminals."""
    with pytest.raises(IntegrityError) as caught, store.write() as conn:
        conn.execute(insert(schema.tag), [{"task": f"t{n}", "tag": "geheim"} for n in range(2)])
    assert "geheim" not in str(caught.value)


def test_a_server_that_is_gone_without_a_word_is_noticed(postgres_server: PostgresServer) -> None:
    url = postgres_server.url("postgres")
    with closing(Store.open(url, check_schema=False)) as store, store.read() as conn:
        number = conn.connection.driver_connection.fileno()  # type: ignore[union-attr]
        with socket.socket(fileno=os.dup(number)) as link:
            assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
            assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


def test_locked_database_is_tried_again_and_then_given_up(url: str) -> None:
    holder, store = Store.open(url), Store.open(url, busy_timeout=0.05)
    calls = []

    def body(conn: Connection) -> None:
        calls.append(1)
        conn.execute(text("UPDATE lease SET term = term + 1 WHERE name = 'x'"))

    with holder.write() as conn:
        row = {"name": "x", "holder": "", "expires": 0.0, "term": 1}
        conn.execute(insert(schema.lease), [row])
    with holder.write() as conn:
        conn.execute(text("UPDATE lease SET term = 5 WHERE name = 'x'"))
        with pytest.raises(StoreError, match="did not answer"):
            store.run(body)
        with pytest.raises(StoreError, match="did not answer"), store.write() as other:
            body(other)
    store.run(body)
    with store.read() as conn:
        assert conn.scalar(select(schema.lease.c.term)) == 6
    holder.close()
    store.close()


def test_increments_of_many_threads_are_all_kept(store: Store) -> None:
    with store.write() as conn:
        facts.remember(conn, "count", "0")

    def body(conn: Connection) -> None:
        site = schema.site
        row = select(site.c.value).where(site.c.key == "count").with_for_update()
        value = conn.scalar(row)
        facts.remember(conn, "count", str(int(value or 0) + 1))

    def increment(_index: int) -> None:
        for _ in range(10):
            store.run(body)

    race(6, increment)
    with store.read() as conn:
        assert facts.recall(conn, "count") == "60"


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_deadlock_is_tried_again(store: Store) -> None:
    with store.write() as conn:
        facts.remember(conn, "a", "0")
        facts.remember(conn, "b", "0")
    both_hold_one = threading.Barrier(2)
    tries = [0, 0]

    def attack(index: int) -> None:
        def body(conn: Connection) -> None:
            facts.remember(conn, "ab"[index], str(index))
            tries[index] += 1
            if tries[index] == 1:
                both_hold_one.wait(30)
            facts.remember(conn, "ba"[index], str(index))

        store.run(body)

    race(2, attack)
    # PostgreSQL ended one of them, which came after the other
    assert sorted(tries) == [1, 2]
    again = str(tries.index(2))
    with store.read() as conn:
        assert [facts.recall(conn, key) for key in "ab"] == [again, again]


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_lost_connections_are_made_anew(store: Store, postgres_server: PostgresServer) -> None:
    add(store, program("task-1"))
    calls = []

    def body(conn: Connection) -> int:
        calls.append(1)
        if len(calls) == 1:
            backend = conn.scalar(text("SELECT pg_backend_pid()"))
            postgres_server.execute(f"SELECT pg_terminate_backend({backend}, 10000)")
        return conn.scalar(text("SELECT count(*) FROM task")) or 0

    assert store.run(body) == 1
    assert len(calls) == 2


def test_output_that_a_database_would_refuse_is_kept_readable(store: Store) -> None:
    add(store, program("task-1"))
    nasty = "a\x00b\udc80c\\u0000"
    row = {"task": "task-1", "number": 1, "nodes": [], "argv": [nasty], "dispatched": 1.0}
    with store.write() as conn:
        conn.execute(insert(schema.attempt), [row | {"stdout_tail": nasty, "reason": nasty}])
    result = {"out": nasty, "numbers": [float("nan"), float("inf"), 1.5], "ünï": "✓"}
    walk(store, "task-1", [State.PREPROCESSED, State.FAILED], result=result, reason=nasty)
    clean = "a\ufffdb\ufffdc\\u0000"
    with store.read() as conn:
        [attempt] = attempts(conn, "task-1")
    assert (attempt.stdout_tail, attempt.reason, attempt.argv) == (clean, clean, [clean])
    row_now = task(store, "task-1")
    assert row_now.result == {"out": clean, "numbers": [None, None, 1.5], "ünï": "✓"}
    assert row_now.reason == clean


def test_json_refuses_what_is_not_json() -> None:
    with pytest.raises(TypeError):
        to_json({"a": {1, 2}})
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises((ValueError, RecursionError)):
        to_json(circle)


MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:40 / /home rw - nfs4 server:/home rw
31 30 0:41 / /home/local\\040disk rw - xfs /dev/sdb rw
32 22 0:42 / /lustre rw shared:1 - lustre mds:/scratch rw
33 22 0:43 / /over rw - nfs server:/x rw
34 22 0:44 / /over rw - tmpfs tmpfs rw
35 22 0:45 / /ssh rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/var/lib/x.sqlite", "ext4", False),
        ("/home/u/x.sqlite", "nfs4", True),
        ("/homer/x.sqlite", "ext4", False),
        ("/home/local disk/x.sqlite", "xfs", False),
        ("/lustre/x.sqlite", "lustre", True),
        ("/over/x.sqlite", "tmpfs", False),  # the later mount hides the earlier
        ("/ssh/x.sqlite", "fuse.sshfs", True),
    ],
)
def test_file_system_of_a_path(tmp_path: Path, path: str, kind: str, network: bool) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert file_system(Path(path), mounts) == kind
    assert network_file_system(Path(path), mounts) == (kind if network else None)


def test_kernel_that_does_not_tell(tmp_path: Path) -> None:
    assert network_file_system(tmp_path, tmp_path / "none") is None


def test_this_machine_s_own_table_is_read(tmp_path: Path) -> None:
    assert file_system(tmp_path) is not None


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    "doing",
    [
        "SET TRANSACTION READ ONLY",
        "SET LOCAL ROLE pg_monitor",
        "SET LOCAL statement_timeout = 1",
        "DO $$ BEGIN RAISE internal_error; END $$",
    ],
    ids=["read-only", "no right", "cancelled", "internal"],
)
def test_what_a_server_cannot_do_is_no_fault_of_the_values(store: Store, doing: str) -> None:
    def body(conn: Connection) -> None:
        conn.execute(text(doing))
        conn.execute(text("SELECT pg_sleep(0.1)"))
        facts.remember(conn, "a", "1")

    with pytest.raises(StoreError):
        store.run(body)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "doing", ["PRAGMA query_only = ON", "DROP TABLE site"], ids=["read-only", "no table"]
)
def test_what_a_file_cannot_take_is_no_fault_of_the_values(store: Store, doing: str) -> None:
    def body(conn: Connection) -> None:
        conn.exec_driver_sql(doing)
        facts.remember(conn, "a", "1")

    with pytest.raises(StoreError):
        store.run(body)


def test_a_value_that_a_database_refuses_is_no_store_error(store: Store) -> None:
    nowhere = {"name": None, "holder": "", "expires": 0.0, "term": 1}
    with pytest.raises(IntegrityError):
        store.run(lambda conn: conn.execute(insert(schema.lease), [nowhere]))
