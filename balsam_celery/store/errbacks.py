"""Error callbacks: tasks that are inserted when another one fails.

A task's ``errbacks`` column holds a list of entries. An entry is compiled when the canvas is: the
rows to insert, with ids fixed, so that inserting them twice can be noticed. It is plain JSON::

    {"id": "<id of the errback's first row>",
     "rows": [{…fields of NewTask…, "receives": "nothing" | "id" | "failure"}, …]}

``receives`` is what comes before the row's own arguments: nothing, the id of the failed task (what
Celery hands to an errback of one argument), or the whole failure (for errbacks of three).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from balsam_celery.commands import render
from balsam_celery.store.insert import NewTask


def entry(rows: Sequence[NewTask], receives: Mapping[str, str]) -> dict[str, Any]:
    """The entry of an errback that consists of ``rows``.

    Args:
        rows: the errback's tasks, the first one first.
        receives: by row id, for those that wait for no other row.
    """
    plain = []
    for row in rows:
        fields = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
        defaults = {
            f.name: f.default_factory() if callable(f.default_factory) else f.default
            for f in dataclasses.fields(row)
        }
        changed = {name: value for name, value in fields.items() if value != defaults[name]}
        plain.append({**changed, "receives": receives.get(row.id, "nothing")})
    return {"id": rows[0].id, "rows": plain}


def instantiate(errback: Mapping[str, Any], failure: Mapping[str, Any]) -> list[NewTask]:
    """The rows to insert for ``errback`` because of ``failure``.

    Args:
        errback: an entry of the failed task's ``errbacks``.
        failure: the failed task's outcome (a dict with at least ``task_id``); for a step that
            raised, ``task_id`` and what Celery keeps of the exception.

    Raises:
        InvalidInput: the command asks for something that the failure does not have.
    """
    return [_row(dict(plain), failure) for plain in errback["rows"]]


def _row(fields: dict[str, Any], failure: Mapping[str, Any]) -> NewTask:
    receives = fields.pop("receives")
    arguments = fields.pop("arguments", {"args": [], "kwargs": {}})
    if receives != "nothing":
        first = failure["task_id"] if receives == "id" else dict(failure)
        arguments = {**arguments, "args": [first, *arguments["args"]]}
    row = NewTask(**fields, arguments=arguments)
    if row.kind != "program" or row.parents:
        return row
    argv = render(row.command, arguments["args"], arguments["kwargs"], row.literal)
    return dataclasses.replace(row, argv=argv)
