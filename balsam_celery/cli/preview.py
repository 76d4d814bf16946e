"""``balsam allocations preview``: the script of a batch job, without submitting it."""

from __future__ import annotations

import shlex

import click

from balsam_celery import jobscript
from balsam_celery.cli.output import echo_json, say
from balsam_celery.cli.selection import json_option
from balsam_celery.cli.session import session
from balsam_celery.durations import format_duration, parse_duration
from balsam_celery.errors import InvalidInput
from balsam_celery.schedulers import make_scheduler
from balsam_celery.schedulers.base import JobRequest
from balsam_celery.service.submit import job_name
from balsam_celery.settings import QueueSettings, Settings

#: Stands where an allocation has its id.
ALLOCATION = "0" * 12


@click.command()
@click.option("--queue", metavar="QUEUE", help="One of site.toml.  [default: the first]")
@click.option("--nodes", type=int, metavar="N", help="[default: the queue's min_nodes]")
@click.option("--wall-time", metavar="TIME", help="[default: the queue's max_wall_time]")
@json_option
def preview(queue: str | None, nodes: int | None, wall_time: str | None, as_json: bool) -> None:
    """Print the script that a batch job of this size would have; nothing is submitted or written.

    It is what site.toml's directives, setup lines and template make of it. In place of the
    allocation's id stand zeros. On stderr: the command that submits it, where it is one.
    """
    site = session().site
    name, limits = _queue(site.settings, queue)
    nodes = limits.min_nodes if nodes is None else nodes
    if not limits.min_nodes <= nodes <= limits.max_nodes:
        raise InvalidInput(
            f"--nodes is {nodes}: queue {name!r} gives {limits.min_nodes} to {limits.max_nodes}"
        )
    seconds = limits.max_wall_time
    if wall_time is not None:
        seconds = parse_duration(wall_time, "--wall-time")
    if not limits.min_wall_time <= seconds <= limits.max_wall_time:
        raise InvalidInput(
            f"--wall-time is {wall_time!r}: queue {name!r} gives"
            f" {format_duration(limits.min_wall_time)} to {format_duration(limits.max_wall_time)}"
        )
    scheduler = make_scheduler(
        site.settings.scheduler.kind, settings=site.settings, local_dir=site.local_dir
    )
    directory = site.run_dir / "allocations" / ALLOCATION
    request = JobRequest(
        job_name(site, ALLOCATION), name, nodes, seconds, directory / "job.sh", directory
    )
    script = jobscript.render(site, scheduler, request, ALLOCATION)
    command = list(scheduler.submit_command(request))
    if as_json:
        echo_json(
            {
                "queue": name,
                "nodes": nodes,
                "wall_time": seconds,
                "script": script,
                "command": command,
            }
        )
        return
    click.echo(script, nl=False)
    if command:
        say(f"submitted by: {shlex.join(command)}")
    elif site.settings.scheduler.kind == "local":
        say("run by the site itself")
    else:
        say(f"submitted by the adapter of {site.settings.scheduler.kind!r}, without a command")


def _queue(settings: Settings, name: str | None) -> tuple[str, QueueSettings]:
    if not settings.queues:
        raise InvalidInput("the site has no queue: add a table [queues.NAME] to site.toml")
    name = next(iter(settings.queues)) if name is None else name
    if name not in settings.queues:
        raise InvalidInput(f"--queue is {name!r}: site.toml has {', '.join(settings.queues)}")
    return name, settings.queues[name]
