"""Each kind of fault once, on a local site with SQLite."""

from __future__ import annotations

import pytest

from tests.chaos.plan import KINDS
from tests.chaos.short import chaos


@pytest.mark.timeout(900)
def test_nothing_is_lost_and_nothing_is_done_twice() -> None:
    chaos("local", "sqlite", KINDS)
