"""The site's own Redis, as a real process."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from balsam_celery.celeryapp import redis_client
from balsam_celery.errors import SiteError
from balsam_celery.redisserver import answers, find_server, server_command, write_config
from balsam_celery.site import Site, find
from balsam_celery.siteinit import init
from tests.waiting import wait_until


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init(tmp_path / "site")


@pytest.fixture
def server(site: Site, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (tmp_path / "redis.log").open("wb") as log:
        process = subprocess.Popen(server_command(site), stdout=log, stderr=log)
    yield process
    process.terminate()
    process.wait(20)


def ping(site: Site) -> str:
    with redis_client(site) as client:
        return answers(client)


def test_server_runs_with_the_password_in_its_file_alone(
    site: Site, server: subprocess.Popen[bytes]
) -> None:
    wait_until(lambda: ping(site) == "", 20, "redis answers")
    assert site.secret("redis") not in Path(f"/proc/{server.pid}/cmdline").read_text()
    assert site.secret("redis") not in Path(f"/proc/{server.pid}/environ").read_text()
    config = site.local_dir / "redis" / "redis.conf"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    with redis_client(site) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
    with (
        redis.Redis(port=site.settings.redis.port) as stranger,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        stranger.ping()


def test_what_is_the_matter(site: Site, server: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: ping(site) == "", 20, "redis answers")
    (site.secrets_dir / "redis").write_text("another password\n")
    assert "another password" in ping(site)
    server.terminate()
    server.wait(20)
    assert "refused" in ping(site)


def test_kill_loses_no_more_than_a_second(site: Site, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen(server_command(site), stdout=log, stderr=log)
        wait_until(lambda: ping(site) == "", 20, "redis answers")
        with redis_client(site) as client:
            client.rpush("list", "kept")
            wait_until(
                lambda: (
                    int(client.info("persistence")["aof_pending_bio_fsync"]) == 0
                    and client.info("persistence")["aof_current_size"] > 50
                ),
                10,
                "the file is written",
            )
        first.kill()
        first.wait(20)
        second = subprocess.Popen(server_command(site), stdout=log, stderr=log)
    try:
        wait_until(lambda: ping(site) == "", 20, "redis answers again")
        with redis_client(site) as client:
            assert client.lrange("list", 0, -1) == [b"kept"]
    finally:
        second.terminate()
        second.wait(20)


def test_passwords_are_quoted(site: Site) -> None:
    (site.secrets_dir / "redis").write_text('a"b\\c d\n')
    assert 'requirepass "a\\"b\\\\c d"\n' in write_config(site).read_text()
    (site.secrets_dir / "redis").write_text("a\nb\n")
    with pytest.raises(SiteError, match="printable"):
        write_config(site)


def test_open_to_the_network_is_refused(site: Site) -> None:
    path = site.directory / "site.toml"
    path.write_text(path.read_text().replace('bind = "127.0.0.1"', 'bind = "0.0.0.0"'))
    with pytest.raises(SiteError, match=r"'0\.0\.0\.0' leaves this machine"):
        write_config(find(site.directory))


def test_find_server(tmp_path: Path) -> None:
    assert find_server("").is_file()
    with pytest.raises(SiteError, match="--version fails"):
        find_server(str(tmp_path / "nothing"))
    with pytest.raises(SiteError, match="is no redis-server"):
        find_server("/bin/true")
