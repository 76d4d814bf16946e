"""What ``init`` writes for Redis: address, TLS and its certificates."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from balsam_celery.errors import SiteError
from balsam_celery.redisaddress import is_loopback
from balsam_celery.siteinit import init
from balsam_celery.supervisor import down, up
from balsam_celery.supervisor.network import prepare_redis
from tests.schedulers.harness_pbs import PbsHarness
from tests.site.tls_site import need_tls


def test_tls_of_a_local_site(tmp_path: Path) -> None:
    need_tls()
    made = init(tmp_path / "site", tls=True)
    assert made.settings.redis.tls
    assert made.settings.redis.host == "127.0.0.1"
    assert made.redis_url().startswith("rediss://")
    assert (made.secrets_dir / "tls-server.key").stat().st_mode & 0o777 == 0o600
    certificate = (made.directory / "tls" / "server.crt").read_bytes()
    lines: list[str] = []
    prepare_redis(made, lines.append)  # as `up` does
    assert lines == []
    assert (made.directory / "tls" / "server.crt").read_bytes() == certificate


def test_a_site_without_tls_has_no_certificates(tmp_path: Path) -> None:
    made = init(tmp_path / "site")
    assert not made.settings.redis.tls
    assert not (made.directory / "tls").exists()


def test_tls_where_no_server_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # leaves the wheel's, which is built without
    with pytest.raises(SiteError, match=r"no redis-server"):
        init(tmp_path / "site", tls=True)
    assert not (tmp_path / "site").exists()


def test_without_flower_a_site_has_no_web_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = init(tmp_path / "site")
    assert made.settings.flower.enabled
    # as where the extra was not installed
    monkeypatch.setitem(sys.modules, "flower", None)
    try:
        with pytest.raises(SiteError, match=r"Flower is not installed: .* or set it to false"):
            up(made)
    finally:
        down(made)
    lines: list[str] = []
    assert not init(tmp_path / "other", say=lines.append).settings.flower.enabled
    assert any("Flower is not installed" in line for line in lines)


def test_on_a_cluster_tls_is_the_default(tmp_path: Path) -> None:
    need_tls()
    (tmp_path / "harness").mkdir()
    harness = PbsHarness(tmp_path / "harness")
    try:
        made = init(tmp_path / "site", scheduler="pbs")
    finally:
        harness.stop()
    assert made.settings.redis.tls
    assert not is_loopback(made.settings.redis.host)
    lines: list[str] = []
    prepare_redis(made, lines.append)
    assert lines == []


def test_on_a_cluster_without_tls_the_user_is_told_what_to_set(
    tmp_path: Path,
) -> None:
    (tmp_path / "harness").mkdir()
    harness = PbsHarness(tmp_path / "harness")
    lines: list[str] = []
    try:
        made = init(tmp_path / "site", scheduler="pbs", tls=False, say=lines.append)
    finally:
        harness.stop()
    assert any("trusted_network" in line for line in lines)
    with pytest.raises(SiteError, match="trusted_network"):
        prepare_redis(made, lines.append)
