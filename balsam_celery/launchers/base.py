"""The contract of launchers: ranks to start, how to start them, what is known of their end."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Ranks:
    """What a launcher is to start.

    Attributes:
        argv: each rank's program; no argument may be a lone ``:`` (which separates programs for
            most launchers, and nothing quotes it), and the first may not begin with ``-``.
        nodes: host names, each once; ranks are numbered in this order where the launcher allows.
        ranks_per_node: on each of ``nodes``.
        cores_per_rank: what a launcher asks of its scheduler for each rank. Launchers bind
            nothing: what runs in front of each rank does (``launchers.shim``).
        gpus_per_rank: as the task asks; a fraction lets ranks share one.
        exports: names of variables that must reach ranks on other hosts.
        name: names the job step; letters, digits, ``-`` and ``.``, unique in the allocation.
        survives: the loss of a rank or of a node must not end the others.
        one_host: all of ``nodes`` are this machine: its virtual nodes, or its own name.
        root: the caller is root (Open MPI must be told that this is meant).
    """

    argv: tuple[str, ...]
    nodes: tuple[str, ...]
    ranks_per_node: int = 1
    cores_per_rank: int = 1
    gpus_per_rank: float = 0.0
    exports: tuple[str, ...] = ()
    name: str = ""
    survives: bool = False
    one_host: bool = False
    root: bool = False

    def __post_init__(self) -> None:
        if ":" in self.argv or self.argv[0].startswith("-"):
            raise ValueError(f"{self.argv!r}: a launcher would take a part of this for its own")

    @property
    def count(self) -> int:
        """Ranks in all."""
        return len(self.nodes) * self.ranks_per_node

    @property
    def whole_gpus_per_rank(self) -> int:
        """GPUs that a launcher must ask for, if it knows only whole ones."""
        return math.ceil(self.gpus_per_rank - 1e-6)

    def file(self, kind: str) -> str:
        """Name of a file for this launch; others may be made in its directory at the same time."""
        return f".balsam-{self.name or 'ranks'}.{kind}"


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start ranks: what to execute, and what to add to the environment.

    Attributes:
        step: name of the job step that this makes, for :meth:`Launcher.end_step`; empty: none.
        files: name → content of files that ``argv`` names; they must be in the directory in which
            it is started.
    """

    argv: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    step: str = ""
    files: dict[str, str] = field(default_factory=dict)


class Launcher(ABC):
    """A way to start ranks: one program on this machine, such as an ``mpiexec``.

    It starts programs of several ranks and, with ``Ranks.survives``, the keepers of a pilot's
    nodes. How to add a kind: ``docs/adapters.md``.

    Args:
        path: of that program; empty for ``none``.
        options: more arguments, before the ranks' program.

    Attributes:
        kind: its name in ``site.toml``.
        virtual: it can start ranks on virtual nodes, whose names nobody can look up.
        vouches: a node that it says is lost has been given up by the scheduler (R4).
        stays: a process that a rank leaves behind ends with the launcher, so a rank that wants
            one to live has to stay itself; and with ``Ranks.survives`` ranks go on when one of
            them or a node is lost, as far as the launcher allows. Otherwise a rank may end and
            leave a process behind.
    """

    kind: str
    virtual: ClassVar[bool] = False
    vouches: ClassVar[bool] = False
    stays: bool = False

    def __init__(self, path: str = "", options: tuple[str, ...] = ()) -> None:
        self.path = path
        self.options = options

    @abstractmethod
    def launch(self, ranks: Ranks) -> Launch:
        """How to start ``ranks``.  Pure.

        On exactly these nodes, in that order where it can, with nothing bound and no stdin, beside
        other launches on the same nodes. With ``survives``, whatever lets it go on without a rank
        or a node; with ``one_host``, no way to other hosts.

        Raises:
            SettingsError: this launcher cannot start such ranks.
        """

    def lost_node(self, line: str) -> str | None:
        """The node that a line of the launcher's error output says is lost, if it says so."""
        return None

    def not_started(self, output: str) -> str:
        """Why it could not start its ranks, where its error output says so: not their failure.

        Such an end comes of a batch system that did not answer: the attempt is taken back.
        """
        return ""

    def end_step(self, name: str, environment: Mapping[str, str]) -> bool:
        """End the job step ``name`` with SIGKILL, on all its nodes.

        Needed where ranks outlive a launcher that is killed. One call asks and looks; a caller that
        must know calls again until it is true.

        Args:
            environment: of the allocation.

        Returns:
            No such step is there (any more). ``False``: it is still there, or nobody could tell.
        """
        return True
