"""What the tasks of a run do: write a line at the start and one at the end, and sleep between.

Run as ``python -I -S program.py DIRECTORY KIND CORES SECONDS [FAILED]``. Each line is one ``write``
to a file opened with O_APPEND, so that lines of thousands of processes never mix::

    start   NAME ATTEMPT RANK PID MONOTONIC WALL CORES
    end     NAME ATTEMPT RANK PID MONOTONIC WALL STATUS
    overlap NAME ATTEMPT RANK PID MONOTONIC WALL -
    told    NAME ATTEMPT RANK PID MONOTONIC WALL FAILED

NAME is the task's id; of its hooks, which are this program too, ``ID:STEP``. FAILED is the task
that an errback is told of. The lock on ``locks/NAME.RANK`` is held by all processes of an attempt:
if the next one cannot take it, some process of an earlier one lives, and ``overlap`` says so.
"""

import fcntl
import os
import signal
import sys
import time


class Pen:
    """Writes the lines of one run.

    Args:
        directory: of the ledger and the locks.
        name, attempt, rank: of the run.
    """

    def __init__(self, directory: str, name: str, attempt: str, rank: str = "0") -> None:
        self._who = f"{name} {attempt} {rank} {os.getpid()}"
        self._ledger = os.open(f"{directory}/ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.lock = os.open(f"{directory}/locks/{name}.{rank}", os.O_RDWR | os.O_CREAT, 0o600)

    def note(self, what: str, last: object, when: float | None = None) -> None:
        """Write one line; ``when``: by the monotonic clock, if not now."""
        times = f"{time.monotonic() if when is None else when:.6f} {time.time():.6f}"
        os.write(self._ledger, f"{what} {self._who} {times} {last}\n".encode())

    def start(self, cores: str, when: float | None = None) -> None:
        """The run begins, or did at ``when``; takes the lock."""
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        self.note("start", cores, when)
        if not alone:
            self.note("overlap", "-")

    def end(self, status: int) -> None:
        """The run is over; gives the lock back, unless somebody else of the run has it too."""
        self.note("end", status)
        os.close(self.lock)
        os.close(self._ledger)


def born() -> float:
    """When this process was, by the monotonic clock.

    A Python that starts on a loaded machine takes a second or more to its first line, in which who
    started it may be killed.
    """
    with open("/proc/self/stat", encoding="ascii") as stat:  # noqa: PTH123 - no slower start
        ticks = int(stat.read().rpartition(")")[2].split()[19])
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return ticks / os.sysconf("SC_CLK_TCK") - since_boot


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


def main(directory: str, kind: str, cores: str, seconds: str, failed: str = "") -> int:
    """Be a task of ``kind``, or a hook; the exit status is what that kind is to end with."""
    name, attempt = os.environ["BALSAM_TASK_ID"], os.environ["BALSAM_ATTEMPT"]
    hook = os.environ.get("BALSAM_STEP", "")
    pen = Pen(directory, f"{name}:{hook}" if hook else name, attempt, rank())
    pen.start(cores, born())
    if kind == "family":
        leave_children(pen.lock)
    time.sleep(float(seconds))
    if failed:
        pen.note("told", failed)
    fails_once = kind in ("flaky", "handled")
    fails = kind in ("fail", "told", "fails-twice") or (fails_once and attempt == "1")
    status = 3 if fails else 0
    pen.end(status)
    if hook == "handler":
        print("restart")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
