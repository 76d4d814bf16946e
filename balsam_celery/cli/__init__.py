"""The command line: ``balsam …``, the same as ``celery -A balsam_celery balsam …``.

Each command lives in a module of its own topic and is imported when it is called, so that
``balsam ls`` pays for reading SQL and for nothing else.
"""

from __future__ import annotations

import click

from balsam_celery.cli.group import Root

#: Command → (section of the help, module, one line of help).
COMMANDS = {
    "init": ("Site", "site", "Make a site: settings, secrets, run directory."),
    "up": ("Site", "site", "Start what the site needs, in the background."),
    "down": ("Site", "site", "Stop all that `up` started."),
    "status": ("Site", "site", "What is up, queued, running and done."),
    "site": ("Site", "refresh", "Compare site.toml with the scheduler: refresh."),
    "submit": ("Tasks", "submit", "Submit a program, or many."),
    "ls": ("Tasks", "reading", "List tasks."),
    "show": ("Tasks", "reading", "Everything known of a task."),
    "explain": ("Tasks", "explain", "Why a task, or packing, is where it is."),
    "log": ("Tasks", "log", "Output of a task's program."),
    "wait": ("Tasks", "waiting", "Wait until tasks have ended."),
    "kill": ("Tasks", "acting", "Kill tasks."),
    "retry": ("Tasks", "acting", "Run failed or killed tasks again."),
    "rm": ("Tasks", "acting", "Remove ended tasks and their history."),
    "app": ("Tasks", "app", "Programs saved under a name: add, ls, runtimes, rm."),
    "allocations": ("Machines", "machines", "List, preview and cancel batch jobs."),
    "pack": ("Machines", "pack", "What batch jobs would be asked for now, and why."),
    "pilot": ("Machines", "machines", "List and drain pilots."),
    "simulate": ("Machines", "simulating", "Run a workload on a simulated machine."),
    "prune": ("Site", "acting", "Remove tasks and allocations that ended long ago."),
}


@click.group(
    cls=Root,
    commands_table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "First `balsam init DIRECTORY`, then in it `balsam up`, `balsam submit -- PROGRAM`, `balsam"
        " ls`. The site is the one BALSAM_SITE names, else the working directory or one above it."
        " An ID may be cut to its first six characters or more where that fits one. Exit status: 0"
        " done, 1 not all of it succeeded, 2 what was given cannot be used."
    ),
)
@click.version_option(package_name="balsam_celery", prog_name="balsam")
def balsam() -> None:
    """Run thousands of programs of any size inside a supercomputer's allocations."""


def main() -> None:
    """Entry point of the ``balsam`` command."""
    balsam(prog_name="balsam")
