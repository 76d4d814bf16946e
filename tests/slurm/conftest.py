"""Tests of this folder share one Slurm; those of one file also a site on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.live import LiveSite
from tests.site.tls_site import need_tls
from tests.slurm.live import LASTING, LAUNCHERS, QUICK, close_slurm_site, open_slurm_site
from tests.slurm_cluster import (
    SlurmCluster,
    own_slurm_cluster,
    slurm_cluster,
    slurm_installed,
)

__all__ = ["own_slurm_cluster", "slurm_cluster", "slurm_installed"]


@pytest.fixture(scope="module")
def slurm_site(
    request: pytest.FixtureRequest,
    slurm_cluster: SlurmCluster,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveSite]:
    """A site whose allocations are jobs of ``slurm_cluster``; tests of one file leave it up.

    A file that sets ``TLS`` has one whose nodes reach Redis by TLS.
    """
    tls = getattr(request.module, "TLS", False)
    if tls:
        need_tls()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in slurm_cluster.environment.items():
            patch.setenv(name, value)
        live = open_slurm_site(tmp_path_factory.mktemp("slurm") / "site", LASTING, tls=tls)
        try:
            yield live
        finally:
            close_slurm_site(live, slurm_cluster)


@pytest.fixture
def own_slurm_site(
    request: pytest.FixtureRequest,
    own_slurm_cluster: SlurmCluster,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveSite]:
    """A site on ``own_slurm_cluster``, for one test; with a parameter, of that launcher."""
    changes = {**QUICK, "launcher": LAUNCHERS[getattr(request, "param", "srun")]}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own_slurm_cluster.environment.items():
            patch.setenv(name, value)
        live = open_slurm_site(tmp_path_factory.mktemp("slurm") / "site", changes)
        try:
            yield live
        finally:
            close_slurm_site(live, own_slurm_cluster)
