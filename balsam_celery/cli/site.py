"""``balsam init``, ``up``, ``down`` and ``status``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from balsam_celery import site as sites
from balsam_celery.cli import describe
from balsam_celery.cli.output import echo_json, local_time, plural, say, table, visible
from balsam_celery.cli.selection import json_option
from balsam_celery.cli.session import session
from balsam_celery.durations import format_duration
from balsam_celery.errors import InvalidInput
from balsam_celery.settings import LocalSettings
from balsam_celery.siteinit import init as make_site
from balsam_celery.supervisor import SiteStatus
from balsam_celery.supervisor import down as stop_site
from balsam_celery.supervisor import status as status_of
from balsam_celery.supervisor import up as start_site


@click.command()
@click.argument("directory", default=".", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", help="The site's name.  [default: the directory's]")
@click.option(
    "--scheduler",
    metavar="KIND",
    help="auto, slurm, pbs, psij or local.  [default: auto; local with options of its nodes]",
)
@click.option(
    "--tls/--no-tls",
    default=None,
    help="Reach Redis by TLS, with certificates made now.  [default: on a cluster, where the"
    " redis-server here can]",
)
@click.option("--nodes", type=int, metavar="N", help="Local scheduler: number of virtual nodes.")
@click.option("--cores-per-node", type=int, metavar="N", help="Local scheduler: cores of each.")
@click.option(
    "--gpus-per-node", type=int, metavar="N", help="Local scheduler: pretended GPUs of each."
)
@json_option
def init(
    directory: Path,
    name: str | None,
    scheduler: str | None,
    tls: bool | None,
    as_json: bool,
    **virtual: int | None,
) -> None:
    """Make a site in DIRECTORY, by default this one: settings, secrets, run directory.

    On a cluster DIRECTORY must be on a file system that the compute nodes share. The scheduler is
    found: Slurm or PBS where one answers, with its queues and limits, else the local one; site.toml
    has what was found, for you to read and change. Of a local site this machine's cores become two
    virtual nodes (a single core: one); with --nodes, --cores-per-node or --gpus-per-node what is
    left out of them is 2 nodes, 1 core, no GPU.
    """
    given: dict[str, Any] = {key: value for key, value in virtual.items() if value is not None}
    local = dataclasses.replace(LocalSettings(), **given) if given else None
    kind = scheduler or ("local" if given else "auto")
    if given and kind != "local":
        options = ", ".join(f"--{key.replace('_', '-')}" for key in given)
        raise InvalidInput(f"{options} describe local nodes, and --scheduler is {kind!r}: drop one")
    made = make_site(directory, name=name, local=local, scheduler=kind, tls=tls, say=say)
    if as_json:
        echo_json({"site": _site_as_json(made)})
        return
    say(f"site {made.settings.site.name!r} made in {made.directory}")
    if made.settings.scheduler.kind != "local":
        say("the compute nodes must see this directory under the same name")
        say("the script of a batch job: balsam allocations preview")
    say(f"settings are in {made.directory / sites.SITE_FILE}; next: balsam up")


@click.command()
@json_option
def up(as_json: bool) -> None:
    """Start what the site needs, in the background, and return when all answer.

    Harmless when it runs; needed again after a restart of this machine. What runs keeps to the
    site.toml that it was started with: after a change, `balsam down` first. An older database is
    brought up to date, after a copy of it.
    """
    site = session().site
    start_site(site, say)
    if as_json:
        echo_json(_status_as_json(site, status_of(site)))
        return
    if site.settings.flower.enabled:
        settings = site.settings.flower
        say(
            f"Flower is at http://{settings.host}:{settings.port} "
            f"(user balsam, password in {site.secrets_dir / 'flower'})"
        )


@click.command()
@click.option(
    "--cancel/--no-cancel",
    default=None,
    help="Cancel the site's batch jobs and wait for their end.  [default: if local]",
)
@json_option
def down(cancel: bool | None, as_json: bool) -> None:
    """Stop all that `up` started; harmless when nothing runs.

    Batch jobs of a real scheduler, and the programs in them, go on unless --cancel is given.
    """
    site = session().site
    stop_site(site, say, cancel=cancel)
    if as_json:
        echo_json(_status_as_json(site, status_of(site)))
    else:
        say(f"site {site.settings.site.name!r} is down")


@click.command()
@json_option
def status(as_json: bool) -> None:
    """What is up, what is queued, running and done.

    Exit status 1 when something is not up, or a disk or Redis is full. Why a process is not up is
    in logs/NAME.log of the site's directory.
    """
    site = session().site
    now = status_of(site)
    if as_json:
        echo_json(_status_as_json(site, now))
    else:
        _print_status(now)
    if not now.up or now.shortages:
        raise click.exceptions.Exit(1)


def _print_status(now: SiteStatus) -> None:
    word = click.style("up", fg="green") if now.up else click.style("not up", fg="red")
    click.echo(f"site {now.name} in {now.directory} on {now.host}: {word}")
    click.echo()
    table(
        ("PROCESS", "STATE", "PID", "UP FOR", "RESTARTS", "NOTE"),
        [
            (
                process.name,
                "up" if process.up else "down",
                str(process.pid or "-"),
                format_duration(round(process.uptime)) if process.up and process.pid else "-",
                str(process.restarts),
                process.note,
            )
            for process in now.processes
        ],
    )
    if now.shortages:
        click.echo()
    for shortage in now.shortages:
        say(shortage)
    if now.note:
        click.echo()
        say(now.note)
        return
    click.echo()
    table(
        ("STATE", "TASKS"),
        [(str(state), f"{number:,}") for state, number in sorted(now.tasks.items())],
        state_column=0,
    )
    click.echo()
    allocated = f"{plural(len(now.allocations), 'allocation')}, {plural(len(now.pilots), 'pilot')}"
    nodes = sum(len(pilot.nodes) for pilot in now.pilots)
    click.echo(f"{allocated} with {plural(nodes, 'node')}")
    if now.failed:
        click.echo()
        click.echo(f"within the last hour {plural(len(now.failed), 'allocation')} came to nothing:")
    for row in now.failed:
        click.echo(visible(f"{row.id} in {row.queue}, {local_time(row.ended)}: {row.reason}"))


def _site_as_json(site: sites.Site) -> dict[str, Any]:
    return {
        "name": site.settings.site.name,
        "id": site.settings.site.id,
        "directory": str(site.directory),
        "host": site.settings.site.host,
    }


def _status_as_json(site: sites.Site, now: SiteStatus) -> dict[str, Any]:
    flower = site.settings.flower
    return {
        "site": _site_as_json(site),
        "up": now.up,
        "processes": [
            {
                "name": process.name,
                "up": process.up,
                "pid": process.pid,
                "uptime": round(process.uptime, 1),
                "restarts": process.restarts,
                "note": process.note,
            }
            for process in now.processes
        ],
        "tasks": {str(state): number for state, number in now.tasks.items()},
        "allocations": [describe.allocation(row) for row in now.allocations],
        "failed": [describe.allocation(row) for row in now.failed],
        "pilots": [describe.pilot(row) for row in now.pilots],
        "flower": f"http://{flower.host}:{flower.port}" if flower.enabled else None,
        "note": now.note,
        "shortages": list(now.shortages),
    }
