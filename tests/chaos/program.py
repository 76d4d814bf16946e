"""What the tasks of a run do: write a line at the start and one at the end, and sleep between.

Run as ``python -I -S program.py DIRECTORY KIND CORES SECONDS``. Each line is one ``write`` to a
file opened with O_APPEND, so that lines of thousands of processes never mix::

    start TASK ATTEMPT RANK PID MONOTONIC WALL CORES
    end   TASK ATTEMPT RANK PID MONOTONIC WALL STATUS
    overlap TASK ATTEMPT RANK PID MONOTONIC WALL -

The lock on ``locks/TASK.RANK`` is held by all processes of an attempt: if the next attempt cannot
take it, some process of an earlier one lives, and ``overlap`` says so.
"""

import fcntl
import os
import signal
import sys
import time


def rank() -> str:
    """Number of this rank, 0 where no launcher tells."""
    for name in ("PMI_RANK", "PMIX_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        if name in os.environ:
            return os.environ[name]
    return "0"


def leave_children(lock: int) -> None:
    """Processes in sessions of their own that ignore TERM and would live for minutes.

    One has nothing of its environment left (``env -i``); both hold the attempt's lock.
    """
    os.set_inheritable(lock, True)
    for bare in (False, True):
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if bare:
                os.chdir("/")
                os.execve("/bin/sleep", ["sleep", "300"], {})  # noqa: S606 - no shell is wanted
            time.sleep(300)
            os._exit(0)


def main(directory: str, kind: str, cores: str, seconds: str) -> int:
    """Be a task of ``kind``; the exit status is what that kind is to end with."""
    task, attempt = os.environ["BALSAM_TASK_ID"], os.environ["BALSAM_ATTEMPT"]
    ledger = os.open(f"{directory}/ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(what: str, last: object) -> None:
        times = f"{time.monotonic():.6f} {time.time():.6f}"
        os.write(
            ledger, f"{what} {task} {attempt} {rank()} {os.getpid()} {times} {last}\n".encode()
        )

    lock = os.open(f"{directory}/locks/{task}.{rank()}", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except BlockingIOError:
        alone = False
    note("start", cores)
    if not alone:
        note("overlap", "-")
    if kind == "family":
        leave_children(lock)
    time.sleep(float(seconds))
    status = 3 if kind in ("fail", "fails-twice") or (kind == "flaky" and attempt == "1") else 0
    note("end", status)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
