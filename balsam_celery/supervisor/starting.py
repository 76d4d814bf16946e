"""``up``: start what is missing and return when all answer."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

from balsam_celery.durations import format_duration
from balsam_celery.errors import InvalidInput, SchemaError, SiteError
from balsam_celery.launchers import KINDS
from balsam_celery.launchers.template import Template
from balsam_celery.private import private_dir
from balsam_celery.schedulers import make_scheduler
from balsam_celery.site import Site, check_runs_here, connect_store, this_host
from balsam_celery.store import facts, migrate
from balsam_celery.supervisor import probes, records
from balsam_celery.supervisor.children import NAMES, SUPERVISOR, environment_for, names
from balsam_celery.supervisor.ending import end, sweep, wait_for
from balsam_celery.supervisor.locks import control_lock
from balsam_celery.supervisor.logs import log_path, open_log, rotate, tail
from balsam_celery.supervisor.network import prepare_redis
from balsam_celery.supervisor.stopping import end_daemon

log = logging.getLogger(__name__)

#: Receives one line for each step.
Progress = Callable[[str], None]
#: Ends soon after the start, in a row, after which ``up`` gives a process up.
GIVE_UP_AFTER = 3
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_POLL = 0.1
#: Seconds that a pilot takes to end, beside the graces of its programs.
_END_MARGIN = 2.0


def _silent(_message: str) -> None:
    """No progress is shown."""


def up(site: Site, progress: Progress = _silent, *, timeout: float = 120.0) -> None:
    """Start what the site needs and does not run yet; return when all answer.

    Harmless when all runs, and when another ``up`` runs at the same time. When a first start
    fails, what it started is stopped again.

    Args:
        site: the site.
        progress: called with one line for each step.
        timeout: seconds until everything must answer.

    Raises:
        SiteError: the site does not run here, Flower is wanted and not installed, or a process does
            not answer; names its log.
        SchemaError: the database's schema is newer than the package.
        StoreError: the database does not answer.
        InvalidInput: a setting that cannot be used.
    """
    check_runs_here(site)
    if site.settings.logs.level not in _LEVELS:
        raise InvalidInput(f"[logs] level is {site.settings.logs.level!r}: give one of {_LEVELS}")
    if site.settings.redis.url_env and site.settings.scheduler.kind != "local":
        raise InvalidInput(
            f"[redis] url_env is {site.settings.redis.url_env!r}, which no batch job is given:"
            " write the URL into a file (mode 0600), and name it in url_file"
        )
    if site.settings.flower.enabled and find_spec("flower") is None:
        raise SiteError(
            "[flower] enabled is true, and Flower is not installed: install the extra 'flower', or"
            " set it to false"
        )
    check_launchers(site)
    if warning := short_delay(site):
        progress(warning)
    for directory in (
        site.local_dir.parent, site.local_dir, site.pid_dir, site.log_dir, site.run_dir,
        site.secrets_dir,
    ):  # fmt: skip
        private_dir(directory)
    with control_lock(site, progress):
        record = records.read(site, SUPERVISOR)
        if record is not None and record.is_alive:
            check_schema(site)
            wait_until_all_answer(site, progress, timeout)
            return
        clear_earlier_life(site, progress)
        prepare_database(site, progress)
        if site.has_own_redis:
            prepare_redis(site, progress)
        check_ports(site)
        if not site.has_own_redis:
            wait_for_external_redis(site, timeout)
        try:
            start_daemon(site)
            wait_until_all_answer(site, progress, timeout)
        except BaseException:
            # Ctrl-C too: half a site is of no use, and its logs stay
            progress("stopping what was started")
            end_daemon(site)
            clear_earlier_life(site, _silent)
            raise


def check_launchers(site: Site) -> None:
    """Refuse a launcher that no allocation could use; whether its program is there, jobs tell.

    Raises:
        InvalidInput: a kind that there is none of.
        SettingsError: a template that cannot be used.
    """
    settings = site.settings
    wanted = {"[launcher] kind": settings.launcher.kind}
    if settings.pilot.launcher:
        wanted["[pilot] launcher"] = settings.pilot.launcher
    known = ("auto", *KINDS)
    for key, kind in wanted.items():
        if kind not in known:
            raise InvalidInput(f"{key} is {kind!r}: give one of {', '.join(known)}")
    # a template may be what an application asks for
    if settings.launcher.template or "template" in wanted.values():
        Template(settings.launcher.template)


def short_delay(site: Site) -> str:
    """One line if the scheduler may kill a pilot before its programs have ended; else empty."""
    settings = site.settings
    kind = settings.scheduler.kind
    delay = make_scheduler(kind, settings=settings, local_dir=site.local_dir).kill_delay
    # a grace for the programs, and one for what they have left
    if delay is None or 2 * settings.site.kill_grace + _END_MARGIN <= delay[0]:
        return ""
    grace = format_duration(settings.site.kill_grace)
    return (
        f"[site] kill_grace of {grace} is long for {kind}, which"
        f" kills a cancelled job {delay[0]:.0f} s after TERM unless its {delay[1]} says otherwise:"
        " what is cut off then comes back minutes later"
    )


def clear_earlier_life(site: Site, progress: Progress) -> None:
    """End what a daemon that is gone has left, and remove its pid files; allocations live on."""
    # Redis last: the workers take their leave from it
    others = [name for name in NAMES if name != "redis"]
    for name in (*end(site, *others), *end(site, "redis")):
        progress(f"ended the {name} of an earlier life")
    sweep(site)
    records.remove(site, SUPERVISOR)


def prepare_database(site: Site, progress: Progress) -> None:
    """Make the database, or upgrade an older one after a backup; remember whose it is.

    Raises:
        SchemaError: its schema is newer than the package.
        SiteError: it is another site's.
        StoreError: it does not answer.
    """
    url = site.database_url()
    before = migrate.current(url)
    backup = migrate.upgrade(url, site.local_dir / "backups")
    if before is not None and before != migrate.HEAD:
        place = f"; backup: {backup}" if backup else " without a backup: no pg_dump here"
        progress(f"database upgraded from {before} to {migrate.HEAD}{place}")
    if site.uses_sqlite:
        site.database_path.chmod(0o600)
    store = connect_store(site)
    try:
        with store.write() as conn:
            owner = facts.recall(conn, "id")
            if owner is not None and owner != site.settings.site.id:
                raise SiteError(
                    f"the database of {site.directory} is another site's ({owner}):"
                    " change [database] in site.toml"
                )
            facts.remember(conn, "id", site.settings.site.id)
            facts.remember(conn, "host", this_host())
    finally:
        store.close()


def check_schema(site: Site) -> None:
    """Refuse to go on with processes of an older release of the package.

    Raises:
        SchemaError: the schema is not this package's, while the site runs.
    """
    found = migrate.current(site.database_url())
    if found in migrate.REVISIONS and found != migrate.HEAD:
        raise SchemaError(
            f"the site {site.directory} runs on schema {found}, this package needs {migrate.HEAD}:"
            " run 'balsam down', then 'balsam up', which makes a backup and upgrades"
        )
    connect_store(site).close()


def check_ports(site: Site) -> None:
    """Refuse to start where another program listens already.

    Raises:
        SiteError: names the port and the key to change.
    """
    wanted = []
    if site.has_own_redis:
        wanted.append(("redis", site.redis_host(), site.settings.redis.port))
    if site.settings.flower.enabled:
        wanted.append(("flower", site.settings.flower.host, site.settings.flower.port))
    for table, host, port in wanted:
        if not 0 < port < 65536:
            raise InvalidInput(f"[{table}] port is {port}: give a free port from 1024 to 65535")
        if probes.port_is_taken(host, port):
            raise SiteError(
                f"port {port} is taken by another program: change [{table}] port in"
                f" {site.directory / 'site.toml'}"
            )


def wait_for_external_redis(site: Site, timeout: float) -> None:
    """Wait for a Redis that is not the site's own, before anything is started.

    Raises:
        SiteError: it does not answer in ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while trouble := probes.probe_redis(site):
        if time.monotonic() > deadline:
            raise SiteError(f"the Redis server that [redis] names does not answer: {trouble}")
        time.sleep(_POLL)


def start_daemon(site: Site) -> None:
    """Start the daemon and wait until it holds its pid file.

    Raises:
        SiteError: it ended at once; names its log.
    """
    path = log_path(site, SUPERVISOR)
    rotate(path, site.settings.logs.max_bytes, site.settings.logs.backups)
    descriptor = open_log(path)
    with open(descriptor, "ab") as output:  # noqa: PTH123 - a descriptor, not a path
        done = subprocess.run(
            [
                sys.executable, "-P", "-m", "balsam_celery.supervisor.daemon",
                "--site", str(site.directory),
            ],
            env=environment_for(site, SUPERVISOR), cwd=site.local_dir, stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True, check=False,
        )  # fmt: skip

    def registered() -> bool:
        record = records.read(site, SUPERVISOR)
        return record is not None and record.is_alive

    if done.returncode != 0 or not wait_for(registered, 20.0):
        raise SiteError(f"the supervisor does not start ({tail(path, 1)}): see {path}")


def wait_until_all_answer(site: Site, progress: Progress, timeout: float) -> None:
    """Wait until every process of the site answers.

    Raises:
        SiteError: one does not stay up, or does not answer in ``timeout`` seconds; names its log.
    """
    waiting = list(names(site))
    deadline = time.monotonic() + timeout
    while waiting:
        for name, reason in _look(site, waiting).items():
            if not reason:
                waiting.remove(name)
                progress(f"{name} answers")
            else:
                _check_life(site, name, reason, late=time.monotonic() > deadline)
        if waiting:
            time.sleep(_POLL)


def _look(site: Site, waiting: list[str]) -> dict[str, str]:
    if "redis" in waiting:
        return {"redis": probes.probe_redis(site)}
    reasons = probes.probe_workers(site, [name for name in waiting if name in probes.WORKERS])
    if "beat" in waiting:
        record = records.read(site, "beat")
        pid = record.process.pid if record is not None and record.process is not None else None
        reasons["beat"] = probes.probe_beat(site, pid) if pid else "it does not run yet"
    if "flower" in waiting:
        reasons["flower"] = probes.probe_flower(site)
    return reasons


def _check_life(site: Site, name: str, reason: str, *, late: bool) -> None:
    supervisor = records.read(site, SUPERVISOR)
    if supervisor is None or not supervisor.is_alive:
        path = log_path(site, SUPERVISOR)
        raise SiteError(f"the supervisor has ended ({tail(path, 1)}): see {path}")
    record = records.read(site, name)
    path = log_path(site, name)
    if record is not None and record.failures >= GIVE_UP_AFTER:
        raise SiteError(
            f"{name} does not stay up ({record.last_exit}; {tail(path, 1)}): see {path}"
        )
    if late:
        raise SiteError(f"{name} does not answer ({reason}): see {path}")
