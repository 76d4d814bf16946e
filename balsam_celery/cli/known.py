"""Names that exist: an unknown one is answered with the nearest known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from sqlalchemy import ColumnElement, Connection, select

from balsam_celery.errors import InvalidInput, NotFound
from balsam_celery.states import State
from balsam_celery.store import schema

#: Names that are looked through for the nearest one.
_ENOUGH = 2000


def nearest(word: str, known: Iterable[str]) -> str:
    """``": did you mean 'x'?"``, or nothing when nothing is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f": did you mean {found[0]!r}?" if found else ""


def parse_states(words: Iterable[str]) -> tuple[State, ...]:
    """States named by ``words``, each a state or several with commas between, in any case.

    Raises:
        InvalidInput: no such state; names the nearest.
    """
    states = []
    for word in (part.strip() for text in words for part in text.split(",")):
        name = word.upper().replace("-", "_")
        if name not in State.__members__:
            near = difflib.get_close_matches(name, State.__members__, n=1, cutoff=0.4)
            mend = f"did you mean {near[0]}?" if near else f"give one of {', '.join(State)}"
            raise InvalidInput(f"unknown state {word!r}: {mend}")
        states.append(State[name])
    return tuple(dict.fromkeys(states))


def check_tag(conn: Connection, tag: str) -> None:
    """Raise NotFound when no task carries ``tag``."""
    _check(conn, schema.tag.c.tag, tag, "no task has the tag")


def check_workflow(conn: Connection, workflow: str) -> None:
    """Raise NotFound when no task is of ``workflow``."""
    _check(conn, schema.task.c.workflow, workflow, "no task is of the workflow")


def check_name(conn: Connection, name: str) -> None:
    """Raise NotFound when no task has the name; a pattern may fit none."""
    if not set(name) & set("*?"):
        _check(conn, schema.task.c.name, name, "no task has the name")


def _check(conn: Connection, column: ColumnElement[str], value: str, words: str) -> None:
    if conn.execute(select(column).where(column == value).limit(1)).first() is None:
        known = conn.scalars(select(column).distinct().limit(_ENOUGH))
        raise NotFound(f"{words} {value!r}{nearest(value, known)}")
