"""Starts of a site: what is refused, what fails, what an earlier life has left."""

from __future__ import annotations

import socket
import sqlite3

import pytest

from balsam_celery import procs
from balsam_celery.errors import InvalidInput, SchemaError, SiteError
from balsam_celery.site import Site, find
from balsam_celery.supervisor import down, records, status, up
from tests.site.leftovers import ALL, fresh, left_running
from tests.site.test_site import change

__all__ = ["fresh"]


def test_failed_start_names_process_and_log_and_leaves_nothing(fresh: Site) -> None:
    broken = change(fresh, "imports = []", 'imports = ["no_such_module"]')
    with pytest.raises(SiteError) as raised:
        up(broken)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith("tasks does not stay up (exit 1; ")
    assert "no_such_module" in message
    assert message.endswith(f"see {fresh.log_dir}/tasks.log")
    assert left_running(fresh) == {}


@pytest.mark.parametrize("table", ["redis", "flower"])
def test_taken_port_is_named(fresh: Site, table: str) -> None:
    port = getattr(fresh.settings, table).port
    with socket.create_server(("127.0.0.1", port)), pytest.raises(SiteError) as raised:
        up(fresh)
    assert f"port {port} is taken by another program: change [{table}] port" in str(raised.value)
    assert left_running(fresh) == {}


def test_redis_of_others_that_does_not_answer(fresh: Site) -> None:
    secret = fresh.secrets_dir / "url"
    secret.touch(mode=0o600)
    secret.write_text(f"redis://:geheim@127.0.0.1:{fresh.settings.redis.port}/0")
    head, table, tail = (fresh.directory / "site.toml").read_text().partition("[redis]")
    (fresh.directory / "site.toml").write_text(
        head + table + tail.replace('url_file = ""', 'url_file = "secrets/url"', 1)
    )
    site = find(fresh.directory)
    with pytest.raises(SiteError, match=r"the Redis server that \[redis\] names") as raised:
        up(site, timeout=2)
    assert "geheim" not in str(raised.value)
    redis = status(site).processes[1]
    assert (redis.name, redis.up) == ("redis", False)


def test_newer_schema_is_refused_before_anything_starts(fresh: Site) -> None:
    with sqlite3.connect(fresh.database_path) as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('9999')")
    database.close()
    with pytest.raises(SchemaError, match="9999, newer than this package"):
        up(fresh)
    assert left_running(fresh) == {}


def test_stale_pid_files_of_before_a_reboot_are_cleared(fresh: Site) -> None:
    fresh.pid_dir.mkdir(mode=0o700)
    mine = procs.own_identity()
    before = procs.Identity(mine.pid, mine.start_time, "the boot before")
    for name in ALL:
        records.write(fresh, records.Record(name, before, 1.0))
    assert not any(process.up for process in status(fresh).processes)
    down(fresh)
    assert all(records.read(fresh, name) is None for name in ALL)


def test_bad_level_is_refused(fresh: Site) -> None:
    with pytest.raises(InvalidInput, match=r"\[logs\] level is 'LOUD'"):
        up(change(fresh, 'level = "INFO"', 'level = "LOUD"'))


def test_another_host_is_told_where_the_site_runs(fresh: Site) -> None:
    host = f'host = "{fresh.settings.site.host}"'
    away = change(fresh, host, 'host = "login2"')
    for act in (up, down, status):
        with pytest.raises(SiteError, match="runs on login2"):
            act(away)
    change(fresh, 'host = "login2"', host)


def test_status_before_up(fresh: Site) -> None:
    now = status(fresh)
    assert not now.up
    assert "run 'balsam up'" in now.note
