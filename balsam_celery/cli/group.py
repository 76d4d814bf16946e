"""The root of the command line: loads commands on demand and turns errors into one line."""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Mapping
from typing import Any

import click

from balsam_celery.cli.faults import report_fault
from balsam_celery.errors import BalsamError

#: Exit status after Ctrl-C, as shells have it (128 + SIGINT).
INTERRUPTED = 130


def one_line(message: str) -> str:
    """``message`` without line breaks, so that an error stays one line."""
    return " ".join(message.split())


class Root(click.Group):
    """A group whose commands are imported when they are called.

    Args:
        commands_table: command → (section of the help, module in this package, one line of help).
            The command is the module's attribute of that name, or ``NAME_`` where ``NAME`` would
            hide a module or a builtin.
    """

    def __init__(
        self, *args: Any, commands_table: Mapping[str, tuple[str, str, str]], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.table = commands_table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, by section."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in self.table:
            return None
        module = importlib.import_module(f"balsam_celery.cli.{self.table[cmd_name][1]}")
        command = getattr(module, f"{cmd_name}_", None) or getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click, and an unknown command is answered with the nearest known one."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=self.table, ctx=ctx
            ) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands by section; none is imported for that."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, (section, _, line) in self.table.items():
            sections.setdefault(section, []).append((name, line))
        width = max(map(len, self.table))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl([(name.ljust(width), line) for name, line in rows])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; every error but click's own becomes one line and an exit status."""
        try:
            return super().invoke(ctx)
        except BalsamError as error:
            status, line = error.exit_status, one_line(str(error))
        except KeyboardInterrupt:
            status, line = INTERRUPTED, "interrupted"
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of a pipe has had enough; click ends quietly
            if os.environ.get("BALSAM_DEBUG"):
                raise
            status, line = 1, one_line(report_fault(error))
        click.echo(f"balsam: {line}", err=True)
        raise click.exceptions.Exit(status)
