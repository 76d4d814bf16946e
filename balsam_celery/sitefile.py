"""``site.toml`` as text: values change, comments and everything else stay."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any, cast

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Item, Table

from balsam_celery.errors import SettingsError

Value = str | int | bool | list[str]
#: Column at which the example's comments stand.
_COLUMN = 27


class SiteFile:
    """The text of a ``site.toml``, to be changed key by key.

    Args:
        text: TOML.

    Raises:
        SettingsError: it is none.
    """

    def __init__(self, text: str) -> None:
        try:
            self._document = tomlkit.parse(text)
        except TOMLKitError as error:
            raise SettingsError(f"site.toml: not valid TOML: {error}") from None

    @property
    def text(self) -> str:
        """The text as it stands now."""
        return tomlkit.dumps(self._document)

    @property
    def values(self) -> dict[str, Any]:
        """Its tables as plain values."""
        return tomllib.loads(self.text)

    def set(
        self, table: str, values: Mapping[str, Value], comments: Mapping[str, str] | None = None
    ) -> None:
        """Set keys of ``[table]``, which is made when missing.

        Args:
            comments: key → what to say behind it; a key without one keeps the comment it has.
        """
        if table not in self._document:
            self._document.add(table, tomlkit.table())
        _fill(cast(Table, self._document[table]), values, comments or {})

    def set_queue(
        self, name: str, values: Mapping[str, Value], comments: Mapping[str, str] | None = None
    ) -> None:
        """Set keys of ``[queues.NAME]``, which is made when missing."""
        queues = self._queues()
        if name in queues:
            _fill(cast(Table, queues[name]), values, comments or {})
            return
        made = tomlkit.table()
        _fill(made, values, comments or {})
        made.add(tomlkit.nl())
        queues[name] = made

    def rename_queue(self, name: str, new: str) -> None:
        """Give ``[queues.NAME]`` another name; keys and comments stay."""
        queues = self._queues()
        table = queues[name]
        del queues[name]
        queues[new] = table

    def remove_queue(self, name: str) -> None:
        """Remove ``[queues.NAME]`` with all that stands in it."""
        del self._queues()[name]

    def _queues(self) -> Table:
        if "queues" not in self._document:
            self._document["queues"] = tomlkit.table(is_super_table=True)
        return cast(Table, self._document["queues"])


def _fill(table: Table, values: Mapping[str, Value], comments: Mapping[str, str]) -> None:
    for key, value in values.items():
        table[key] = value
        item = cast(Item, table.value.item(key))
        if key in comments:
            item.comment(comments[key])
        if item.trivia.comment:
            item.trivia.comment_ws = _gap(f"{key} = {item.as_string()}")


def _gap(text: str) -> str:
    return " " * max(2, _COLUMN - len(text))
