"""Making and finding sites; their settings, places and secrets."""

from __future__ import annotations

import dataclasses
import os
import ssl
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from balsam_celery import settings
from balsam_celery.celeryapp import make_site_app
from balsam_celery.errors import InvalidInput, SettingsError, SiteError
from balsam_celery.private import private_dir
from balsam_celery.settings import LocalSettings
from balsam_celery.site import (
    Site,
    check_host,
    config_file,
    connect_store,
    default_local_dir,
    find,
)
from balsam_celery.siteinit import init
from balsam_celery.store.migrate import upgrade


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init(tmp_path / "mine")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def change(site: Site, old: str, new: str) -> Site:
    path = site.directory / "site.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return find(site.directory)


def test_example_shows_every_key_with_its_default() -> None:
    plain = tomllib.loads(config_file("site.example.toml").read_text())
    parsed = settings.parse(plain)
    assert dataclasses.replace(parsed, queues={}) == settings.Settings()
    for table in dataclasses.fields(settings.Settings):
        value = getattr(parsed, table.name)
        shown = plain[table.name]
        if table.name == "queues":
            value, shown = value["local"], shown["local"]
        assert set(shown) == {field.name for field in dataclasses.fields(value)}, table.name


def test_init_makes_a_closed_site(site: Site) -> None:
    assert mode(site.directory) == 0o700
    assert mode(site.local_dir) == 0o700
    assert mode(site.directory / "site.toml") == 0o600
    assert len(site.secret("redis")) >= 32
    assert site.secret("redis") != site.secret("flower")
    assert mode(site.secrets_dir / "redis") == 0o600
    assert site.secret("redis") not in (site.directory / "site.toml").read_text()
    assert site.settings.site.name == "mine"
    assert site.settings.redis.port != site.settings.flower.port
    assert site.settings.queues["local"].max_nodes == site.settings.local.nodes
    assert "# " in (site.directory / "site.toml").read_text()  # comments stay


def test_two_sites_share_nothing(tmp_path: Path) -> None:
    first, second = init(tmp_path / "a", name="same"), init(tmp_path / "b", name="same")
    assert first.settings.key_prefix != second.settings.key_prefix
    assert first.local_dir != second.local_dir
    assert first.secret("redis") != second.secret("redis")


def test_init_takes_virtual_nodes(tmp_path: Path) -> None:
    made = init(tmp_path / "s", local=LocalSettings(nodes=8, cores_per_node=4, gpus_per_node=2))
    assert (made.settings.local.nodes, made.settings.local.cores_per_node) == (8, 4)
    assert made.settings.local.gpus_per_node == 2
    assert made.settings.queues["local"].max_nodes == 8


def test_init_refuses(tmp_path: Path, site: Site) -> None:
    with pytest.raises(SiteError, match="is a site already"):
        init(site.directory)
    with pytest.raises(InvalidInput, match="name is 'a b'"):
        init(tmp_path / "s", name="a b")
    for wrong in (LocalSettings(nodes=0), LocalSettings(cores_per_node=-1)):
        with pytest.raises(
            InvalidInput, match=r"local\.(nodes|cores_per_node) is .*give 1 or more"
        ):
            init(tmp_path / "s", local=wrong)
    assert not (tmp_path / "s").exists()
    open_dir = tmp_path / "open"
    open_dir.mkdir()
    open_dir.chmod(0o755)
    (open_dir / "file").touch()
    with pytest.raises(SiteError, match="chmod 700"):
        init(open_dir)
    assert mode(open_dir) == 0o755
    (tmp_path / "file").touch()
    with pytest.raises(SiteError, match="cannot make"):
        init(tmp_path / "file" / "s")


def test_init_closes_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir(mode=0o755)
    assert mode(init(tmp_path / "new").directory) == 0o700


def test_find(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(environ={"BALSAM_SITE": str(site.directory)}) == site
    below = site.directory / "run" / "deep"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert find(environ={}).directory == site.directory
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SiteError, match=r"no site in .* make one by 'balsam init DIR'"):
        find(environ={})
    with pytest.raises(SiteError, match=r"BALSAM_SITE names .*, which is no site"):
        find(environ={"BALSAM_SITE": str(tmp_path)})
    with pytest.raises(SiteError, match="which is no site"):
        find(tmp_path / "nowhere")


def test_unknown_key_names_the_nearest(site: Site) -> None:
    with pytest.raises(SettingsError, match=r"site\.toml.*'kill_grase'.*'kill_grace'"):
        change(site, "kill_grace", "kill_grase")


def test_open_to_others_is_refused(site: Site) -> None:
    (site.secrets_dir / "redis").chmod(0o640)
    with pytest.raises(SiteError, match="chmod 600"):
        site.redis_url()
    site.directory.chmod(0o750)
    with pytest.raises(SiteError, match=r"open to others \(0750\): chmod 700"):
        find(site.directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_site_is_refused(site: Site) -> None:
    os.chown(site.directory, 12345, 12345)
    with pytest.raises(SiteError, match="belongs to user 12345"):
        find(site.directory)
    os.chown(site.directory, 0, 0)
    link = site.directory / "link"
    link.symlink_to(site.local_dir)
    assert private_dir(link) == link
    os.chown(link, 12345, 12345, follow_symlinks=False)
    with pytest.raises(SiteError, match="belongs to user 12345"):
        private_dir(link)
    os.chown(site.local_dir, 12345, 12345)
    with pytest.raises(SiteError, match="belongs to user 12345"):
        private_dir(site.local_dir)


def with_redis_at(site: Site, url: str) -> Site:
    secret = site.secrets_dir / "redis-url"
    secret.touch(mode=0o600)
    secret.write_text(url)
    path = site.directory / "site.toml"
    head, table, tail = path.read_text().partition("[redis]")
    path.write_text(head + table + tail.replace('url_file = ""', f'url_file = "{secret}"', 1))
    return find(site.directory)


def test_redis_url(site: Site) -> None:
    assert site.redis_url().startswith("redis://:")
    assert site.redis_url().endswith(f"@127.0.0.1:{site.settings.redis.port}/0")
    external = with_redis_at(site, "rediss://:pw@redis.example:6379/0")
    assert not external.has_own_redis
    checked = "rediss://:pw@redis.example:6379/0?ssl_cert_reqs=required"
    assert external.redis_url() == checked
    with make_site_app(external) as app, app.connection() as connection:
        assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://127.0.0.1:6379/0", "has no password"),
        ("redis://:pw@redis.example:6379/0", "leaves this machine .* in the clear"),
        ("http://:pw@127.0.0.1/", "is not 'redis://"),
        ("", "is empty"),
    ],
)
def test_redis_url_is_checked(site: Site, url: str, message: str) -> None:
    with pytest.raises(SiteError, match=message) as raised:
        with_redis_at(site, url).redis_url()
    assert "pw" not in str(raised.value)


def test_database_url(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert site.database_url() == f"sqlite:///{site.local_dir}/balsam.db"
    path = site.directory / "site.toml"
    head, table, tail = path.read_text().partition("[database]")
    path.write_text(head + table + tail.replace('url_env = ""', 'url_env = "MY_DB"', 1))
    site = find(site.directory)
    monkeypatch.delenv("MY_DB", raising=False)
    with pytest.raises(SiteError, match="export MY_DB=URL"):
        site.database_url()
    monkeypatch.setenv("MY_DB", "postgresql://me:pw@db/x")
    assert site.database_url() == "postgresql+psycopg://me:pw@db/x"
    monkeypatch.setenv("MY_DB", "mysql://me:pw@db/x")
    with pytest.raises(SiteError, match="'postgresql://'") as raised:
        site.database_url()
    assert "pw" not in str(raised.value)


def test_a_path_with_signs_of_urls_is_kept(tmp_path: Path) -> None:
    site = init(tmp_path / "site")
    path = tmp_path / "100 %41?#" / "balsam.db"
    site = change(site, 'path = ""', f'path = "{path}"')
    upgrade(site.database_url(), None)
    assert path.is_file()


def test_connect_store_on_another_host_names_it(site: Site) -> None:
    moved = change(site, f'host = "{site.settings.site.host}"', 'host = "login2"')
    with pytest.raises(SiteError, match="runs on login2, and this is"):
        connect_store(moved)
    with pytest.raises(SiteError, match="log in there"):
        check_host(moved)


def test_connect_store_before_up(site: Site) -> None:
    with pytest.raises(SiteError, match="run 'balsam up'"):
        connect_store(site)


def test_default_local_dir(tmp_path: Path) -> None:
    assert default_local_dir("s", "1f", {"XDG_STATE_HOME": str(tmp_path)}) == (
        tmp_path / "balsam" / "s-1f"
    )
    # a relative state directory is none
    assert default_local_dir("s", "1f", {"XDG_STATE_HOME": "state"}) == Path(
        f"/var/tmp/balsam-{os.geteuid()}/s-1f"
    )


def test_pilots_find_a_site_without_the_store(site: Site) -> None:
    code = (
        "import sys; from balsam_celery.site import find; s = find(); s.redis_url();"
        "print([m for m in sys.modules if m.startswith(('sqlalchemy', 'balsam_celery.store'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "BALSAM_SITE": str(site.directory)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_a_kind_of_scheduler_without_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="'foo': give one of auto, local, pbs"):
        init(tmp_path / "site", scheduler="foo")
    assert not (tmp_path / "site").exists()
