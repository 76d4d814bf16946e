"""Certificates, and every kind of client against a real Redis with TLS."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import socket
import ssl
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from celery.backends.redis import RedisBackend
from cryptography import x509
from flower.utils.broker import Broker

from balsam_celery import tls
from balsam_celery.celeryapp import make_pilot_app, make_site_app, redis_client
from balsam_celery.errors import SiteError
from balsam_celery.redisaddress import split_checks
from balsam_celery.redisserver import answers, find_server, server_command, write_config
from balsam_celery.site import Site
from balsam_celery.siteinit import init
from balsam_celery.supervisor.network import prepare_redis
from balsam_celery.tls import make_certificates
from tests.site.tls_site import address, make_tls_site, need_tls
from tests.toml_keys import set_keys
from tests.waiting import wait_until


def certificate(site: Site, name: str = "server.crt") -> x509.Certificate:
    return x509.load_pem_x509_certificate((site.directory / "tls" / name).read_bytes())


def names_in(found: x509.Certificate) -> tuple[list[str], list[str]]:
    value = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(one) for one in value.get_values_for_type(x509.IPAddress)]
    return sorted(value.get_values_for_type(x509.DNSName)), sorted(addresses)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_tls_site(tmp_path / "site %41")


def make(site: Site, *addresses: str) -> bool:
    return make_certificates(site.directory, site.secrets_dir, {"login1"}, addresses)


def test_certificates_name_the_server_and_are_private(site: Site) -> None:
    assert make(site, "10.1.2.3")
    server, authority = certificate(site), certificate(site, "ca.crt")
    assert names_in(server) == (["localhost", "login1"], ["10.1.2.3", "127.0.0.1", "::1"])
    server.verify_directly_issued_by(authority)
    years = server.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=3600) < years < timedelta(days=3700)
    for path in (*(site.directory / "tls").iterdir(), *site.secrets_dir.glob("tls-*")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((site.directory / "tls").stat().st_mode) == 0o700


def test_certificates_are_kept_while_they_serve(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(site)
    first = certificate(site).serial_number
    assert not make(site)
    assert certificate(site).serial_number == first
    # another address: a new one of the same CA
    authority = certificate(site, "ca.crt").serial_number
    assert make(site, "10.9.9.9")
    assert ipaddress.ip_address("10.9.9.9") in [
        ipaddress.ip_address(text) for text in names_in(certificate(site))[1]
    ]
    assert certificate(site, "ca.crt").serial_number == authority
    # the CA was removed: new ones
    (site.directory / "tls" / "ca.crt").unlink()
    assert make(site, "10.9.9.9")
    assert certificate(site, "ca.crt").serial_number != authority
    # a crash between the writes of key and certificate
    old = (site.secrets_dir / "tls-server.key").read_text()
    assert make(site, "10.9.9.8")
    (site.secrets_dir / "tls-server.key").write_text(old)
    assert make(site, "10.9.9.8")
    assert not make(site, "10.9.9.8")
    # they end soon
    monkeypatch.setattr(tls, "RENEW_BEFORE", timedelta(days=4000))
    assert make(site, "10.9.9.8")


def test_what_cannot_be_read_is_named(site: Site) -> None:
    make(site)
    (site.directory / "tls" / "server.crt").write_text("nonsense")
    with pytest.raises(SiteError, match=r"server\.crt .* cannot be used .*remove both"):
        make(site)
    (site.secrets_dir / "tls-ca.key").chmod(0o644)
    with pytest.raises(SiteError, match="chmod 600"):
        make(site)


def test_before_the_first_up_clients_say_what_is_missing(site: Site) -> None:
    with pytest.raises(SiteError, match=r"ca\.crt is missing: run 'balsam down', then"):
        site.redis_url()


def test_a_server_without_tls_is_named(tmp_path: Path) -> None:
    # a real one of that kind is in the wheel, which not every Python has
    server = tmp_path / "redis-server"
    server.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "Redis server v=6.2.5 sha=0" && exit 0\n'
        "echo 'Bad directive or wrong number of arguments' >&2; exit 1\n"
    )
    server.chmod(0o700)
    assert find_server(str(server)) == server
    with pytest.raises(SiteError, match=r"was built without TLS: install .*apt-get install redis"):
        find_server(str(server), tls=True)


def test_in_the_clear_needs_a_trusted_network(tmp_path: Path) -> None:
    site = set_keys(init(tmp_path / "plain"), "redis", host='"10.1.2.3"', tls="false")
    with pytest.raises(
        SiteError, match=r"'10\.1\.2\.3' leaves this machine in the clear: give tls"
    ):
        write_config(site)
    trusted = set_keys(site, "redis", trusted_network="true")
    assert "bind 10.1.2.3 127.0.0.1\nport " in write_config(trusted).read_text()
    everywhere = set_keys(trusted, "redis", bind='"0.0.0.0"')
    assert "bind 0.0.0.0\n" in write_config(everywhere).read_text()


def test_a_host_name_of_the_loopback_is_refused(tmp_path: Path) -> None:
    site = make_tls_site(tmp_path / "site")
    # "localhost" is meant, "ip6-localhost" and the like are a mistake of /etc/hosts
    for name, message in (("no-such-host.invalid", "is no address"), ("127.1", "where no other")):
        with pytest.raises(SiteError, match=message):
            prepare_redis(set_keys(site, "redis", host=f'"{name}"'), lambda line: None)


@pytest.fixture
def server(site: Site, tmp_path: Path) -> Iterator[list[str]]:
    """Redis of the site, with TLS; what was told while it was made ready."""
    need_tls()
    told: list[str] = []
    prepare_redis(site, told.append)
    with running(site, tmp_path / "redis.log"):
        wait_until(lambda: ping(site) == "", 20, "redis answers")
        yield told


@contextmanager
def running(site: Site, log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(server_command(site), stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def ping(site: Site) -> str:
    with redis_client(site, timeout=5.0) as client:
        return answers(client)


def by_redis(site: Site) -> None:
    with redis_client(site) as client:
        client.ping()


def by_kombu(site: Site) -> None:
    for app in (make_site_app(site), make_pilot_app(site)):
        with app, app.connection_for_write() as connection:
            connection.connect()
            connection.default_channel.client.ping()


def by_the_result_backend(site: Site) -> None:
    with make_site_app(site) as app:
        url, _ = split_checks(site.redis_url())
        RedisBackend(app=app, url=url).client.ping()


def by_flower(site: Site) -> None:
    with make_site_app(site) as app:
        broker = Broker(app.conf.broker_url, broker_use_ssl=app.conf.broker_use_ssl)
        asyncio.run(broker.queues(["service"]))


CLIENTS = [by_redis, by_kombu, by_the_result_backend, by_flower]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.usefixtures("server")
def test_clients_check_who_answers(
    site: Site, tmp_path: Path, client: Callable[[Site], None]
) -> None:
    client(site)
    # the same server, and a CA that did not sign its certificate
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    make_certificates(other, other, {"localhost"}, {address()})
    site.ca_certificate.write_bytes((other / "tls" / "ca.crt").read_bytes())
    with pytest.raises((redis.exceptions.ConnectionError, OSError), match="CERTIFICATE_VERIFY"):
        client(site)


@pytest.mark.parametrize("client", CLIENTS)
def test_clients_check_its_name(site: Site, tmp_path: Path, client: Callable[[Site], None]) -> None:
    need_tls()
    prepare_redis(site, lambda line: None)
    # a certificate of the right CA, that of another host
    there = set_keys(site, "redis", bind='"127.0.0.1 127.0.0.3"')
    url = site.redis_url().replace(f"@{address()}:", "@127.0.0.3:")
    with running(there, tmp_path / "redis.log"):
        wait_until(lambda: ping(site) == "", 20, "redis answers")
        with pytest.raises((redis.exceptions.ConnectionError, OSError), match=r"127\.0\.0\.3"):
            client(dataclasses.replace(site, told_redis_url=url))


@pytest.mark.usefixtures("server")
def test_nobody_gets_in_without_tls(site: Site) -> None:
    with (
        redis.Redis(address(), site.settings.redis.port, password=site.secret("redis")) as client,
        pytest.raises(redis.exceptions.ConnectionError),
    ):
        client.ping()
    with socket.create_connection((address(), site.settings.redis.port), timeout=10) as old:
        context = ssl.create_default_context(cafile=str(site.ca_certificate))
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # from Python 3.13 on the default
        with context.wrap_socket(old, server_hostname=address()) as secure:
            assert secure.version() in ("TLSv1.2", "TLSv1.3")
            # and TLS alone is not enough
            secure.sendall(b"PING\r\n")
            assert secure.recv(100).startswith(b"-NOAUTH")


def test_address_of_an_interface_is_told_to_other_hosts(tmp_path: Path) -> None:
    need_tls()
    site = set_keys(init(tmp_path / "site"), "redis", interface='"lo"', tls="true")
    with pytest.raises(SiteError, match=r"interface 'lo' is not known yet: run 'balsam up'"):
        site.redis_host()
    prepare_redis(site, lambda line: None)
    # a pilot's node has another address on its own interface: it reads what `up` wrote
    site.redis_address_file.write_text("10.1.2.3\n")
    assert "@10.1.2.3:" in site.redis_url()
    prepare_redis(site, lambda line: None)
    assert "@127.0.0.1:" in site.redis_url()
