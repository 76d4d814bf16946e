"""A site: its directory, settings, places on disk and secrets.

The site directory (0700, perhaps on a file system shared with the compute nodes) holds
``site.toml``, ``secrets/``, ``logs/`` and, by default, the run directories. What must not lie on a
network file system (SQLite, Redis files, pid files) lies in :attr:`Site.local_dir` on the login
node that runs the site, whose name the settings keep.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from balsam_celery.errors import SiteError
from balsam_celery.private import read_secret
from balsam_celery.redisaddress import (
    CA_CERTIFICATE,
    TLS_DIR,
    checked_url,
    is_loopback,
    own_url,
)
from balsam_celery.settings import Settings, load

if TYPE_CHECKING:
    from balsam_celery.store.engine import Store

SITE_FILE = "site.toml"
#: Environment variable that names the site's directory.
SITE_VARIABLE = "BALSAM_SITE"


@dataclass(frozen=True, slots=True)
class Site:
    """One site, as found on disk.

    Attributes:
        directory: absolute path of the site directory.
        settings: its ``site.toml``.
        local_dir: on the login node's own disk: database, Redis files, pid files.
        told_redis_url: URL of Redis, with its password, where this process was told it and has no
            need to look it up (a pilot's nodes); ``""``: it is looked up.
    """

    directory: Path
    settings: Settings
    local_dir: Path
    told_redis_url: str = field(default="", repr=False)

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
            return f"sqlite:///{quote(str(self.database_path))}"
        url = self._configured_url("database", settings.url_file, settings.url_env)
        scheme, separator, rest = url.partition("://")
        if scheme not in ("postgresql", "postgres", "postgresql+psycopg") or not separator:
            raise SiteError(
                "the URL of [database] does not start with 'postgresql://':"
                " give one, or leave url_file and url_env empty for SQLite"
            )
        return f"postgresql+psycopg://{rest}"

    @property
    def ca_certificate(self) -> Path:
        """What clients check the certificate of the site's own Redis by; no secret."""
        return self.directory / TLS_DIR / CA_CERTIFICATE

    @property
    def redis_address_file(self) -> Path:
        """The address of ``[redis] interface``, which ``up`` writes for those on other hosts."""
        return self.directory / "redis.address"

    def redis_host(self) -> str:
        """Address of the site's own Redis, for all its clients.

        Raises:
            SiteError: it is that of a network interface, and the site has not been up yet.
        """
        if not self.settings.redis.interface:
            return self.settings.redis.host
        try:
            return self.redis_address_file.read_text(encoding="ascii").strip()
        except OSError:
            raise SiteError(
                f"the address of [redis] interface {self.settings.redis.interface!r} is not known"
                " yet: run 'balsam up'"
            ) from None

    def redis_url(self) -> str:
        """URL of Redis with its password: never print it.

        Raises:
            SiteError: the secret or the configured file or variable cannot be used.
        """
        if self.told_redis_url:
            return self.told_redis_url
        settings = self.settings.redis
        if self.has_own_redis:
            ca = self.ca_certificate if settings.tls else None
            if ca is not None and not ca.exists():
                raise SiteError(f"{ca} is missing: run 'balsam down', then 'balsam up', to make it")
            return own_url(self.redis_host(), settings.port, self.secret("redis"), ca)
        url = self._configured_url("redis", settings.url_file, settings.url_env)
        return checked_url(url, trusted=settings.trusted_network)

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


def this_host() -> str:
    """Name of this machine, as the settings keep it."""
    return socket.gethostname()


def check_host(site: Site) -> None:
    """Refuse to act where the site's database or Redis cannot be reached.

    Raises:
        SiteError: names the host where the site runs.
    """
    redis = site.settings.redis
    loopback = site.has_own_redis and not redis.interface and is_loopback(redis.host)
    if site.uses_sqlite or loopback:
        check_runs_here(site)


def check_runs_here(site: Site) -> None:
    """Refuse to start, stop or look at processes that are another login node's.

    Raises:
        SiteError: names the host where the site runs.
    """
    host = site.settings.site.host
    if host and host != this_host():
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
