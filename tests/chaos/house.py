"""Where pilots of a run live: a Python of their own with a clock that can be set, and a network.

``[pilot] python`` names a script that gives each pilot a file with the error of its clock, which
``sitecustomize`` adds to ``time.time``, and a network namespace, then becomes the real Python. The
package knows nothing of it, nor do the programs, which run ``python -I -S``.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from tests.chaos.namespaces import Namespaces

_SCRIPT = """\
#!/bin/sh
# the Python of pilots in a chaos run; a node's own start has its pilot's clock already
if [ -z "$CHAOS_CLOCK" ]; then
    export CHAOS_CLOCK="@HOUSE@/clocks/$$" PYTHONPATH="@HOUSE@/patch"
    head -c 8 /dev/zero > "$CHAOS_CLOCK"
    for name in @NAMES@; do
        exec 9> "@HOUSE@/networks/$name"
        if flock -n 9; then
            echo "$name" > "@HOUSE@/networks/of.$$"
            exec ip netns exec "$name" "@PYTHON@" "$@"
        fi
    done
fi
exec "@PYTHON@" "$@"
"""
_PATCH = """\
import mmap
import os
import struct
import time

with open(os.environ["CHAOS_CLOCK"], "rb") as file:
    _error = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
_real, _double = time.time, struct.Struct("d")
time.time = lambda: _real() + _double.unpack_from(_error)[0]
"""


class House:
    """Made in ``directory``; ``namespaces`` are the networks, made already, or ``None``."""

    def __init__(self, directory: Path, namespaces: Namespaces | None) -> None:
        self.directory = directory
        self.namespaces = namespaces
        for name in ("clocks", "networks", "patch"):
            (directory / name).mkdir(parents=True)
        (directory / "patch" / "sitecustomize.py").write_text(_PATCH, encoding="utf-8")
        self.python = directory / "python"
        text = _SCRIPT
        for name, value in {
            "HOUSE": str(directory),
            "NAMES": " ".join(namespaces.names if namespaces else ()),
            "PYTHON": sys.executable,
        }.items():
            text = text.replace(f"@{name}@", value)
        self.python.write_text(text, encoding="utf-8")
        self.python.chmod(0o755)

    def set_clock(self, pilot: int, error: float) -> bool:
        """Let the clock of the pilot with this pid be wrong by ``error`` seconds."""
        try:
            with (self.directory / "clocks" / str(pilot)).open("r+b") as file:
                file.write(struct.pack("d", error))
        except FileNotFoundError:
            return False
        return True

    def network_of(self, pilot: int) -> str | None:
        """Namespace of the pilot with this pid."""
        path = self.directory / "networks" / f"of.{pilot}"
        return path.read_text(encoding="ascii").strip() if path.exists() else None
