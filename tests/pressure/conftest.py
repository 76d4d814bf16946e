"""A site that is up, on small disks where this user may mount some."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from balsam_celery.settings import LocalSettings
from balsam_celery.supervisor import records
from tests.acceptance.live import LiveSite, live_site

#: Bytes of the disk with the site (logs, SQL, Redis), and of the one with the run directory.
SIZES = {"site": 400_000_000, "run": 300_000_000}


class SmallDisks:
    """Two directories; file systems of their own if ``mounted``."""

    def __init__(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="balsam-small-"))
        self.mounted: list[Path] = []
        for name, size in SIZES.items():
            (self.top / name).mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.top / name)]
            if os.geteuid() == 0 and not subprocess.run(command, capture_output=True).returncode:
                self.mounted.append(self.top / name)

    @contextmanager
    def full(self, name: str) -> Iterator[None]:
        """No byte is left on a disk; skips the test where that cannot be."""
        disk = self.top / name
        if disk not in self.mounted:
            pytest.skip("cannot mount a small file system here")
        filler = disk / "filler"
        try:
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                for block in (b"x" * 1_000_000, b"x" * 4096, b"x"):
                    with suppress(OSError):
                        while True:
                            file.write(block)
            yield
        finally:
            filler.unlink(missing_ok=True)

    def remove(self) -> None:
        """Take all of it away."""
        for disk in self.mounted:
            subprocess.run(["umount", str(disk)], check=True)
        shutil.rmtree(self.top)


@pytest.fixture(scope="package")
def disks() -> Iterator[SmallDisks]:
    made = SmallDisks()
    yield made
    made.remove()


@pytest.fixture(scope="package")
def live(disks: SmallDisks) -> Iterator[LiveSite]:
    """The site; tests leave it up and idle."""
    directory = disks.top / "site" / "site"
    directory.mkdir(mode=0o700)
    with live_site(
        directory,
        LocalSettings(nodes=1, cores_per_node=4),
        disks.top / "site",
        max_nodes="1",
        run_dir=f'"{disks.top}/run/run"',
        default_wall_time='"5m"',
        max_wall_time='"60m"',
        idle_timeout='"5m"',
        kill_grace='"2s"',
        poll_interval='"1s"',
        interval='"1s"',
        enabled="false",  # Flower
    ) as opened:
        yield opened


@pytest.fixture
def steady(live: LiveSite) -> Iterator[Callable[[str], int]]:
    """Memory of a process of the site in bytes; none of them is started again in the test."""
    before = {name: records.read(live.site, name) for name in ("service", "redis", "beat")}

    def memory(name: str) -> int:
        record = records.read(live.site, name)
        assert record is not None and record.process is not None
        return memory_of(record.process.pid)

    yield memory
    for name, record in before.items():
        now = records.read(live.site, name)
        assert record is not None and now is not None
        assert now.process == record.process, f"{name} was started again: {now.last_exit}"


def memory_of(pid: int) -> int:
    """Resident memory in bytes, of a process and its children."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(memory_of(int(child)) for child in children)
