"""A site and its service for each test, and a shared pilot where tests do not disturb it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pilot.cluster import Cluster
from tests.pilot.service import Pilot, Service, make_site
from tests.redis_server import RedisServer


@pytest.fixture
def service(tmp_path: Path, redis_server: RedisServer) -> Iterator[Service]:
    service = Service(make_site(tmp_path / "site", redis_server), redis_server)
    yield service
    service.close()


@pytest.fixture(scope="module")
def pilot(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Pilot]:
    """A pilot of one node with two cores, shared by the tests of a module."""
    directory = tmp_path_factory.mktemp("pilot") / "site"
    service = Service(make_site(directory, redis_server), redis_server)
    try:
        yield service.start([2])
    finally:
        service.close()


@pytest.fixture
def cluster(tmp_path: Path, redis_server: RedisServer) -> Cluster:
    """A site whose pilots run over hosts that are names on this machine."""
    pytest.importorskip("mpi4py")
    return Cluster(tmp_path / "cluster", redis_server, start_timeout=40, silence_timeout=20)


@pytest.fixture
def head(cluster: Cluster, redis_server: RedisServer) -> Iterator[Service]:
    """The service of that site."""
    service = Service(cluster.site, redis_server)
    yield service
    service.close()


@pytest.fixture
def children() -> Iterator[list[int]]:
    found: list[int] = []
    yield found
    for pid in found:
        os.waitpid(pid, 0)
