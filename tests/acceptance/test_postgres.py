"""A site whose database is PostgreSQL and whose Redis is not its own: two hosts, two services."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery.private import write_private
from balsam_celery.settings import LocalSettings
from balsam_celery.site import Site, connect_store, find
from balsam_celery.siteinit import init
from balsam_celery.store import lease
from balsam_celery.supervisor import children, down, records, up
from tests.acceptance.live import BIN, LiveSite, kill9
from tests.flower import flower
from tests.postgres import PostgresServer, postgres_server
from tests.redis_server import RedisServer
from tests.toml_keys import set_keys
from tests.waiting import wait_until

__all__ = ["postgres_server"]

#: A host name of its own for one command, as root may have it.
ELSEWHERE = ["unshare", "--uts", "sh", "-c", 'hostname login2; exec "$@"', "sh"]


@pytest.fixture(scope="module")
def live(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: PostgresServer,
    redis_server: RedisServer,
) -> Iterator[LiveSite]:
    """The site, up; its database and its Redis are named by files."""
    site = init(
        tmp_path_factory.mktemp("postgres") / "site",
        name="pg",
        local=LocalSettings(nodes=2, cores_per_node=2),
    )
    url = postgres_server.url(postgres_server.new_database())
    write_private(site.secrets_dir / "database", url.replace("+psycopg", "") + "\n")
    write_private(site.secrets_dir / "redis-url", redis_server.url + "\n")
    set_keys(site, "database", url_file='"secrets/database"')
    set_keys(site, "site", kill_grace='"1s"')
    set_keys(site, "scheduler", poll_interval='"1s"')
    set_keys(site, "packing", interval='"1s"')
    site = set_keys(site, "redis", url_file='"secrets/redis-url"')
    up(site)
    store = connect_store(site)
    try:
        yield LiveSite(site, store)
    finally:
        store.close()
        down(find(site.directory))


def environments(site: Site) -> dict[Path, str]:
    """Environments of all processes of the site, programs in allocations too, by place in /proc."""
    found = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            # those that ended, and those of others
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                found[place] = (place / "environ").read_text(errors="replace")
    return {place: text for place, text in found.items() if site.settings.site.id in text}


def until(gate: Path) -> str:
    """Shell text that lasts until there is such a file."""
    return f'while [ ! -e "{gate}" ]; do sleep 0.1; done'


def test_a_task_from_submission_to_provenance(live: LiveSite) -> None:
    live.balsam("app", "add", "greet", "--", "echo", "hello", "{who}")
    [first] = live.submit("--app", "greet", "who=postgres")
    live.balsam("wait", first, "--timeout", "90")
    shown = live.json("show", first)
    assert (shown["state"], len(shown["attempts"])) == ("JOB_FINISHED", 1)
    assert "hello postgres" in live.balsam("log", first)
    assert first[:8] in live.balsam("ls")
    result = live.python(
        "import json; from balsam_celery import program\n"
        "add = program('add', ['sh', '-c', 'echo $(({a} + {b}))'])\n"
        "print(json.dumps(add.delay(a=2, b=3).get(timeout=90)['output_tail']))"
    )
    assert result == "5\n"


def test_no_secret_is_seen(
    live: LiveSite, postgres_server: PostgresServer, redis_server: RedisServer
) -> None:
    secrets = [postgres_server.password, redis_server.password]
    gate = live.site.directory / "gate-secrets"
    [id] = live.submit("--", "sh", "-c", f"env; {until(gate)}")
    live.wait_for(id, "RUNNING")
    seen = list(environments(live.site).values())
    assert any(f"BALSAM_TASK_ID={id}" in text for text in seen)
    seen += [
        (place / "cmdline").read_text()
        for place in environments(live.site)
        if (place / "cmdline").exists()
    ]
    gate.touch()
    live.wait_for(id, "JOB_FINISHED")
    seen += [live.balsam(command) for command in ("status", "ls", "allocations", "pilot")]
    seen += [live.balsam("status", "--json"), live.balsam("show", id), live.balsam("log", id)]
    seen += [live.celery("inspect", "conf"), live.celery("inspect", "stats")]
    seen += [flower(live.site, page) for page in ("/workers", "/broker", "/api/workers")]
    seen += [
        path.read_text(errors="replace")
        for directory in (live.site.log_dir, live.site.run_dir, live.site.local_dir)
        for path in directory.rglob("*")
        if path.is_file()
    ]
    assert len(seen) > 40
    for text in seen:
        assert not any(secret in text for secret in secrets), text[:300]


def test_a_wrong_password_is_told_without_it(live: LiveSite) -> None:
    path = live.site.secrets_dir / "database"
    before = path.read_text()
    write_private(path, before.replace("balsam:", "balsam:geheim"))
    try:
        said = live.balsam("ls", status=1)
        assert "password authentication failed" in said
        assert "geheim" not in said
        assert len(said.strip().splitlines()) == 1
    finally:
        write_private(path, before)


@pytest.fixture
def second_host() -> list[str]:
    """What runs a command under another host name."""
    argv = [*ELSEWHERE, "true"]
    if not shutil.which("unshare") or subprocess.run(argv, check=False).returncode != 0:
        message = "a host name of its own for a command needs root and unshare"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return ELSEWHERE


def test_the_second_login_node(live: LiveSite, second_host: list[str]) -> None:
    def balsam(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*second_host, str(BIN / "balsam"), *arguments],
            env=live.environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    done = balsam("submit", "--json", "--", "echo", "there")
    assert done.returncode == 0, done.stderr
    id = json.loads(done.stdout)["tasks"][0]["id"]
    assert balsam("wait", id, "--timeout", "90").returncode == 0
    assert id[:8] in balsam("ls").stdout
    assert "there" in balsam("log", id).stdout
    for command in ("up", "down", "status"):
        done = balsam(command)
        assert done.returncode == 2, (command, done.stdout, done.stderr)
        assert f"runs on {live.site.settings.site.host}, and this is login2" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert json.loads(live.balsam("status", "--json"))["up"]


def test_of_two_services_one_leads_and_the_other_takes_over(live: LiveSite, tmp_path: Path) -> None:
    site = live.site

    def leader() -> int | None:
        held = lease.holder(live.store, "service")
        return None if held is None else int(held[0].split(":")[1])

    def pid_of(name: str) -> int:
        record = records.read(site, name)
        assert record is not None
        assert record.process is not None
        return record.process.pid

    first = pid_of("service")
    assert leader() == first
    gate = site.directory / "gate-services"
    [running] = live.submit("--", "sh", "-c", f"{until(gate)}; echo outlived it")
    live.wait_for(running, "RUNNING")
    plain = children.child(site, "service")
    argv = [*plain.argv, "-n", "service@second"]
    # not one of the site's own processes: `down` leaves it alone
    environment = {
        key: value for key, value in plain.environment.items() if key != children.MARK_VARIABLE
    }
    log = (tmp_path / "second.log").open("wb")
    second = subprocess.Popen(argv, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        said = tmp_path / "second.log"
        wait_until(lambda: "service@second ready" in said.read_text(), 60, "the second is ready")
        [id] = live.submit("--", "true")
        live.wait_for(id, "JOB_FINISHED")
        assert leader() == first
        # the daemon would start the first again at once
        kill9(pid_of(children.SUPERVISOR))
        kill9(first)
        wait_until(lambda: leader() == second.pid, 30, "the second leads")
        ids = [live.submit("--", "true")[0] for _ in range(3)]
        for id in ids:
            live.wait_for(id, "JOB_FINISHED")
        gate.touch()
        ended = live.wait_for(running, "JOB_FINISHED")
        assert ended.attempt == 1
        assert "outlived it" in live.balsam("log", running)
        # both beats and services of a site that is up again leave it in the lead
        up(site)
        assert leader() == second.pid
        second.terminate()
        second.wait(60)
        wait_until(lambda: leader() == pid_of("service"), 30, "the first leads again")
        [id] = live.submit("--", "true")
        live.wait_for(id, "JOB_FINISHED")
    finally:
        second.kill()
        second.wait(20)
        log.close()
        up(site)


def test_down_and_up_with_the_url_in_the_environment(
    live: LiveSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one: it leaves the site down."""
    site = live.site
    url = site.secret("database")
    [broken_off] = live.submit("--", "sleep", "1000")
    live.wait_for(broken_off, "RUNNING")
    down(site)
    # the service has recorded what became of the allocation before it ended
    shown = json.loads(live.balsam("status", "--json", status=1))
    assert (shown["allocations"], shown["pilots"]) == ([], [])
    assert live.task(broken_off).state == "RESTART_READY"
    live.balsam("kill", broken_off)
    set_keys(site, "database", url_file='""', url_env='"MY_DATABASE"')
    try:
        with pytest.raises(AssertionError, match="export MY_DATABASE=URL"):
            live.balsam("ls")
        monkeypatch.setenv("MY_DATABASE", url)
        up(find(site.directory))
        [id] = live.submit("--", "env")
        live.balsam("wait", id, "--timeout", "90")
        assert "BALSAM_TASK_ID" in live.balsam("log", id)
        assert "MY_DATABASE" not in live.balsam("log", id)
        [keeps] = live.submit("--", "sleep", "1000")  # a pilot, while the processes are looked at
        live.wait_for(keeps, "RUNNING")
        jobs = [text for text in environments(site).values() if "BALSAM_LOCAL_JOB=" in text]
        live.balsam("kill", keeps)
        assert jobs
        assert not any(url in text for text in jobs)
        shown = live.json("status")
        assert shown["up"]
        assert url not in json.dumps(shown)
    finally:
        down(find(site.directory))
        set_keys(site, "database", url_file='"secrets/database"', url_env='""')
