"""What an explanation is made of, and what comes out.  Values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from balsam_celery.packing import Request
from balsam_celery.placement import Reservation
from balsam_celery.service.backoff import Pause
from balsam_celery.store.rows import AllocationRow, AttemptRow, PilotRow, TaskRow
from balsam_celery.store.standing import Ahead


@dataclass(frozen=True, slots=True)
class Why:
    """Why something is where it is; times in seconds since the epoch.

    Attributes:
        code: one word for programs; ``docs/cli-json.md`` lists them.
        text: one or two sentences for people.
        parents: those that a task waits for, or failed with; the first few.
        allocation: id of the one that runs it, or is to.
        pilot: id of the one that runs it, or is to.
        nodes: names of those on which it runs, or which are kept for it.
        expected_start: when it, or what it waits for, is expected to start.
        latest_end: when it has ended at the latest.
        ahead: what goes before it.
    """

    code: str
    text: str
    parents: tuple[TaskRow, ...] = ()
    allocation: str | None = None
    pilot: str | None = None
    nodes: tuple[str, ...] = ()
    expected_start: float | None = None
    latest_end: float | None = None
    ahead: Ahead | None = None


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """What of the site moves things on.

    Attributes:
        service: a service holds its lease.
        beat: beat holds its lease.
        redis: why Redis does not answer; ``""`` when it does.
    """

    service: bool = True
    beat: bool = True
    redis: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """What holds an allocation that waits, and what the scheduler says of it.

    Attributes:
        expected_start: when it expects to start it, ``None`` when it does not say.
        trouble: why it could not be asked; ``""`` when it was.
        full: ``max_running`` of its queue where as many run; 0: it may run more.
    """

    expected_start: float | None = None
    trouble: str = ""
    full: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """What placement and packing make of a program that waits for slots.

    Attributes:
        hopeless: why no allocation that the site allows could hold it; ``""``: some could.
        ahead: what goes before it.
        starts: id of the pilot in which the next pass starts it; ``""``: none.
        reservation: what placement keeps for it.
        fits: pilots in which it could start if nothing ran there.
        planned: the allocation into which packing pours it.
        pilot: the one that runs in it.
        job: what holds that one, or the one to be asked for, and what the scheduler says of it.
        request: what packing would ask for, for it.
        held: why packing asks for nothing: a code and words.
        paused: queues whose pauses are why packing asks for nothing, by name.
    """

    hopeless: str = ""
    ahead: Ahead = field(default_factory=Ahead)
    starts: str = ""
    reservation: Reservation | None = None
    fits: tuple[PilotRow, ...] = ()
    planned: AllocationRow | None = None
    pilot: PilotRow | None = None
    job: Job = field(default_factory=Job)
    request: Request | None = None
    held: tuple[str, str] | None = None
    paused: Mapping[str, Pause] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What is known of a task; times in seconds since the epoch.

    Attributes:
        row: the task.
        kill_grace: of the site, seconds.
        retry_on: the site's, of tasks that name none.
        site: who moves it on.
        attempt: its latest attempt.
        parents: those that it waits for, or failed with; the first few.
        pilot, allocation: those that it is on.
        standing: of a program that waits for slots.
    """

    row: TaskRow
    now: float
    kill_grace: int
    retry_on: tuple[str, ...] = ()
    site: SiteFacts = field(default_factory=SiteFacts)
    attempt: AttemptRow | None = None
    parents: tuple[TaskRow, ...] = ()
    pilot: PilotRow | None = None
    allocation: AllocationRow | None = None
    standing: Standing = field(default_factory=Standing)
