"""Ranks without a launcher, and with one that a site describes itself."""

from __future__ import annotations

import string
from collections.abc import Sequence

from balsam_celery.errors import SettingsError
from balsam_celery.launchers.base import Launch, Launcher, Ranks

_COMMAND = "{command}"
PLACEHOLDERS = (
    "ranks",
    "nodes",
    "ranks_per_node",
    "hosts",
    "hostfile",
    "cores_per_rank",
    "gpus_per_rank",
)


class NoLauncher(Launcher):
    """The program itself: it starts more processes, if it wants them, by its own means."""

    kind = "none"
    virtual = True

    def launch(self, ranks: Ranks) -> Launch:
        return Launch(ranks.argv)


class Template(Launcher):
    """A command of the site's own.

    ``{ranks}``, ``{nodes}`` and ``{ranks_per_node}`` are counts, ``{hosts}`` the names with commas
    between, ``{hostfile}`` a file with one name in a line, ``{cores_per_rank}`` and
    ``{gpus_per_rank}`` what each rank has; ``{command}``, an argument of its own, becomes the
    program with its arguments. A brace is written twice.

    Args:
        template: the command.
        options: more arguments, before the program.
        stays: see :class:`Launcher`. Of a launcher that nobody has described this is safe: nothing
            has to outlive its rank.
        survival: arguments, before the program, by which ranks go on when one of them or a node is
            lost; without any such a loss may end all of them.

    Raises:
        SettingsError: it cannot be used; the message says what is wrong.
    """

    kind = "template"
    virtual = True

    def __init__(
        self,
        template: Sequence[str],
        options: tuple[str, ...] = (),
        *,
        stays: bool = True,
        survival: tuple[str, ...] = (),
    ) -> None:
        _check(template)
        super().__init__(template[0], options)
        self.template = tuple(template)
        self.stays = stays
        self.survival = survival

    def launch(self, ranks: Ranks) -> Launch:
        hosts = ranks.file("hosts")
        values = {
            "ranks": str(ranks.count),
            "nodes": str(len(ranks.nodes)),
            "ranks_per_node": str(ranks.ranks_per_node),
            "hosts": ",".join(ranks.nodes),
            "hostfile": hosts,
            "cores_per_rank": str(ranks.cores_per_rank),
            "gpus_per_rank": f"{ranks.gpus_per_rank:g}",
        }
        argv: list[str] = []
        for part in self.template:
            if part == _COMMAND:
                argv += self.survival if ranks.survives else ()
                argv += [*self.options, *ranks.argv]
            else:
                argv.append(part.format_map(values))
        files = {}
        if any("{hostfile}" in part for part in self.template):
            files[hosts] = "".join(f"{node}\n" for node in ranks.nodes)
        return Launch(tuple(argv), files=files)


def _check(template: Sequence[str]) -> None:
    if not template:
        raise SettingsError(
            "launcher.kind is 'template': give launcher.template, such as "
            '["mpiexec", "-n", "{ranks}", "--ppn", "{ranks_per_node}", "{command}"]'
        )
    if template.count(_COMMAND) != 1 or template[0] == _COMMAND:
        raise SettingsError(
            f"launcher.template is {list(template)}: it must hold '{{command}}' once, as an "
            "argument of its own behind the launcher's name"
        )
    for part in template:
        if part == _COMMAND:
            continue
        try:
            fields = list(string.Formatter().parse(part))
        except ValueError as error:
            raise SettingsError(
                f"launcher.template holds {part!r}: {error}; write a brace twice"
            ) from None
        for _, name, form, conversion in fields:
            if name is not None and (name not in PLACEHOLDERS or form or conversion):
                known = ", ".join(f"{{{known}}}" for known in (*PLACEHOLDERS, "command"))
                raise SettingsError(
                    f"launcher.template holds {part!r}: of braces it knows {known}; "
                    "write a brace that is meant twice"
                )
