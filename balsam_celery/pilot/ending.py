"""The end of attempts, on every node that they were on (R8)."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from balsam_celery import brands, procs
from balsam_celery.launchers import Launcher
from balsam_celery.launchers.steps import end_step
from balsam_celery.pilot.attempt import Attempt, rank_mark
from balsam_celery.pilot.process import (
    Spawner,
    end_all,
    end_in_background,
    named,
    signal_all,
    union,
)
from balsam_celery.pilot.ranks import step_name
from balsam_celery.procs import Identity, Quarry

logger = logging.getLogger(__name__)

#: Ends every process of an attempt on all its nodes with TERM, grace, KILL, or, given a signal but
#: 0, only sends that to its ranks; returns "" once all of them have confirmed, or, when the pilot
#: ends before, what was not confirmed.
Sweep = Callable[[Attempt, float, int], str]
#: Seconds that a launcher has for its own end once its ranks are gone.
_LAUNCHER_ENDS_WITHIN = 5.0
_POLL_FIRST, _POLL_LONGEST = 0.02, 2.0  # seconds
_TOLD_POLL = 0.25  # seconds
#: Seconds after which a step that does not end is named in the log, again and again.
_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Launched:
    """How the ranks of an attempt were started.

    Attributes:
        launcher: by whom; of kind ``none``: the program itself, on several hosts.
        step: the job step that they are; empty: none.
        elsewhere: some of them are, or may be, on other hosts.
        ending: held by who ends them.
    """

    launcher: Launcher
    step: str = ""
    elsewhere: bool = False
    ending: threading.Lock = field(default_factory=threading.Lock)

    @property
    def are_children(self) -> bool:
        """All processes of the attempt descend from the worker, however they leave their parent."""
        return not self.step and not self.elsewhere


class Ending:
    """Ends attempts of one worker.

    A launcher is no way to end ranks gently: at a TERM ``srun`` kills them at once, and a killed
    one leaves them behind. So ranks get TERM themselves, on all nodes, and KILL when the grace is
    over; then their job step is ended, and only then what is left of the launcher.

    A program without a launcher may have made job steps itself. Where an ``srun`` of it runs, the
    steps of the attempt's name are ended too: a killed one leaves its ranks to Slurm, on any node.

    Programs with a ``checkpoint_grace`` are told first: they get the signal that they have named,
    and so long until TERM. Not longer than until ``last_moment``, nor when this worker's parent
    has died, for then others may soon take its tasks for ended.

    Args:
        spawner: whose programs they are.
        environment: of the allocation, for the scheduler's commands.
        sweep: reaches other nodes; ``None`` for a worker whose attempts have this one alone.
        last_moment: when the pilot stops what runs, seconds since the epoch.
    """

    def __init__(
        self,
        spawner: Spawner,
        environment: Mapping[str, str],
        sweep: Sweep | None,
        last_moment: float = float("inf"),
    ) -> None:
        self._spawner = spawner
        self._environment = environment
        self._sweep = sweep
        self._last_moment = last_moment
        self._parent = os.getppid()

    def begin(self, attempts: Sequence[Attempt], *, gently: bool = True) -> None:
        """Begin to end running attempts; whoever waits for a leader then calls :meth:`end`.

        ``gently``: there is time for those that want to be told first, but for lost ones.
        """
        self._note_own_steps(attempts)
        told = [
            one
            for one in attempts
            if gently and one.spec.checkpoint_grace and (one.verdict or ("",))[0] != "lost"
        ]
        if told:
            now, left = time.monotonic(), self._last_moment - time.time()
            for attempt in told:
                attempt.told_until = now + min(attempt.spec.checkpoint_grace, left)
            threading.Thread(
                target=self._tell_and_end, args=(told,), name="killer", daemon=True
            ).start()
        attempts = [attempt for attempt in attempts if attempt not in told]
        direct = [attempt for attempt in attempts if attempt.launched is None]
        if direct:
            grace = max(attempt.spec.kill_grace for attempt in direct)
            end_in_background(
                [attempt.quarry for attempt in direct],
                grace,
                lambda: self._note_own_steps(direct),
            )
        for attempt in attempts:
            if attempt.launched is not None:
                arguments = (attempt, attempt.spec.kill_grace)
                threading.Thread(
                    target=self.end, args=arguments, name="killer", daemon=True
                ).start()

    def _tell_and_end(self, told: Sequence[Attempt]) -> None:
        """Signal programs, all by one look at the processes, and end those that do not end.

        A look takes long where thousands run: were there one for each, the last of many programs
        would hear of it too late.
        """
        by_signal: dict[int, list[Attempt]] = {}
        for attempt in told:
            number, launched = attempt.spec.end_signal, attempt.launched
            by_signal.setdefault(number, []).append(attempt)
            if launched is not None and launched.elsewhere and self._sweep is not None:
                arguments = (attempt, 0.0, number)
                threading.Thread(
                    target=self._sweep, args=arguments, name="sweeper", daemon=True
                ).start()
        for number, attempts in by_signal.items():
            signal_all(union(map(_programs, attempts)), number)
        # those whose leader has ended are ended by who waits for it
        while told := [one for one in told if one.leader_lives]:
            now = time.monotonic()
            orphaned = os.getppid() != self._parent
            if due := [one for one in told if orphaned or one.told_until <= now]:
                self.begin(due, gently=False)
                told = [one for one in told if one not in due]
            else:
                time.sleep(min(_TOLD_POLL, *(one.told_until - now for one in told)))

    def _await_checkpoint(self, attempt: Attempt) -> None:
        """Give a program that was told of its end the time that it was granted.

        A program may be a script that ends before those that it has started.
        """
        pause = _POLL_FIRST
        one: Identity | None = None
        while (left := attempt.told_until - time.monotonic()) > 0:
            if os.getppid() != self._parent:
                return
            if one is None or not procs.alive(one):
                one = self._survivor(attempt)
            if one is None:
                return
            time.sleep(min(pause, left))
            pause = min(2 * pause, _TOLD_POLL)

    def _survivor(self, attempt: Attempt) -> Identity | None:
        """Some process by which an attempt goes on; all are looked at only where that must be."""
        if attempt.leader_lives:
            return attempt.leader
        launched = attempt.launched
        if launched is not None and launched.launcher.kind != "none":
            return None  # it waits for its ranks on all nodes
        if launched is None:
            if (orphan := self._spawner.orphan_of(attempt.brand)) is not None:
                return orphan
            if not self._spawner.left_behind(attempt.brand):
                return None
        return next(iter(procs.find(attempt.quarry)), None)

    def end(self, attempt: Attempt, grace: float, *, by_itself: bool = False) -> None:
        """End every process of the attempt; returns once none lives on any of its nodes.

        As long as the scheduler cannot tell that a job step is over, it is not, and this does not
        return: the worker's own end, which ends the pilot's job in the end, is what ends that.

        Args:
            grace: seconds between TERM and KILL.
            by_itself: its launcher has ended as it does when its ranks have; then its job step is
                over, and only what ranks may have left behind is looked for.
        """
        launched = attempt.launched
        self._await_checkpoint(attempt)
        self._note_own_steps([attempt])

        def note() -> None:
            self._note_own_steps([attempt])

        if launched is None:
            end_all(attempt.quarry, grace, self._spawner, note)
            if attempt.own_steps:
                self._end_steps(attempt)
            return
        with launched.ending:
            sweeping = self._begin_sweep(attempt, launched, grace)
            end_all(
                _programs(attempt),
                grace,
                self._spawner if launched.launcher.kind == "none" else None,
                note,
            )
            if sweeping is not None:
                sweeping.join()
            if by_itself and not attempt.own_steps:
                end_all(attempt.quarry, grace, self._spawner)
                return
            self._await_launcher(attempt)
            self._end_steps(attempt)
            again = self._begin_sweep(attempt, launched, 0)
            if again is not None:
                again.join()

    def _begin_sweep(
        self, attempt: Attempt, launched: Launched, grace: float
    ) -> threading.Thread | None:
        if not launched.elsewhere or self._sweep is None:
            return None
        thread = threading.Thread(
            target=self._sweep, args=(attempt, grace, 0), name="sweeper", daemon=True
        )
        thread.start()
        return thread

    def _await_launcher(self, attempt: Attempt) -> None:
        """Give the launcher of ranks that are gone time for its own end, and its exit status."""
        deadline = time.monotonic() + _LAUNCHER_ENDS_WITHIN
        while attempt.pid is not None and not attempt.over and time.monotonic() < deadline:
            if procs.identity(attempt.pid) is None:
                return
            time.sleep(_POLL_FIRST)

    def _note_own_steps(self, attempts: Sequence[Attempt]) -> None:
        """See which programs have an ``srun``.

        Before the first signal, at which it may end and leave its ranks, and again before TERM and
        KILL: a program may have started one since.
        """
        direct = [one for one in attempts if one.launched is None or not one.launched.step]
        if direct and "SLURM_JOB_ID" in self._environment and (running := named("srun")):
            for attempt in direct:
                if brands.branded(running, attempts=[attempt.brand]):
                    attempt.own_steps = True

    def _end_steps(self, attempt: Attempt) -> None:
        # the second time for what a launcher was about to start when it was killed
        for _ in range(2):
            self._end_step(attempt)
            end_all(attempt.quarry, 0, self._spawner)

    def _end_step(self, attempt: Attempt) -> None:
        launched = attempt.launched
        if attempt.own_steps:
            step, ended = step_name(*attempt.key), end_step
        elif launched is not None and launched.step:
            step, ended = launched.step, launched.launcher.end_step
        else:
            return
        pause = _POLL_FIRST
        complain_at = time.monotonic() + _PATIENCE
        while not ended(step, self._environment):
            # a step of Slurm waits a minute for the output that a process of it holds which it has
            # lost sight of
            end_all(attempt.quarry, 0, self._spawner)
            if time.monotonic() > complain_at:
                logger.error(
                    "attempt %s: whether its job step %s is over cannot be told: asking on",
                    attempt.brand,
                    step,
                )
                complain_at += _PATIENCE
            time.sleep(pause)
            pause = min(2 * pause, _POLL_LONGEST)


def _programs(attempt: Attempt) -> Quarry:
    """The processes of an attempt on this node, without a launcher's own."""
    launched = attempt.launched
    if launched is None or launched.launcher.kind == "none":
        return attempt.quarry
    return Quarry(marks=frozenset((rank_mark(attempt.brand),)))
