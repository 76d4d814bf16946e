"""The service's functions are tested on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from tests.store.conftest import (
    clock,
    migrated_postgres,
    migrated_sqlite,
    postgres_server,
    store,
    url,
)

__all__ = ["clock", "migrated_postgres", "migrated_sqlite", "postgres_server", "store", "url"]
