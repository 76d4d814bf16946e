"""A site in a directory with a nasty name, up, where other users could reach it; an engine."""

from __future__ import annotations

from tests.service.running.conftest import app, clock, make_engine, player, site
from tests.store.conftest import migrated_postgres, migrated_sqlite, postgres_server, store, url

__all__ = [
    "app", "clock", "make_engine", "migrated_postgres", "migrated_sqlite", "player",
    "postgres_server", "site", "store", "url",
]  # fmt: skip
