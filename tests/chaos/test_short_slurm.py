"""What only Slurm and PostgreSQL can suffer, once each, and what is worst beside it."""

from __future__ import annotations

import pytest

from tests.chaos.plan import KINDS
from tests.chaos.short import chaos
from tests.postgres import PostgresServer, postgres_server
from tests.slurm_cluster import slurm_installed

__all__ = ["postgres_server", "slurm_installed"]
WORST = {"kill:pilot", "kill:service-owing"}


@pytest.mark.timeout(900)
def test_nothing_is_lost_and_nothing_is_done_twice(
    slurm_installed: None, postgres_server: PostgresServer
) -> None:
    """The servers of the fixtures only tell that they can be had: the run breaks its own."""
    kinds = [kind for kind in KINDS if kind.needs & {"slurm", "postgres"} or kind.name in WORST]
    chaos("slurm", "postgres", kinds)
