"""Where Redis is: URLs and this machine's addresses."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from pathlib import Path

import pytest
import redis

from balsam_celery.errors import SiteError
from balsam_celery.redisaddress import (
    celery_settings,
    checked_url,
    default_interfaces,
    find_address,
    is_loopback,
    own_url,
    split_checks,
)

#: /proc/net/route of a login node with two default routes, and one network of its own.
ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
ib0\t0000000A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eno2\t00000000\t0101A8C0\t0003\t0\t0\t200\t00000000\t0\t0\t0
eno1\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
"""


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.0.0.2", True), ("::1", True), ("10.0.0.1", False), ("n1", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_default_routes_the_preferred_first() -> None:
    assert default_interfaces(ROUTES) == ["eno1", "eno2"]
    assert default_interfaces("") == []


def test_address_of_an_interface() -> None:
    assert find_address("lo") == "127.0.0.1"
    with pytest.raises(SiteError, match=r"interface 'ib7' has no IPv4 address .*this machine has"):
        find_address("ib7")
    with pytest.raises(SiteError, match="none of this machine's"):
        find_address("an-interface-of-a-long-name")


def test_address_of_this_machine_can_be_listened_at() -> None:
    try:
        address = find_address()
    except SiteError as error:
        assert "give the address in [redis] host" in str(error)
        return
    assert not ipaddress.ip_address(address).is_loopback
    with socket.create_server((address, 0)) as server:
        assert server.getsockname()[0] == address


def test_url_of_the_sites_own_server() -> None:
    assert own_url("127.0.0.1", 7000, "a/b@c", None) == "redis://:a%2Fb%40c@127.0.0.1:7000/0"
    url = own_url("10.0.0.1", 7000, "pw", Path("/sites/my %41 site/ca.crt"))
    plain, checks = split_checks(url)
    assert plain == "rediss://:pw@10.0.0.1:7000/0"
    assert checks == {
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
        "ssl_check_hostname": True,
        "ssl_ca_certs": "/sites/my %41 site/ca.crt",
    }
    with redis.Redis.from_url(url) as client:
        known = client.connection_pool.connection_kwargs
        assert known["ssl_ca_certs"] == "/sites/my %41 site/ca.crt"
        assert (known["ssl_cert_reqs"], known["ssl_check_hostname"]) == ("required", True)
    with redis.Redis.from_url(own_url("fe80::1", 7000, "pw", None)) as client:
        assert client.connection_pool.connection_kwargs["host"] == "fe80::1"


def test_celery_checks_the_certificate_too() -> None:
    url = "rediss://:pw@redis.example:6379/2?ssl_cert_reqs=required&ssl_ca_certs=%2Fca"
    expected = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/ca"}
    assert celery_settings(url) == {
        "broker_url": url,
        "broker_use_ssl": expected,
        "redis_backend_use_ssl": expected,
    }
    plain = celery_settings("redis://:pw@127.0.0.1:6379/0")
    assert not plain["broker_use_ssl"]
    assert not plain["redis_backend_use_ssl"]


@pytest.mark.parametrize(
    ("url", "trusted", "expected"),
    [
        ("redis://:pw@localhost:1/0", False, "redis://:pw@localhost:1/0"),
        ("redis://:pw@10.0.0.1:1/0", True, "redis://:pw@10.0.0.1:1/0"),
        ("rediss://:pw@r:1/0", False, "rediss://:pw@r:1/0?ssl_cert_reqs=required"),
        (
            "rediss://:pw@r:1/0?ssl_ca_certs=/my/ca&ssl_cert_reqs=CERT_REQUIRED",
            False,
            "rediss://:pw@r:1/0?ssl_ca_certs=%2Fmy%2Fca&ssl_cert_reqs=required",
        ),
        (
            "rediss://:pw@r:1/0?ssl_cert_reqs=none",
            True,
            "rediss://:pw@r:1/0?ssl_cert_reqs=none",
        ),
    ],
)
def test_urls_that_can_be_used(url: str, trusted: bool, expected: str) -> None:
    assert checked_url(url, trusted=trusted) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://127.0.0.1:6379/0", "has no password"),
        ("redis://:geheim@10.0.0.1:6379/0", "leaves this machine .* trusted_network"),
        ("rediss://:geheim@r:6379/0?ssl_cert_reqs=none", "anybody could answer"),
        ("rediss://:geheim@r:6379/0?ssl_cert_reqs=some", "anybody could answer"),
        ("http://:geheim@127.0.0.1/", "is not 'redis://"),
        ("redis://:geheim@127.0.0.1:geheim/0", "is not 'redis://"),
        ("redis://:geheim/@127.0.0.1:1/0", "is not 'redis://"),
        ("redis://:geheim@[::1/0", "is not 'redis://"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(SiteError, match=message) as raised:
        checked_url(url, trusted=False)
    assert "geheim" not in str(raised.value)
    assert raised.value.__cause__ is None
