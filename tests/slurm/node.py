"""Run slurmd as the root of one node's processes: ``node.py slurmd ARGUMENT ...``.

Whatever loses its parent on the node comes below this process, as below a real node's init. So
the fixture can tell the nodes' processes from each other's, and end all of one node.
"""

import contextlib
import os
import subprocess
import sys

from balsam_celery.procs import become_subreaper


def main(argv: list[str]) -> int:
    """Start ``argv``, reap until nothing is left below, and return its exit status."""
    become_subreaper()
    slurmd = subprocess.Popen(argv)
    status = 0
    with contextlib.suppress(ChildProcessError):  # nobody is left
        while True:
            pid, code = os.wait()
            if pid == slurmd.pid:
                slurmd.returncode = status = os.waitstatus_to_exitcode(code)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
