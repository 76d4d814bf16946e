"""A site whose Redis is reached by TLS at an address of the network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from balsam_celery.errors import SiteError
from balsam_celery.redisaddress import find_address
from balsam_celery.redisserver import find_server
from balsam_celery.settings import LocalSettings
from balsam_celery.site import Site
from balsam_celery.siteinit import init
from tests.toml_keys import set_keys


def need_tls() -> None:
    """Skip, or fail when CI=true, where no redis-server has TLS."""
    try:
        find_server("", tls=True)
    except SiteError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


def address() -> str:
    """This machine's address in its network, or one of the loopback where it is in none."""
    try:
        return find_address()
    except SiteError:
        return "127.0.0.2"


def make_tls_site(directory: Path, local: LocalSettings | None = None) -> Site:
    """A site that has TLS, and no certificates yet."""
    site = init(directory, name="tls", local=local)
    return set_keys(site, "redis", host=f'"{address()}"', tls="true", trusted_network="false")
