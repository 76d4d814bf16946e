"""A site: its directory, settings, places on disk and secrets.

The site directory (0700, perhaps on a file system shared with the compute nodes) holds
``site.toml``, ``secrets/``, ``logs/`` and, by default, the run directories. What must not lie on a
network file system (SQLite, Redis files, pid files) lies in :attr:`Site.local_dir` on the login
node that runs the site, whose name the settings keep.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import re
import secrets
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from balsam_celery import schedulers
from balsam_celery.errors import InvalidInput, SiteError
from balsam_celery.private import private_dir, read_secret, write_private
from balsam_celery.settings import LocalSettings, Settings, load

if TYPE_CHECKING:
    from balsam_celery.store.engine import Store

SITE_FILE = "site.toml"
#: Environment variable that names the site's directory.
SITE_VARIABLE = "BALSAM_SITE"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HEADER = re.compile(r"\[([A-Za-z0-9_.-]+)\]")
_KEY = re.compile(r"([a-z_]+) = (?:\"[^\"]*\"|\[\]|[^#\s]+)\s*(#.*)?$")


@dataclass(frozen=True, slots=True)
class Site:
    """One site, as found on disk.

    Attributes:
        directory: absolute path of the site directory.
        settings: its ``site.toml``.
        local_dir: on the login node's own disk: database, Redis files, pid files.
    """

    directory: Path
    settings: Settings
    local_dir: Path

    @property
    def run_dir(self) -> Path:
        """Work directories, outboxes and pilot logs; shared with the compute nodes."""
        return self.directory / self.settings.site.run_dir

    @property
    def log_dir(self) -> Path:
        """Logs of the processes on the login node."""
        return self.directory / "logs"

    @property
    def pid_dir(self) -> Path:
        """Pid files of the processes on the login node."""
        return self.local_dir / "pids"

    @property
    def secrets_dir(self) -> Path:
        """Credentials, one file (0600) each."""
        return self.directory / "secrets"

    @property
    def has_own_redis(self) -> bool:
        """The site runs a Redis server of its own."""
        return not (self.settings.redis.url_file or self.settings.redis.url_env)

    @property
    def uses_sqlite(self) -> bool:
        """The database is a SQLite file."""
        return not (self.settings.database.url_file or self.settings.database.url_env)

    @property
    def database_path(self) -> Path:
        """The SQLite file (when :attr:`uses_sqlite`)."""
        return self.directory / (self.settings.database.path or self.local_dir / "balsam.db")

    def database_url(self) -> str:
        """SQLAlchemy URL of the database; may hold a password: never print it.

        Raises:
            SiteError: the configured file or variable cannot be used.
        """
        settings = self.settings.database
        if self.uses_sqlite:
            return f"sqlite:///{self.database_path}"
        url = self._configured_url("database", settings.url_file, settings.url_env)
        scheme, separator, rest = url.partition("://")
        if scheme not in ("postgresql", "postgres", "postgresql+psycopg") or not separator:
            raise SiteError(
                "the URL of [database] does not start with 'postgresql://':"
                " give one, or leave url_file and url_env empty for SQLite"
            )
        return f"postgresql+psycopg://{rest}"

    def redis_url(self) -> str:
        """URL of Redis with its password: never print it.

        Raises:
            SiteError: the secret or the configured file or variable cannot be used.
        """
        settings = self.settings.redis
        if self.has_own_redis:
            password = quote(self.secret("redis"), safe="")
            return f"redis://:{password}@{settings.host}:{settings.port}/0"
        url = self._configured_url("redis", settings.url_file, settings.url_env)
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss") or not parts.hostname:
            raise SiteError("the URL of [redis] is not 'redis://…' or 'rediss://…'")
        if not parts.password:
            raise SiteError(
                "the URL of [redis] has no password: give redis://:PASSWORD@HOST:PORT/0"
            )
        if parts.scheme == "redis" and not is_loopback(parts.hostname):
            raise SiteError(
                f"the URL of [redis] leaves this machine ({parts.hostname}) in the clear:"
                " give a rediss:// URL"
            )
        if parts.scheme == "rediss" and "ssl_cert_reqs" not in parts.query:
            # kombu would not check the server's certificate unless told to
            url += f"{'&' if parts.query else '?'}ssl_cert_reqs=required"
        return url

    def secret(self, name: str) -> str:
        """The secret of that name.

        Raises:
            SiteError: it is missing, not ours, or open to others.
        """
        return read_secret(self.secrets_dir / name)

    def _configured_url(self, table: str, url_file: str, url_env: str) -> str:
        if url_file:
            return read_secret(self.directory / Path(url_file).expanduser())
        url = os.environ.get(url_env, "").strip()
        if not url:
            raise SiteError(
                f"[{table}] url_env names {url_env!r}, which is not set: export {url_env}=URL"
            )
        return url


def is_loopback(host: str) -> bool:
    """``host`` is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def config_file(name: str) -> Path:
    """A file of ``config/``: in the installed package, or beside the package in a source tree."""
    package = Path(__file__).resolve().parent
    for directory in (package / "config", package.parent / "config"):
        if (directory / name).is_file():
            return directory / name
    raise SiteError(f"config/{name} is missing: install balsam_celery again")


def find(start: Path | None = None, environ: Mapping[str, str] | None = None) -> Site:
    """The site that ``start``, ``BALSAM_SITE`` or the working directory names.

    Args:
        start: a site directory; ``None``: ``BALSAM_SITE``, else the working directory and its
            parents.
        environ: the environment; ``None``: of this process.

    Raises:
        SiteError: there is none, or it is another user's, or open to others.
        SettingsError: its ``site.toml`` cannot be used.
    """
    named = start or (os.environ if environ is None else environ).get(SITE_VARIABLE)
    if named:
        directory = Path(named).expanduser().absolute()
        if not (directory / SITE_FILE).is_file():
            origin = "" if start else f"{SITE_VARIABLE} names "
            raise SiteError(f"{origin}{directory}, which is no site: make one by 'balsam init'")
        return _open(directory)
    here = Path.cwd()
    for directory in (here, *here.parents):
        if (directory / SITE_FILE).is_file():
            return _open(directory)
    raise SiteError(
        f"no site in {here} or above: make one by 'balsam init DIR' or export {SITE_VARIABLE}=DIR"
    )


def _open(directory: Path) -> Site:
    status = directory.stat()
    if status.st_uid != os.geteuid():
        raise SiteError(f"the site {directory} belongs to user {status.st_uid}: make your own")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise SiteError(f"the site {directory} is open to others ({mode:04o}): chmod 700 it")
    settings = load(directory / SITE_FILE)
    if not settings.site.id:
        raise SiteError(f"{directory / SITE_FILE}: [site] id is empty: run 'balsam init' instead")
    local_dir = (
        Path(settings.site.local_dir)
        if settings.site.local_dir
        else default_local_dir(settings.site.name, settings.site.id)
    )
    return Site(directory, settings, local_dir)


def default_local_dir(name: str, site_id: str, environ: Mapping[str, str] | None = None) -> Path:
    """Where a site's local files go: the state directory, or /var/tmp when that is on a network."""
    # pilots import this module, and never load the store (R2)
    from balsam_celery.store.filesystems import network_file_system

    environ = os.environ if environ is None else environ
    leaf = f"{name}-{site_id}"
    state = Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    if state.is_absolute() and network_file_system(state) is None:
        return state / "balsam" / leaf
    return Path("/var/tmp") / f"balsam-{os.geteuid()}" / leaf  # noqa: S108 - checked by private_dir


def init(
    directory: Path,
    *,
    name: str | None = None,
    local: LocalSettings | None = None,
    scheduler: str = "local",
) -> Site:
    """Make a site.

    Args:
        directory: made (0700) when missing; a non-empty one must be closed to others already.
        name: for people; ``None``: the directory's name.
        local: virtual nodes; ``None``: this machine's cores as two nodes.
        scheduler: kind of scheduler.

    Raises:
        SiteError: it is a site already, or the directory cannot be used.
        InvalidInput: a value that cannot be used.
    """
    directory = directory.expanduser().absolute()
    if (directory / SITE_FILE).exists():
        raise SiteError(f"{directory} is a site already: remove it, or name another directory")
    name = name if name is not None else (directory.name or "site")
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"the site's name is {name!r}: give letters, digits, '-', '_' and '.' (--name NAME)"
        )
    if scheduler not in schedulers.kinds():
        known = ", ".join(schedulers.kinds())
        raise InvalidInput(f"the scheduler is {scheduler!r}: give one of {known}")
    local = local or _this_machine()
    for key, least in (("nodes", 1), ("cores_per_node", 1), ("gpus_per_node", 0)):
        if getattr(local, key) < least:
            raise InvalidInput(f"local.{key} is {getattr(local, key)}: give {least} or more")
    _own_directory(directory)
    site_id = secrets.token_hex(4)
    local_dir = default_local_dir(name, site_id)
    text = _with_values(
        config_file("site.example.toml").read_text(encoding="utf-8"),
        {
            ("site", "name"): name,
            ("site", "id"): site_id,
            ("site", "host"): this_host(),
            ("site", "local_dir"): str(local_dir),
            ("redis", "port"): free_port(),
            ("flower", "port"): free_port(),
            ("scheduler", "kind"): scheduler,
            ("queues.local", "max_nodes"): local.nodes,
            **{("local", key): value for key, value in dataclasses.asdict(local).items()},
        },
    )
    for path in (local_dir.parent, local_dir, directory / "secrets", directory / "logs"):
        private_dir(path)
    for secret in ("redis", "flower"):
        write_private(directory / "secrets" / secret, secrets.token_urlsafe(32) + "\n")
    # last, so that a directory is a site only when all else is there
    write_private(directory / SITE_FILE, text)
    return find(directory)


def _this_machine() -> LocalSettings:
    cores = len(os.sched_getaffinity(0))
    nodes = min(2, cores)
    return LocalSettings(nodes=nodes, cores_per_node=cores // nodes)


def _own_directory(directory: Path) -> None:
    ours = directory.is_dir() and directory.stat().st_uid == os.geteuid()
    # never close a directory that others may be using, such as /tmp for root
    if ours and not any(directory.iterdir()):
        directory.chmod(0o700)
    private_dir(directory)


def _with_values(text: str, values: Mapping[tuple[str, str], str | int]) -> str:
    """The TOML ``text`` with the values of some keys replaced; comments stay."""
    left = dict(values)
    table, lines = "", []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            table = header.group(1)
        elif (match := _KEY.match(line)) and (table, match.group(1)) in left:
            value = left.pop((table, match.group(1)))
            # a JSON string of this kind is a TOML basic string too
            line = f"{match.group(1)} = {json.dumps(value, ensure_ascii=False)}"
            if comment := match.group(2):
                line = f"{line:<25}  {comment}"
        lines.append(line)
    if left:
        raise SiteError(f"config/site.example.toml has no {min(left)}: install balsam_celery again")
    return "\n".join(lines) + "\n"


def free_port() -> int:
    """A port that nobody listens on now, outside the range that outgoing connections take."""
    for _ in range(200):
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise SiteError("no free TCP port from 20000 to 32000 on 127.0.0.1")


def this_host() -> str:
    """Name of this machine, as the settings keep it."""
    return socket.gethostname()


def check_host(site: Site) -> None:
    """Refuse to act on a site whose processes and files are on another login node.

    Raises:
        SiteError: names the host where the site runs.
    """
    host = site.settings.site.host
    if host and host != this_host() and (site.uses_sqlite or site.has_own_redis):
        raise SiteError(
            f"the site {site.directory} runs on {host}, and this is {this_host()}: log in there"
            f" (after a move of the machine: set [site] host in {site.directory / SITE_FILE})"
        )


def connect_store(site: Site) -> Store:
    """Open the site's database.

    Raises:
        SiteError: it is not on this host, does not exist yet, or belongs to another site.
        SchemaError: its schema is older or newer than the package.
    """
    # pilots import this module, and never load SQLAlchemy (R2)
    from balsam_celery.store.engine import Store

    check_host(site)
    if site.uses_sqlite and not site.database_path.exists():
        raise SiteError(f"the site {site.directory} has no database yet: run 'balsam up'")
    return Store.open(site.database_url())
