"""The site of a run, up, on what it stands on; all of it goes at the end."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from balsam_celery import settings
from balsam_celery.private import write_private
from balsam_celery.settings import LocalSettings
from balsam_celery.site import connect_store
from balsam_celery.sitefile import SiteFile
from balsam_celery.siteinit import init
from balsam_celery.supervisor import down, up
from tests.acceptance.live import LiveSite
from tests.chaos import namespaces
from tests.chaos.house import House
from tests.chaos.namespaces import Namespaces
from tests.chaos.world import World
from tests.postgres import PostgresServer, find_binaries
from tests.slurm.live import QUICK
from tests.slurm_cluster import SlurmCluster

#: Sites and databases that a run may have.
SITES = ("local", "slurm")
DATABASES = ("sqlite", "postgres")
_NODES, _CORES = 8, 2
_TASKS = {"imports": ["tests.chaos.steps"]}
#: Afterwards every result is looked at.
_RESULTS = {"copy_expires": "1d"}
#: What is changed in ``site.toml``: two pilots at once that last.
_CHANGES: dict[str, dict[str, Any]] = {
    "site": {"default_wall_time": "2m", "kill_grace": "2s"},
    "packing": {"interval": "1s", "efficiency": 0.0},
    "pilot": {"idle_timeout": "20s"},
    "scheduler": {"poll_interval": "1s"},
    "flower": {"enabled": False},
    "tasks": _TASKS,
    "results": _RESULTS,
}
_LOCAL = {
    **_CHANGES,
    "queues.local": {
        "min_nodes": 4,
        "max_nodes": 4,
        "min_wall_time": "25m",
        "max_wall_time": "30m",
    },
}
_SLURM = {
    **QUICK,
    "tasks": _TASKS,
    "results": _RESULTS,
    "queues.debug": {
        "min_nodes": 4,
        "max_nodes": 4,
        "min_wall_time": "25m",
        "max_wall_time": "50m",
    },
    "queues.small": {},
}


@contextlib.contextmanager
def stage(site: str, database: str) -> Iterator[World]:
    """Bring all up that a run needs.

    Args:
        site: of :data:`SITES`.
        database: of :data:`DATABASES`.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="balsam-chaos-")))
        # where the tasks worker finds ``tests.chaos.steps``
        root = str(Path(__file__).parents[2])
        environment = {"XDG_STATE_HOME": str(directory / "state"), "PYTHONPATH": root}
        cluster = postgres = networks = None
        if site == "slurm":
            cluster = SlurmCluster()
            stack.callback(cluster.stop)
            cluster.start()
            environment |= cluster.environment
        elif namespaces.available():
            networks = Namespaces()
            stack.callback(networks.remove)
            networks.make()
        if database == "postgres":
            binaries = find_binaries()
            assert binaries is not None, "PostgreSQL is not installed"
            postgres = PostgresServer(binaries)
            stack.callback(postgres.stop)
            postgres.start()
        stack.enter_context(_environment(environment))
        house = House(directory / "house", networks)
        live = _open(directory / "site", site, house, postgres)
        world = World(directory, live, house, postgres, cluster)
        try:
            yield world
        finally:
            world.down()


def present(world: World) -> list[str]:
    """What there is to be broken beside the site itself (``plan.Kind.needs``)."""
    found = {
        "postgres": world.postgres,
        "slurm": world.cluster,
        "namespaces": world.house.namespaces,
    }
    return [name for name, thing in found.items() if thing is not None]


def _open(directory: Path, kind: str, house: House, postgres: PostgresServer | None) -> LiveSite:
    if kind == "local":
        local = LocalSettings(nodes=_NODES, cores_per_node=_CORES)
        site = init(directory, name="chaos", local=local)
    else:
        site = init(directory, name="chaos", scheduler="slurm", tls=False)
    path = directory / "site.toml"
    file = SiteFile(path.read_text(encoding="utf-8"))
    for table, values in (_LOCAL if kind == "local" else _SLURM).items():
        _set(file, table, values)
    file.set("pilot", {"python": str(house.python)})
    host = house.namespaces.address if house.namespaces else "127.0.0.1"
    file.set("redis", {"host": host, "bind": "127.0.0.1", "trusted_network": True})
    if postgres is not None:
        url = postgres.url(postgres.new_database()).replace("+psycopg", "")
        write_private(site.secrets_dir / "database", url + "\n")
        file.set("database", {"url_file": "secrets/database"})
    path.write_text(file.text, encoding="utf-8")
    site = replace(site, settings=settings.load(path))
    try:
        up(site)
    except BaseException:
        down(site)
        raise
    return LiveSite(site, connect_store(site))


def _set(file: SiteFile, table: str, values: Mapping[str, Any]) -> None:
    queue = table.removeprefix("queues.")
    if queue == table:
        file.set(table, dict(values))
    elif values:
        file.set_queue(queue, dict(values))
    else:
        file.remove_queue(queue)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
