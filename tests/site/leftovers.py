"""Whether anything of a site still runs, and a site of which nothing may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_celery import procs
from balsam_celery.site import Site, find
from balsam_celery.siteinit import init
from balsam_celery.supervisor import children, down

#: Roles of a site's processes.
ALL = (children.SUPERVISOR, *children.NAMES)


def left_running(site: Site) -> dict[int, str]:
    """All processes that carry a mark of the site, of whatever role."""
    found = procs.marked({children.mark(site, name) for name in ALL})
    return {pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in found}


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Site]:
    """A site that has never been up."""
    site = init(tmp_path / "fresh")
    yield site
    down(find(site.directory))
    assert left_running(site) == {}
