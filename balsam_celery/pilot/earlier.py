"""What an earlier life of a worker received and never ended: it ends as lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping

from balsam_celery.launchers.steps import end_steps
from balsam_celery.pilot.ranks import step_name
from balsam_celery.wire import Ended

#: Seconds between tries to make sure that job steps have ended.
_STEP_PAUSE = 1.0
#: (task, number of the attempt).
Key = tuple[str, int]
#: Ends what lives of an attempt on these nodes; returns "", or what nobody has confirmed.
SweepNodes = Callable[[Key, tuple[str, ...], float], str]


class Earlier:
    """Those attempts.

    Before a worker is started in place of one that died, all nodes were swept that could be asked.
    An attempt that was on another one too is over once that node has confirmed, or the scheduler
    has given it up (R4). Job steps that its program has made are known to Slurm alone.

    Args:
        attempts: which, with the nodes of those that span several.
        silent: nodes that could not be asked.
        sweep: asks nodes; needed only where there are such.
        put: takes outcomes.
        slurm: environment of the job in which programs may have made steps of their own, which
            nobody has ended yet.
    """

    def __init__(
        self,
        attempts: Mapping[Key, tuple[str, ...]],
        silent: Collection[str],
        sweep: SweepNodes | None,
        put: Callable[[Ended], None],
        slurm: Mapping[str, str] | None = None,
    ) -> None:
        self._attempts = attempts
        self._sweep = sweep
        self._put = put
        self._silent = frozenset(silent)
        self._slurm = slurm

    def end(self) -> None:
        """End those that are over now, and begin to wait for the others."""
        if self._attempts and self._slurm is not None:
            threading.Thread(
                target=self._end_steps, args=(self._slurm,), name="earlier", daemon=True
            ).start()
        else:
            self._end()

    def _end_steps(self, slurm: Mapping[str, str]) -> None:
        names = {step_name(*key) for key in self._attempts}
        while not end_steps(names, slurm):
            time.sleep(_STEP_PAUSE)
        self._end()

    def _end(self) -> None:
        for key, nodes in self._attempts.items():
            if self._sweep is not None and not self._silent.isdisjoint(nodes):
                threading.Thread(
                    target=self._await, args=(key,), name="earlier", daemon=True
                ).start()
            else:
                self._put(_lost(key))

    def _await(self, key: Key) -> None:
        assert self._sweep is not None, "it is waited for"
        if not self._sweep(key, self._attempts[key], 0.0):
            self._put(_lost(key))


def _lost(key: Key) -> Ended:
    return Ended(*key, "lost", "its worker died", ended=time.time())
