"""Names that several parts share: in Redis (everything a site puts there), of files and of marks.

Celery queue names are given without the site's prefix (kombu adds it, as ``global_keyprefix``);
the keys that we touch ourselves are given with it.
"""

from __future__ import annotations

SERVICE_QUEUE = "service"
TRANSITIONS_QUEUE = "transitions"
TASKS_QUEUE = "tasks"
#: Name, in worker host names and queues, of the worker that runs tasks over several nodes.
GANG = "gang"

#: How other names begin that we, Celery or kombu have in Redis beside the queues of steps.
_NAMES = (
    "inbox", "acks.", "control.", "heartbeat.", "limits.", "claim.", "begun.", "pilot.",
    "unacked", "_kombu", "celery-task", "chord-unlock",
)  # fmt: skip

#: Celery task whose message carries the queue that it is meant for (one that is moved or replayed
#: elsewhere must start nothing) and a bundle of 1…n :class:`balsam_celery.wire.TaskSpec`.
RUN = "balsam.run"
#: Celery task whose message carries, likewise, :class:`balsam_celery.wire.KillOrder` values.
KILL = "balsam.kill"
#: Celery task of the transitions worker.
TRANSITION = "balsam.transition"

#: Seconds that a pilot's heartbeats stay after the last of them.
HEARTBEATS_LAST = 86400

#: Variable that marks a hook's processes.
HOOK_MARK = "BALSAM_HOOK"
#: File in an allocation's directory with the one line that says why its pilot could not start.
ERROR_FILE = "error.txt"


def is_ours(queue: str) -> bool:
    """Whether a user's messages in a queue of that name would be in the way of the site's."""
    return queue in (SERVICE_QUEUE, TRANSITIONS_QUEUE) or queue.startswith(_NAMES)


def hooks_job(site: str) -> str:
    """Name of the job as which (``brands``) all hooks of the site with that id are branded."""
    return f"hooks.{site}"


def pilot_queue(pilot: str, node: str) -> str:
    """Celery queue of one worker of a pilot (``node`` may be :data:`GANG`)."""
    return f"pilot.{pilot}.{node}"


def worker_name(pilot: str, node: str) -> str:
    """Celery host name of one worker of a pilot, as ``celery status`` and Flower show it."""
    return f"{node}@{pilot}"


def inbox(prefix: str) -> str:
    """List: reports to the service (workers, pilots and clients push, the leader pops)."""
    return f"{prefix}inbox"


def acks(prefix: str, pilot: str, node: str) -> str:
    """List: JSON arrays of outcome numbers that the service has recorded."""
    return f"{prefix}acks.{pilot}.{node}"


def control(prefix: str, pilot: str) -> str:
    """List: orders to the pilot's main process (``wire.PilotOrder``)."""
    return f"{prefix}control.{pilot}"


def heartbeats(prefix: str, pilot: str) -> str:
    """Hash: field per worker (and ``pilot``) with its last :class:`wire.Heartbeat`."""
    return f"{prefix}heartbeat.{pilot}"


def limits(prefix: str, pilot: str) -> str:
    """Hash: concurrency of each worker, as placement sees it."""
    return f"{prefix}limits.{pilot}"


def claim(prefix: str, allocation: str) -> str:
    """String: native id of the one job that may serve an allocation; its pilot sets it first."""
    return f"{prefix}claim.{allocation}"


def hook_message(id: str) -> str:
    """Name, for :func:`begun`, of a message to the transitions worker; ``id`` is its Celery id."""
    return f"hook.{id}"


def step_message(id: str) -> str:
    """Name, for :func:`begun`, of a step's message; ``id`` is the task's."""
    return f"step.{id}"


def begun(prefix: str, name: str) -> str:
    """String: which copy of a message to a worker on the login node began last (``copies``)."""
    return f"{prefix}begun.{name}"
