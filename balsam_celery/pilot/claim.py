"""A pilot's first act: it claims its allocation, so that two jobs never serve the same one.

Where a scheduler's answer to a submission was lost, and the scheduler cannot be asked by name, the
claim also tells the service which job it was.
"""

from __future__ import annotations

import logging
import signal
import time

import redis

from balsam_celery import keys
from balsam_celery.celeryapp import redis_client
from balsam_celery.pilot.context import PilotContext

logger = logging.getLogger(__name__)

#: Seconds between tries while Redis does not answer.
_PAUSE = 1.0
#: Seconds that a claim outlives its allocation, unless the service deletes it before. It does where
#: the pilot came to registering; and for that long a submission in doubt may still be looked into.
_LASTS = 30 * 86400
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class NotClaimed(Exception):
    """The pilot must not run; says why.

    Attributes:
        taken: another job serves the allocation: nothing is wrong.
    """

    def __init__(self, reason: str, *, taken: bool) -> None:
        super().__init__(reason)
        self.taken = taken


def claim(context: PilotContext) -> None:
    """Claim the allocation for this job; waits for Redis as long as that makes sense.

    Raises:
        NotClaimed: it is another job's, or Redis refused the password or did not answer in time, or
            a signal came.
    """
    if not context.native_id:
        return
    settings = context.site.settings
    key = keys.claim(settings.key_prefix, context.allocation)
    told = False
    # read at once, so that the pilot can be told to end while it waits
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    client = redis_client(context.site, timeout=5.0)
    try:
        while True:
            try:
                left = max(0, int(context.end_time - time.time()))
                client.set(key, context.native_id, nx=True, ex=left + _LASTS)
                holder = client.get(key)
                break
            except redis.AuthenticationError as error:
                # no time mends it, and the user must see it
                raise NotClaimed(
                    f"Redis refuses the site's password: {error}", taken=False
                ) from None
            except (redis.RedisError, OSError) as error:
                if not told:
                    logger.error("Redis cannot be reached, trying again: %s", error)
                told = True
            if time.time() + settings.pilot.drain_margin >= context.end_time:
                raise NotClaimed("Redis could not be reached until the end", taken=False)
            if (received := signal.sigtimedwait(_ENDING, _PAUSE)) is not None:
                name = signal.Signals(received.si_signo).name
                raise NotClaimed(f"{name} received before Redis was reached", taken=False)
    finally:
        client.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if isinstance(holder, bytes) and holder.decode(errors="replace") != context.native_id:
        served = holder.decode(errors="replace")
        reason = f"allocation {context.allocation} is served by job {served}"
        raise NotClaimed(reason, taken=True)
