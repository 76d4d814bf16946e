"""The options that describe tasks, of ``submit`` and ``app add``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from balsam_celery.amounts import counts_given
from balsam_celery.errors import InvalidInput
from balsam_celery.tasks.options import LAUNCHERS

F = TypeVar("F", bound=Callable[..., Any])


def _option(*names: str, **settings: Any) -> Callable[[F], F]:
    return click.option(*names, default=None, **settings)


#: Parameter → option; each parameter is a task field as ``program()`` takes it, but for ``tag``,
#: ``resource`` and ``env``.
_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "workflow": _option("--workflow", metavar="NAME", help="What the tasks belong to."),
    "tag": _option(
        "--tag", multiple=True, metavar="TAG", help="A word to find them by; may be repeated."
    ),
    "num_nodes": _option("-N", "--num-nodes", type=int, metavar="N", help="Nodes.  [default: 1]"),
    "ranks_per_node": _option(
        "-r",
        "--ranks-per-node",
        type=int,
        metavar="N",
        help="MPI ranks on each node.  [default: 1]",
    ),
    "threads_per_rank": _option(
        "-c",
        "--threads-per-rank",
        type=int,
        metavar="N",
        help="Threads of each rank.  [default: 1]",
    ),
    "threads_per_core": _option(
        "--threads-per-core",
        type=int,
        metavar="N",
        help="Hardware threads of a core used.  [default: 1]",
    ),
    "gpus_per_rank": _option(
        "-g",
        "--gpus-per-rank",
        type=float,
        metavar="X",
        help="GPUs of each rank, such as 1 or 0.5.  [default: 0]",
    ),
    "node_packing_count": _option(
        "--node-packing-count",
        type=int,
        metavar="N",
        help="At most so many of them on one node; 1: each has it alone.",
    ),
    "cpu_affinity": _option(
        "--cpu-affinity",
        metavar="HOW",
        help="depth: bind to cores; none: do not.  [default: depth]",
    ),
    "memory_per_node": _option(
        "--memory-per-node",
        metavar="SIZE",
        help="Memory on each node: bytes, 4GiB, 4GB; counted, not enforced."
        "  [default: 0, not counted]",
    ),
    "resource": _option(
        "--resource",
        multiple=True,
        metavar="NAME=AMOUNT",
        help="What else it takes on each node, of what resources_per_node in site.toml counts, such"
        " as licence=2; may be repeated.",
    ),
    "launcher": _option(
        "--launcher",
        metavar="KIND",
        help=f"How ranks start: {', '.join(LAUNCHERS)}.  [default: the site's]",
    ),
    "wall_time": _option(
        "-t",
        "--wall-time",
        metavar="TIME",
        help="Limit, enforced, such as 90 (seconds), 10m, 1h30m, 01:30:00.  [default: the site's]",
    ),
    "expected_time": _option(
        "--expected-time",
        metavar="TIME",
        help="What it is likely to take, for planning; it may take longer.  [default: learned]",
    ),
    "priority": _option(
        "--priority", type=int, metavar="N", help="Higher goes first.  [default: 0]"
    ),
    "max_retries": _option(
        "--max-retries",
        type=int,
        metavar="N",
        help="Tries after the first, when it fails.  [default: 0]",
    ),
    "retry_on": _option(
        "--retry-on",
        multiple=True,
        metavar="FAILURE",
        help="Try again only after such a failure: error, exit:3, exit:1-127, signal, signal:KILL,"
        " timeout, cannot-start, reason:TEXT; with a ! before it, never after such a one; may be"
        " repeated.  [default: the site's]",
    ),
    "retry_delay": _option(
        "--retry-delay",
        metavar="TIME",
        help="Pause before the first such try; twice as long before each further one."
        "  [default: the site's]",
    ),
    "restartable": _option(
        "--restartable",
        is_flag=True,
        help="May be stopped by the end of a batch job, and goes on in another: all its runs share"
        " one work directory.",
    ),
    "checkpoint_grace": _option(
        "--checkpoint-grace",
        metavar="TIME",
        help="Send it --end-signal so long before its limit, the end of the batch job, a drain or a"
        " kill ends it.  [default: 0, do not]",
    ),
    "end_signal": _option(
        "--end-signal",
        metavar="NAME",
        help="Such as USR1; only with --checkpoint-grace.  [default: TERM]",
    ),
    "on_parent_failure": _option(
        "--on-parent-failure",
        metavar="WHAT",
        help="When a parent fails: fail, or ignore and run.  [default: fail]",
    ),
    "env": _option(
        "-e",
        "--env",
        multiple=True,
        metavar="NAME=VALUE",
        help="A variable for the program (NAME alone: as it is here); may be repeated.",
    ),
}


def task_options(command: F) -> F:
    """Add the options."""
    for option in reversed(_OPTIONS.values()):
        command = option(command)
    return command


def given_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, taken out of ``options``, as ``program()`` takes them.

    Raises:
        InvalidInput: ``--env`` names no variable, or one that is not set; ``--resource`` is not
            ``NAME=AMOUNT``.
    """
    given: dict[str, Any] = {}
    for name in _OPTIONS:
        value = options.pop(name)
        if value is None or value == ():
            continue
        if name == "tag":
            given["tags"] = list(value)
        elif name == "retry_on":
            given[name] = list(value)
        elif name == "resource":
            given["resources_per_node"] = counts_given(value, "--resource")
        elif name == "env":
            given["environment"] = _environment(value)
        else:
            given[name] = value
    return given


def _environment(settings: Iterable[str]) -> dict[str, str]:
    environment = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not name:
            raise InvalidInput(f"--env is {setting!r}: give NAME=VALUE")
        if not separator:
            if name not in os.environ:
                raise InvalidInput(f"--env {name}: no such variable is set here; give {name}=VALUE")
            value = os.environ[name]
        environment[name] = value
    return environment
