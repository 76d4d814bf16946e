"""How long what runs on a node goes on once the node has lost its pilot. Pure.

Nobody else may start a task of a node that is cut off before that time is over (R4).
"""

from __future__ import annotations

#: Seconds beyond the kill grace after which a stopping worker is killed.
STOP_SLACK = 20.0
#: Seconds for what cannot be counted.
_MARGIN = 30.0
#: Signs of life within the longest silence: a few may be late.
_BEATS = 6


def beat_every(silence_timeout: float) -> float:
    """Seconds between signs of life on the link between head and node.

    After a silence of ``silence_timeout`` seconds either end gives the other up.
    """
    return silence_timeout / _BEATS


def over_after(kill_grace: float, silence_timeout: float) -> float:
    """Seconds after the break of a link at the head by which its node has ended everything.

    It takes the silence for the node to see it, a grace for the worker's own end of its programs,
    the slack until the worker is killed, a grace for ranks of tasks over several nodes, and one for
    what these have left. All attempts have these graces at once.

    One thing may take longer: a rank of a task over several nodes whose program has emptied its
    environment (``env -i``) and left no process beside it that has not. The node knows it by the
    gang worker's outbox alone, which it cannot read while the shared file system hangs.

    It is the same where the node's end has closed the link: the kernel does that too for a keeper
    that was killed, and its worker, which has to end the programs then, may hang.
    """
    return silence_timeout + 3 * kill_grace + STOP_SLACK + _MARGIN
