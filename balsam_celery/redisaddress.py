"""Where Redis is: its URL, how clients check who answers there, and this machine's addresses.

A URL holds the password: never print it. For TLS it also says, as redis-py's own URLs do, which CA
must have signed the server's certificate (``ssl_ca_certs``), so that one string is all that a
client needs.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import ssl
import struct
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from balsam_celery.errors import SiteError

#: Below the site directory, for certificates of the site's own Redis; no secret.
TLS_DIR = "tls"
#: In there: what clients check the server by, and what the server shows.
CA_CERTIFICATE, SERVER_CERTIFICATE = "ca.crt", "server.crt"
#: The server's key, among the site's secrets.
SERVER_KEY = "tls-server.key"
#: Linux' table of routes; its columns are those of route(8), addresses in hexadecimal.
ROUTES = Path("/proc/net/route")
#: ioctl that gives an interface's IPv4 address: netdevice(7).
_SIOCGIFADDR = 0x8915
_MEND = "give the address in [redis] host, or another interface"


def is_loopback(host: str) -> bool:
    """``host`` is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def own_url(host: str, port: int, password: str, ca: Path | None) -> str:
    """URL of the site's own server.

    Args:
        ca: certificate of the CA that signed the server's; ``None``: without TLS.
    """
    login = f":{quote(password, safe='')}@{f'[{host}]' if ':' in host else host}:{port}/0"
    if ca is None:
        return f"redis://{login}"
    checks = {"ssl_cert_reqs": "required", "ssl_check_hostname": "true", "ssl_ca_certs": str(ca)}
    return f"rediss://{login}?{urlencode(checks, quote_via=quote)}"


def checked_url(url: str, *, trusted: bool) -> str:
    """A URL that the user gave, with what makes clients check the server's certificate.

    Args:
        trusted: the network is; the password may pass it in the clear.

    Raises:
        SiteError: it cannot be used, or is not safe (R11); shows no password.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("redis", "rediss") and parts.port != 0
    except ValueError:
        usable = False  # its text is not shown: it may hold the password
    if not usable or not parts.hostname:
        raise SiteError("the URL of [redis] is not 'redis://…' or 'rediss://…'")
    if not parts.password:
        raise SiteError("the URL of [redis] has no password: give redis://:PASSWORD@HOST:PORT/0")
    if parts.scheme == "redis" and not trusted and not is_loopback(parts.hostname):
        raise SiteError(
            f"the URL of [redis] leaves this machine ({parts.hostname}) in the clear: give a"
            " rediss:// URL, or trusted_network = true where nobody can listen"
        )
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme == "rediss":
        # kombu would not check the server's certificate unless told to
        checks = query.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
        if checks != "required" and not (trusted and checks in ("optional", "none")):
            raise SiteError(
                "the URL of [redis] has an ssl_cert_reqs other than 'required', so that anybody"
                " could answer: leave it out, or give 'none' and trusted_network = true"
            )
        query["ssl_cert_reqs"] = checks
    return urlunsplit(parts._replace(query=urlencode(query, quote_via=quote)))


def split_checks(url: str) -> tuple[str, dict[str, Any]]:
    """A URL without its checks of TLS, and those, as redis-py's connections take them."""
    parts = urlsplit(url)
    rest: dict[str, str] = {}
    checks: dict[str, Any] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key == "ssl_cert_reqs":
            checks[key] = ssl.VerifyMode[f"CERT_{value.upper()}"]
        elif key == "ssl_check_hostname":
            checks[key] = value.lower() != "false"
        elif key.startswith("ssl_"):
            checks[key] = value
        else:
            rest[key] = value
    return urlunsplit(parts._replace(query=urlencode(rest, quote_via=quote))), checks


def celery_settings(url: str) -> dict[str, Any]:
    """Celery's settings for the broker at ``url``, and for results there.

    Kombu takes the checks of TLS from the URL; Flower and the result backend look here.
    """
    checks = split_checks(url)[1]
    return {
        "broker_url": url,
        "broker_use_ssl": checks or False,
        "redis_backend_use_ssl": checks or None,
    }


def find_address(interface: str = "") -> str:
    """An IPv4 address of this machine that others can reach.

    Args:
        interface: the network interface that has it, such as ``ib0``; ``""``: the one of the
            default route, else the address that the host name stands for.

    Raises:
        SiteError: there is none.
    """
    if interface:
        return _address_of(interface)
    for name in default_interfaces(_routes()):
        return _address_of(name)
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "127.0.0.1"
    if is_loopback(address):
        raise SiteError(f"no network address of {name} is found: {_MEND}")
    return address


def default_interfaces(routes: str) -> list[str]:
    """Interfaces of the default routes in the text of ``/proc/net/route``, the preferred first."""
    found = []
    for line in routes.splitlines()[1:]:
        name, destination, _gateway, _flags, _refs, _use, metric, mask = line.split()[:8]
        if int(destination, 16) == 0 and int(mask, 16) == 0:
            found.append((int(metric), name))
    return [name for _, name in sorted(found)]


def _routes() -> str:
    return ROUTES.read_text(encoding="ascii") if ROUTES.exists() else ""


def _address_of(interface: str) -> str:
    name = interface.encode()
    if len(name) > 15:  # IFNAMSIZ, less its zero
        raise SiteError(f"[redis] interface {interface!r} is none of this machine's: {_MEND}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            # struct ifreq: the name, then a sockaddr_in whose address begins at byte 20
            answer = fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("256s", name))
        except OSError as error:
            known = ", ".join(sorted(name for _, name in socket.if_nameindex()))
            raise SiteError(
                f"[redis] interface {interface!r} has no IPv4 address ({error.strerror}): this"
                f" machine has {known}; {_MEND}"
            ) from None
    return socket.inet_ntoa(answer[20:24])
