"""``python -m balsam_celery.pilot.node``: what a launcher starts, once on each node of a pilot.

It forks the node's keeper (:mod:`balsam_celery.pilot.keeper`) before anything of MPI happens, so
that the keeper has nothing of it, brings all nodes together through MPI
(:mod:`balsam_celery.pilot.bootstrap`), and hands over what the keeper must know. Most launchers end
everything when one rank is lost; under those this process ends now, and the keeper stays alone. Of
others the keeper would not outlive its rank: there this process stays.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from balsam_celery.errors import BalsamError
from balsam_celery.pilot import bootstrap
from balsam_celery.pilot.keeper import Keeper
from balsam_celery.pilot.keeperlog import KeeperLog
from balsam_celery.pilot.link import Briefing
from balsam_celery.pilot.signals import outlive_warnings
from balsam_celery.wire import MalformedMessage, decode, encode

logger = logging.getLogger(__name__)

#: File in the pilot's directory with the one line that says why the nodes cannot be used.
START_ERROR = "start-error.txt"
#: Set by ``slurmd`` on each node (srun(1), "OUTPUT ENVIRONMENT VARIABLES").
SLURM_NODE = "SLURMD_NODENAME"


class MisplacedError(BalsamError):
    """A node was started on another one."""


def main(argv: Sequence[str]) -> int:
    """Be one node's rank; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m balsam_celery.pilot.node")
    parser.add_argument("--site", type=Path, required=True, help="site directory")
    parser.add_argument("--directory", type=Path, required=True, help="the pilot's directory")
    parser.add_argument("--count", type=int, default=1, help="nodes in all")
    parser.add_argument("--within", type=int, required=True, help="seconds to come together in")
    parser.add_argument("--stay", action="store_true", help="stay until the keeper ends")
    parser.add_argument("--node", help="start this node again, by itself and without MPI")
    options = parser.parse_args(argv)
    # as in ``startup``: launchers do not carry it to other hosts
    os.umask(0o077)
    outlive_warnings()
    reader, writer = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        os._exit(_keep(reader, options.directory, again=options.node is not None))
    os.close(reader)
    signal.alarm(options.within)  # a rank that waits for others for ever would keep the launcher
    try:
        if options.node is None:
            text, node = bootstrap.share(
                options.count,
                lambda: encode(Briefing.read(options.site, options.directory)),
                _place,
            )
        else:
            text, node = encode(Briefing.read(options.site, options.directory)), options.node
            _check_place(text, node)
    except (BalsamError, MalformedMessage, OSError) as error:
        if options.node is None:
            _complain(options.directory, str(error))
        else:  # the others can work together
            print(f"pilot: {error}", file=sys.stderr, flush=True)
        return 1
    signal.alarm(0)
    with os.fdopen(writer, "w", encoding="utf-8") as pipe:
        json.dump([node, text], pipe)
    return _stay(keeper) if options.stay else 0


def _place(text: str, rank: int) -> str:
    nodes = decode(Briefing, text).invitation.nodes
    return node_name([node.name for node in nodes], rank, os.environ, os.uname().nodename)


def _check_place(text: str, node: str) -> None:
    """A launcher that starts a single node somewhere else would mix up two of them.

    Raises:
        MisplacedError: this is another one of the allocation's nodes.
    """
    names = [one.name for one in decode(Briefing, text).invitation.nodes]
    host = os.uname().nodename
    here = known_name(names, os.environ, host)
    if here not in (None, node):
        raise MisplacedError(f"node {node} was to be started, and this is {here} (host {host})")


def known_name(names: Sequence[str], environ: Mapping[str, str], host: str) -> str | None:
    """Which of the allocation's nodes this host is, as far as it can tell by itself."""
    label = host.partition(".")[0]
    for name in (host, *(name for name in names if name.partition(".")[0] == label)):
        if name in names:
            return name
    slurm = environ.get(SLURM_NODE, "")
    return slurm if slurm in names else None


def node_name(names: Sequence[str], rank: int, environ: Mapping[str, str], host: str) -> str:
    """Which of the allocation's nodes this host is.

    By its host name; where several nodes are on one machine, by Slurm's name of the node; else
    by the rank, as launchers start ranks in the order of the nodes that they are given.
    """
    return known_name(names, environ, host) or names[rank]


def _complain(directory: Path, message: str) -> None:
    """Say what is wrong once, however many ranks have found it."""
    line = " ".join(message.split())
    try:
        with (directory / START_ERROR).open("x", encoding="utf-8") as file:
            file.write(line + "\n")
    except FileExistsError:
        return
    except OSError as error:
        print(f"pilot: {directory / START_ERROR}: {error.strerror}", file=sys.stderr)
    print(f"pilot: {line}", file=sys.stderr, flush=True)


def _stay(keeper: int) -> int:
    """Wait for the keeper; who ends a job step may signal this process alone."""

    def forward(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(keeper, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward)
    _, status = os.waitpid(keeper, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 1


def _keep(reader: int, directory: Path, *, again: bool) -> int:
    """The life of the forked keeper; returns its exit status."""
    log: KeeperLog | None = None
    try:
        os.setsid()
        _let_go(reader)
        with os.fdopen(reader, encoding="utf-8") as pipe:
            handed = pipe.read()
        if not handed:
            return 1  # the rank has failed, and said why
        node, text = json.loads(handed)
        briefing = decode(Briefing, text)
        log = KeeperLog(directory / f"{node}.keeper.log", briefing.settings.logs.level)
        return Keeper(briefing, node, again=again, helper=log.pid).run()
    except BaseException:
        logger.exception("the keeper fails")
        traceback.print_exc()
        return 1
    finally:
        if log is not None:
            log.close()


def _let_go(kept: int) -> None:
    """Close what the launcher gave the rank: it waits until nobody has it open."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        number = int(name)
        if number > 2 and number != kept:
            with contextlib.suppress(OSError):  # the one that listed them is closed
                os.close(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
