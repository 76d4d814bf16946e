"""What is said to the database, written down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from balsam_celery.store.engine import Store


@contextmanager
def statements(store: Store) -> Iterator[list[tuple[str, Any]]]:
    """All statements that the store makes meanwhile, each with its values."""
    said: list[tuple[str, Any]] = []

    def listen(_conn: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        said.append((statement, parameters))

    event.listen(store.engine, "before_cursor_execute", listen)
    try:
        yield said
    finally:
        event.remove(store.engine, "before_cursor_execute", listen)
