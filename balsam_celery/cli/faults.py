"""Faults of our own: the traceback goes to a file, the user gets a line that names it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from pathlib import Path


def report_fault(error: Exception) -> str:
    """Write the traceback of an unexpected ``error`` to a file and return a line about both."""
    what = f"unexpected {type(error).__name__}: {error}"
    text = (
        f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} balsam {' '.join(sys.argv[1:2])}\n"
        + "".join(traceback.format_exception(error))
    )
    for directory in _places():
        path = directory / "balsam-cli.log"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600
            )
            with os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace") as log:
                log.write(text)
        except OSError:
            continue  # not writable (a full disk, another's directory): try the next place
        return f"{what} (traceback in {path}; BALSAM_DEBUG=1 shows it)"
    return f"{what} (BALSAM_DEBUG=1 shows the traceback)"


def _places() -> list[Path]:
    """Directories for the log: the user's state directory, else a private temporary one."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    places = [Path(state).expanduser() / "balsam"]
    own = Path(tempfile.gettempdir()) / f"balsam-{os.getuid()}"
    if not own.exists() or own.lstat().st_uid == os.getuid():
        places.append(own)
    return places
