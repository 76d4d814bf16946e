"""``site.toml``: its sections as frozen values, checked strictly.

Each class below is a table of the file and each attribute a key; ``config/site.example.toml`` shows
them all with comments. An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from balsam_celery.amounts import counts_of
from balsam_celery.cutoff import over_after
from balsam_celery.durations import parse_duration, parse_pause
from balsam_celery.errors import InvalidInput, SettingsError
from balsam_celery.retrying import checked

#: An account or project: one word, no option.
_ACCOUNT = re.compile(r"([^\W_][\w.:@/+-]*)?")
#: Marks a key given as a duration ("10m"); its value is in seconds.
Seconds = typing.Annotated[int, "seconds"]
#: The same, which may be 0.
Pause = typing.Annotated[int, "seconds, or none"]


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """``[site]``."""

    name: str = "site"
    id: str = ""  # made by ``balsam init``; part of every key in Redis
    host: str = ""  # login node that runs the site; written by ``balsam init``
    local_dir: str = ""  # on that node's own disk; written by ``balsam init``
    run_dir: str = "run"  # relative to the site directory; shared with the compute nodes
    default_wall_time: Seconds = 3600
    kill_grace: Seconds = 5


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """``[database]``: SQLite at ``path`` unless a URL is given by file or environment."""

    path: str = ""  # "" : <local directory>/balsam.db
    url_file: str = ""  # file (0600) that holds a PostgreSQL URL
    url_env: str = ""  # environment variable that holds it


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """``[redis]``: a server of the site's own unless ``url_file`` or ``url_env`` names one."""

    host: str = "127.0.0.1"  # address that workers and pilots use
    interface: str = ""  # or the network interface whose address that is, such as "ib0"
    bind: str = "127.0.0.1"  # addresses the site's own server listens on, beside ``host``
    port: int = 0  # 0: chosen by ``balsam init`` and written here
    tls: bool = False  # certificates in ``tls/``; made by ``balsam init --tls``
    trusted_network: bool = False  # without TLS: let the server be reached in the clear
    server: str = ""  # path of redis-server; "": an installed one, else the wheel's
    url_file: str = ""
    url_env: str = ""


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """``[local]``: virtual nodes of the local scheduler."""

    nodes: int = 2
    cores_per_node: int = 1
    gpus_per_node: int = 0  # pretended
    memory_per_node: int = 0  # bytes; 0: not accounted
    resources_per_node: dict[str, int] = field(default_factory=dict)  # what the site counts itself


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """``[queues.NAME]``: a queue or partition that packing may use, with its limits."""

    min_nodes: int = 1
    max_nodes: int = 1
    min_wall_time: Seconds = 60
    max_wall_time: Seconds = 3600
    max_queued: int = 5
    max_running: int = 5
    cores_per_node: int = 0  # must be given; of the local scheduler, ``[local]`` says it
    gpus_per_node: int = 0
    memory_per_node: int = 0  # bytes; 0: not accounted
    resources_per_node: dict[str, int] = field(default_factory=dict)  # what the site counts itself
    account: str = ""  # or project, that its allocations are charged to
    directives: tuple[str, ...] = ()  # added to those of ``[scheduler]`` for this queue


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """``[scheduler]``."""

    kind: str = "local"
    poll_interval: Seconds = 2
    command_timeout: Seconds = 30
    directives: tuple[str, ...] = ()  # options in each batch script, such as "--account=abc"
    setup: tuple[str, ...] = ()  # shell lines before the pilot: modules, conda, containers
    template: str = ""  # Jinja template of the batch script; "": the one of the kind
    executor: str = ""  # of PSI/J, for the kind "psij": "lsf", "flux", "cobalt", …


@dataclass(frozen=True, slots=True)
class PackingSettings:
    """``[packing]``."""

    interval: Seconds = 2
    max_allocations: int = 10  # queued and running together, over all queues
    efficiency: float = 0.8  # share of the node time charged that tasks are to use
    haste: float = 2.0  # node-hours that may be spent beyond that for an earlier end
    budget: float = 0.0  # node-hours that the site may be charged in all; 0: no limit
    max_wait: Seconds = 30 * 86_400  # in the queue, before a smaller one is asked for beside it
    release_idle_nodes: bool = True  # give them back while other nodes of their job still work
    release_after: Seconds = 30  # of idleness


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """``[placement]``: which waiting task starts next."""

    ageing: Seconds = 21600  # of waiting that raise a task's priority by one
    look_ahead: int = 64  # tasks of less than a second that may wait at workers; 0: none


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """``[retry]``: attempts after the first."""

    retry_on: tuple[str, ...] = ()  # of tasks that say nothing; (): any failure
    delay: Pause = 10  # before the first retry; twice as long before each further one
    max_delay: Seconds = 600  # at the most
    max_cuts: int = 10  # ends of allocations, and lost workers, that one task may meet
    max_restarts: int = 100  # the same in a row, of a restartable task
    bad_node_tasks: int = (
        5  # different tasks that fail in a row on a node alone, at least; 0: never
    )
    bad_node_time: Seconds = 10  # from their start


@dataclass(frozen=True, slots=True)
class PilotSettings:
    """``[pilot]``."""

    idle_timeout: Seconds = 60
    startup_margin: Seconds = 30  # from the allocation's start until workers consume
    drain_margin: Seconds = 15  # before the allocation's end the pilot stops what runs
    max_checkpoint_grace: Seconds = 600  # the longest that a task may ask for
    heartbeat_interval: Seconds = 2
    output_tail: int = 4096  # bytes of stdout and of stderr kept in SQL
    launcher: str = ""  # starts the node workers; "": the one of ``[launcher]``
    python: str = ""  # Python of the compute nodes; "": the path of the login node's
    start_timeout: Seconds = 120  # for a node's worker; before, for the scheduler's answer
    silence_timeout: Seconds = 60  # of the link between head and node: then each gives the other up


@dataclass(frozen=True, slots=True)
class LauncherSettings:
    """``[launcher]``: how a program of several ranks is started."""

    kind: str = "auto"  # auto, or one of ``launchers.KINDS``
    mpiexec: str = ""  # path of mpiexec, srun, …; "": the first found
    mpi: str = ""  # srun: its --mpi, such as "pmi2" or "pmix"; "": Slurm's default
    options: tuple[str, ...] = ()  # more arguments, before the program
    template: tuple[str, ...] = ()  # of the kind "template": the whole command
    template_stays: bool = True  # it may end what a rank leaves behind: ranks of a pilot's stay
    template_survival: tuple[str, ...] = ()  # arguments by which ranks go on without a lost one


@dataclass(frozen=True, slots=True)
class TasksSettings:
    """``[tasks]``: the worker for users' ordinary Celery tasks."""

    imports: tuple[str, ...] = ()  # modules; the site directory is on their path
    concurrency: int = 2


@dataclass(frozen=True, slots=True)
class TransitionsSettings:
    """``[transitions]``: the worker for staging and hooks."""

    concurrency: int = 2
    step_timeout: Seconds = 3600


@dataclass(frozen=True, slots=True)
class FlowerSettings:
    """``[flower]``."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = 0  # 0: chosen by ``balsam init`` and written here


@dataclass(frozen=True, slots=True)
class ResultsSettings:
    """``[results]``."""

    expires: Seconds = 86400  # of Celery results that Redis alone has
    copy_expires: Seconds = 600  # of those that SQL has too, and answers afterwards


@dataclass(frozen=True, slots=True)
class LogSettings:
    """``[logs]``."""

    level: str = "INFO"
    max_bytes: int = 10_000_000
    backups: int = 3
    decisions: bool = False  # write each decision of planning, with its inputs, to decisions.jsonl


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole file."""

    site: SiteSettings = field(default_factory=SiteSettings)
    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    redis: RedisSettings = field(default_factory=RedisSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    local: LocalSettings = field(default_factory=LocalSettings)
    queues: dict[str, QueueSettings] = field(default_factory=dict)
    packing: PackingSettings = field(default_factory=PackingSettings)
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)
    pilot: PilotSettings = field(default_factory=PilotSettings)
    launcher: LauncherSettings = field(default_factory=LauncherSettings)
    tasks: TasksSettings = field(default_factory=TasksSettings)
    transitions: TransitionsSettings = field(default_factory=TransitionsSettings)
    flower: FlowerSettings = field(default_factory=FlowerSettings)
    results: ResultsSettings = field(default_factory=ResultsSettings)
    logs: LogSettings = field(default_factory=LogSettings)

    @property
    def key_prefix(self) -> str:
        """Prefix of everything the site has in Redis."""
        return f"balsam.{self.site.id}."

    @property
    def over_after(self) -> float:
        """Seconds after which a node that is cut off has ended everything."""
        return over_after(self.site.kill_grace, self.pilot.silence_timeout)


def load(path: Path) -> Settings:
    """Read and check ``site.toml``.

    Raises:
        SettingsError: not TOML, an unknown key, a value that cannot be used; names file and key.
    """
    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    try:
        return parse(plain)
    except InvalidInput as error:
        raise SettingsError(f"{path}: {error}") from None


def parse(plain: dict[str, Any]) -> Settings:
    """Check the tables of ``site.toml``.

    Raises:
        InvalidInput: an unknown key or a value that cannot be used; names the key.
    """
    settings: Settings = _table(Settings, plain, "")
    if settings.placement.ageing < 1:
        raise InvalidInput(f"placement.ageing is {settings.placement.ageing}: give 1s or more")
    checked("retry.retry_on", settings.retry.retry_on)
    for key in ("max_cuts", "max_restarts"):
        if getattr(settings.retry, key) < 1:
            raise InvalidInput(f"retry.{key} is {getattr(settings.retry, key)}: give 1 or more")
    if settings.pilot.silence_timeout < 10:
        raise InvalidInput(
            f"pilot.silence_timeout is {settings.pilot.silence_timeout}: give 10s or more, for a"
            " node that is only slow is not lost"
        )
    grace, margin = settings.site.kill_grace, settings.pilot.drain_margin
    if margin <= grace:
        raise InvalidInput(
            f"pilot.drain_margin is {margin}: give more than site.kill_grace, which is {grace},"
            " or the scheduler ends what has that grace yet"
        )
    for key in ("nodes", "cores_per_node"):
        if getattr(settings.local, key) < 1:
            raise InvalidInput(f"local.{key} is {getattr(settings.local, key)}: give 1 or more")
    for name, queue in settings.queues.items():
        _check_queue(f"queues.{name}", queue, settings.scheduler)
        if settings.scheduler.kind == "local" and queue.min_nodes > settings.local.nodes:
            raise InvalidInput(
                f"queues.{name}.min_nodes is {queue.min_nodes}: local.nodes is"
                f" {settings.local.nodes}, so no job fits; give that or less, or raise local.nodes"
            )
    if settings.packing.efficiency > 0.99:
        raise InvalidInput(
            f"packing.efficiency is {settings.packing.efficiency}: give 0 to 0.99, such as 0.9"
        )
    _check_directives("scheduler.directives", settings.scheduler.directives, settings.scheduler)
    return settings


def _check_queue(where: str, queue: QueueSettings, scheduler: SchedulerSettings) -> None:
    if queue.min_nodes < 1:
        raise InvalidInput(f"{where}.min_nodes is {queue.min_nodes}: give 1 or more")
    if queue.min_nodes > queue.max_nodes:
        raise InvalidInput(f"{where}: min_nodes is above max_nodes")
    if queue.min_wall_time > queue.max_wall_time:
        raise InvalidInput(f"{where}: min_wall_time is above max_wall_time")
    if scheduler.kind != "local" and not queue.cores_per_node:
        raise InvalidInput(f"{where}.cores_per_node is 0: give the cores of each of its nodes")
    if queue.account and scheduler.kind == "local":
        raise InvalidInput(f"{where}.account is {queue.account!r}: the local scheduler has none")
    if not _ACCOUNT.fullmatch(queue.account):
        raise InvalidInput(
            f"{where}.account is {queue.account!r}: give its name alone, such as 'abc123'"
        )
    _check_directives(f"{where}.directives", queue.directives, scheduler)


def _check_directives(
    where: str, directives: tuple[str, ...], scheduler: SchedulerSettings
) -> None:
    for directive in directives:
        if scheduler.kind == "local":
            raise InvalidInput(f"{where} has {directive!r}: the local scheduler has no directives")
        if not directive.isprintable() or not directive.strip() or directive.startswith("#"):
            raise InvalidInput(
                f"{where} has {directive!r}: give one option, such as '--account=abc' for Slurm or"
                " '-A abc' for PBS"
            )


def _table(cls: type[Any], plain: object, where: str) -> Any:
    if not isinstance(plain, dict):
        raise InvalidInput(f"{where} is {plain!r}: make it a table, [{where}]")
    hints = typing.get_type_hints(cls, include_extras=True)
    for key in plain:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)[0]
            place = f"in [{where}]" if where else "at the top"
            raise InvalidInput(f"unknown key {key!r} {place}: did you mean {near!r}?")
    values = {
        key: _value(hints[key], value, f"{where}.{key}" if where else key)
        for key, value in plain.items()
    }
    return cls(**values)


def _value(kind: Any, plain: Any, where: str) -> Any:
    if kind is Seconds:
        return parse_duration(plain, where)
    if kind is Pause:
        return parse_pause(plain, where)
    if dataclasses.is_dataclass(kind):
        return _table(typing.cast(type[Any], kind), plain, where)
    if kind == dict[str, int]:
        return dict(counts_of(plain, where))
    if isinstance(kind, types.GenericAlias) and kind.__origin__ is dict:
        if not isinstance(plain, dict):
            raise InvalidInput(f"{where} is {plain!r}: make it tables, [{where}.NAME]")
        return {
            name: _table(kind.__args__[1], row, f"{where}.{name}") for name, row in plain.items()
        }
    if isinstance(kind, types.GenericAlias) and kind.__origin__ is tuple:
        if not isinstance(plain, list) or not all(isinstance(item, str) for item in plain):
            raise InvalidInput(f"{where} is {plain!r}: give a list of strings")
        return tuple(plain)
    if kind is float and type(plain) is int:
        plain = float(plain)
    if not isinstance(plain, kind) or (isinstance(plain, bool) and kind is not bool):
        raise InvalidInput(f"{where} is {plain!r}: give a value of type {kind.__name__}")
    if kind in (int, float) and not 0 <= plain < math.inf:
        raise InvalidInput(f"{where} is {plain!r}: give 0 or more")
    return plain
