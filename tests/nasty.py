"""Programs that try to outlive whoever ends them; each leaves its pids in a file, a line each.

Run as ``python nasty.py KIND FILE``.
"""

import os
import signal
import sys
import time

KINDS = ("plain", "deaf", "session", "orphan", "nameless", "stopped", "threads", "storm")


def note(path: str) -> None:
    """Write down that this process exists."""
    with open(path, "a", encoding="ascii") as file:  # noqa: PTH123 - start-up time matters here
        file.write(f"{os.getpid()}\n")


def last(path: str) -> None:
    """Exist, deaf to TERM, for longer than any test."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    note(path)
    time.sleep(300)


def double_fork(path: str, *, clean: bool) -> None:
    """Leave a process that has no parent, session or, if ``clean``, environment of ours."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            if clean:
                command = [sys.executable, __file__, "deaf", path]
                os.execve(command[0], command, {})  # noqa: S606 - no shell, as meant
            last(path)
        os._exit(0)
    os.wait()


def storm(path: str) -> None:
    """Fork and fork, each time out of the session, at most 400 processes in all."""
    for _ in range(200):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                last(path)
            os._exit(0)
        os.wait()
    last(path)


def main(kind: str, path: str) -> None:
    """Be nasty in the way named ``kind``."""
    if kind == "plain":
        note(path)
        time.sleep(300)
    elif kind == "deaf":
        last(path)
    elif kind == "session":
        if os.fork() == 0:
            os.setsid()
            last(path)
        last(path)
    elif kind in ("orphan", "nameless"):
        double_fork(path, clean=kind == "nameless")
        note(path)
    elif kind == "stopped":
        note(path)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "threads":
        import ctypes  # only here: it takes as long to load as all the rest
        import threading

        threading.Thread(target=last_thread, args=(path,)).start()
        ctypes.CDLL(None).pthread_exit(None)
    elif kind == "storm":
        storm(path)


def last_thread(path: str) -> None:
    """Outlive the main thread."""
    note(path)
    time.sleep(300)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
