"""A keeper's log on a disk that is full for a while."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.waiting import wait_until

#: Logs each line that it reads, and says when that was taken from the pipe.
LOGS = """\
import fcntl, logging, os, pathlib, sys, termios, time
from balsam_celery.pilot.keeperlog import KeeperLog
said = os.dup(1)
log = KeeperLog(pathlib.Path(sys.argv[1]), "INFO")
for line in sys.stdin:
    logging.getLogger("test").error(line.strip())
    until = time.monotonic() + 5
    while any(fcntl.ioctl(2, termios.FIONREAD, bytes(4))) and time.monotonic() < until:
        time.sleep(0.01)
    os.write(said, b"taken\\n")
log.close()
"""


def test_it_goes_on_after_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    with subprocess.Popen(
        [sys.executable, "-c", LOGS, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def log(line: str) -> None:
            print(line, file=process.stdin, flush=True)
            assert process.stdout is not None
            assert process.stdout.readline() == "taken\n"

        try:
            log("first")
            path.unlink()
            log("second")
            wait_until(lambda: path.exists() and "second" in path.read_text(), 20, "it is written")
            log("third")
            process.stdin.close()
            assert process.wait(30) == 0
        finally:
            process.kill()
    told, *rest = path.read_text().split("\n")[1:-1]
    assert told == "lines that could not be written: 1 (No space left on device)"
    assert [line.rpartition(" ")[2] for line in rest] == ["second", "third"]
