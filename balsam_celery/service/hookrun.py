"""Runs one step of staging or one hook, on the transitions worker: files and programs, no SQL."""

from __future__ import annotations

import glob
import logging
import os
import subprocess
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from balsam_celery import brands, procs
from balsam_celery.copying import copy_file, copy_tree
from balsam_celery.keys import HOOK_MARK
from balsam_celery.unfit import gathered, passes, single
from balsam_celery.wire import TransitionEnded

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: What a handler may say, as the last line of its output.
VERDICTS = ("restart", "finish", "fail")
#: Bytes of a hook's output that its verdict and its reason are looked for in.
_TAIL = 4096
#: Characters of a reason.
_REASON = 500
#: Seconds between TERM and KILL.
_GRACE = 5.0
#: Seconds between looks whether a running program is to be killed.
_LOOK = 0.2
#: Seconds for which an order to end a step holds; it is repeated as long as it is wanted.
_HOLDS = 60.0


class Killed:
    """Steps that are to be ended, by the ids of their messages; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[str, tuple[float, float]] = {}  # order's time, its end by our own clock

    def add(self, ids: Collection[str], now: float) -> None:
        """End these, if their messages were sent before ``now`` (by the service's clock)."""
        ours = time.monotonic()
        with self._lock:
            self._told = {id: told for id, told in self._told.items() if told[1] > ours}
            self._told.update(dict.fromkeys(ids, (now, ours + _HOLDS)))

    def has(self, id: str, sent: float) -> bool:
        """Tell whether the step whose message was sent then is to be ended."""
        with self._lock:
            told = self._told.get(id)
        return told is not None and sent <= told[0] and time.monotonic() < told[1]


class Ends:
    """Ends that were told, should Redis forget the report; safe between threads."""

    def __init__(self, most: int = 1000) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._told: OrderedDict[str, tuple[float, TransitionEnded]] = OrderedDict()

    def note(self, id: str, since: float, ended: TransitionEnded) -> None:
        """The step whose message had that id has ended so for the wait that began then."""
        with self._lock:
            self._told[id] = since, ended
            self._told.move_to_end(id)
            while len(self._told) > self._most:
                self._told.popitem(last=False)

    def of(self, id: str, since: float) -> TransitionEnded | None:
        """How the step ended for that wait, if it was the last one here."""
        with self._lock:
            told = self._told.get(id)
        return told[1] if told is not None and told[0] == since else None


def run(
    order: Mapping[str, Any],
    environ: Mapping[str, str],
    timeout: float,
    killed: Callable[[], bool] = lambda: False,
    job: str = "",
) -> TransitionEnded:
    """Do what ``order`` (from ``service.hooks.order``) says.

    When this returns no process of the step lives, however long that takes. Its programs carry a
    mark and a brand; a caller that is a subreaper also reaps what they leave.

    Args:
        order: the step; JSON values.
        environ: variables for programs, without secrets.
        timeout: seconds; a program that takes longer is killed.
        killed: tells whether the step is to be ended; copying goes on to its end.
        job: brand of the site's hooks (``keys.hooks_job``); else that of this process.

    Returns:
        What to report; whatever goes wrong is in its ``reason``.
    """
    step = order["step"]
    verdict = None
    unfit = False
    try:
        if order.get("given_up") or order.get("killed") or killed():
            _end(_quarry(order, job), _GRACE)
            reason = f"{step}: {order.get('given_up') or 'killed'}"
        elif step == "stage_in":
            reason = _stage_in(order["hook"], Path(order["staged"]))
        elif step == "stage_out":
            reason = _stage_out(order["hook"], Path(order["work_dir"]))
        else:
            reason, verdict = _program(order, environ, timeout, killed, job)
    except (OSError, ValueError, RecursionError) as error:
        one = single(error) if isinstance(error, OSError) else error
        unfit = passes(one)
        reason = f"{step}: {_why(one if unfit else error)}"
    return TransitionEnded(
        id=order["id"],
        attempt=order["attempt"],
        step=step,
        ok=not reason,
        reason=reason or (f"the handler says {verdict}" if verdict else ""),
        verdict=verdict,
        time=time.time(),
        unfit=unfit,
    )


def _why(error: Exception) -> str:
    """One line, not too long, that names what is in the way."""
    if found := gathered(error):
        (_, why), *others = found
        text = f"{why}, and {len(others):,} more" if others else why
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror + (f": {error.filename}" if error.filename else "")
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())[:_REASON]


def _stage_in(entries: Sequence[Any], staged: Path) -> str:
    """Copy files and directories (patterns are filled) into ``staged``; returns what failed."""
    staged.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        source, target = entry, staged
        if isinstance(entry, dict):
            source, target = entry.get("from"), staged / str(entry.get("to", ""))
        if not isinstance(source, str) or not _is_inside(target, staged):
            return f"stage_in: {entry!r}: give a path, or {{'from': path, 'to': name}}"
        if reason := _copy(source, target, "stage_in"):
            return reason
    return ""


def _stage_out(entries: Sequence[Any], work_dir: Path) -> str:
    """Copy files out of ``work_dir``; returns what failed."""
    for entry in entries:
        if not (isinstance(entry, dict) and isinstance(entry.get("to"), str)):
            return f"stage_out: {entry!r}: give {{'from': pattern, 'to': directory}}"
        target = Path(entry["to"])
        target.mkdir(parents=True, exist_ok=True)
        source = glob.escape(str(work_dir)) + "/" + str(entry.get("from", "*"))
        if reason := _copy(source, target, "stage_out"):
            return reason
    return ""


def _is_inside(path: Path, directory: Path) -> bool:
    return path.resolve().is_relative_to(directory.resolve())


def _copy(source: str, target: Path, step: str) -> str:
    found = [Path(name) for name in sorted(glob.glob(source))]  # noqa: PTH207 - Path.glob takes no absolute pattern
    if not found:
        return f"{step}: there is no {source}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
    for path in found:
        place = target / path.name if target.is_dir() else target
        if path.is_dir():
            copy_tree(path, place)
        else:
            copy_file(path, place)
    return ""


def _mark(order: Mapping[str, Any]) -> str:
    return f"{HOOK_MARK}={order['id']}.{order['attempt']}.{order['step']}"


def _quarry(order: Mapping[str, Any], job: str) -> procs.Quarry:
    # the brand is the mark's text: no attempt of a task is named like it
    mark = frozenset({_mark(order)})
    return procs.Quarry(marks=mark, job=job, attempts=mark)


def _program(
    order: Mapping[str, Any],
    environ: Mapping[str, str],
    timeout: float,
    killed: Callable[[], bool],
    job: str,
) -> tuple[str, str | None]:
    """Run a hook's program; returns what failed, and a handler's verdict."""
    step, task_dir = order["step"], Path(order["task_dir"])
    directory = Path(order["staged"] if step == "preprocess" else order["work_dir"] or task_dir)
    directory.mkdir(parents=True, exist_ok=True)
    variables = {
        **environ,
        **order["environment"],
        "BALSAM_TASK_ID": order["id"],
        "BALSAM_TASK_NAME": order["name"],
        "BALSAM_ATTEMPT": str(order["attempt"]),
        "BALSAM_STEP": step,
        "BALSAM_STATE": order["state"],
        "BALSAM_REASON": order["reason"],
        "BALSAM_TASK_DIR": str(task_dir),
        "BALSAM_WORK_DIR": order["work_dir"] or "",
        "BALSAM_STAGED": order["staged"] or "",
    }
    # what an earlier life of this worker left of the same hook must not run beside it
    quarry = _quarry(order, job)
    _end(quarry, 0)
    name, _, value = _mark(order).partition("=")
    output = task_dir / f"{step}.{order['attempt']}.out"
    output.parent.mkdir(parents=True, exist_ok=True)
    process: subprocess.Popen[bytes] | None = None
    try:
        brand = brands.children_branded(job=job or None, attempt=_mark(order))
        with output.open("wb") as file, brand:
            process = subprocess.Popen(
                order["hook"],
                cwd=directory,
                env={**variables, name: value},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError:
        if process is None:
            raise
    # from here on no error means that it has not begun
    leaders: frozenset[procs.Identity] = frozenset()
    try:
        leaders = frozenset(filter(None, (_insist(lambda: procs.identity(process.pid)),)))
        code = _wait(process, timeout, killed)
        if code is None:
            return f"{step}: killed", None
    except subprocess.TimeoutExpired:
        return f"{step}: it took longer than {timeout:.0f} s", None
    finally:
        _end(replace(quarry, roots=leaders, sessions=leaders), _GRACE)
        process.wait()
        _insist(lambda: _reap(job, _mark(order)))
    try:
        last = _last_line(output)
    except OSError as error:  # it has run, and must not again
        last = f"{output} cannot be read: {error.strerror}"
    if code != 0:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        return f"{step}: {how}: {last}", None
    if step != "handler":
        return "", None
    if last not in VERDICTS:
        return f"handler: its last line is {last!r}, not one of {', '.join(VERDICTS)}", None
    return "", last


def _end(quarry: procs.Quarry, grace: float) -> None:
    """End processes; when this returns none of them lives."""
    _insist(lambda: procs.end_all(quarry, grace=grace))


def _insist(act: Callable[[], T]) -> T:
    """Do it, however long the machine has no memory or no descriptor left for that."""
    told = False
    while True:
        try:
            return act()
        except OSError as error:
            if not told:
                logger.warning(
                    "the processes of a hook cannot be looked after: %s: trying again", error
                )
            told = True
            time.sleep(_LOOK)


def _reap(job: str, attempt: str) -> None:
    """Reap what came to this process when its parent died; its leader has been reaped."""
    for pid in brands.branded(procs.children_of(os.getpid()), job=job, attempts=[attempt]):
        procs.reap(pid)


def _wait(
    process: subprocess.Popen[bytes], timeout: float, killed: Callable[[], bool]
) -> int | None:
    """The program's exit code; ``None``: it is to be killed.

    Raises:
        subprocess.TimeoutExpired: it takes too long.
    """
    deadline = time.monotonic() + timeout
    while not killed():
        left = deadline - time.monotonic()
        try:
            return process.wait(min(_LOOK, max(0.0, left)))
        except subprocess.TimeoutExpired:
            if left <= _LOOK:
                raise
    return None


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip()[:_REASON] for line in reversed(lines) if line.strip()), "")
