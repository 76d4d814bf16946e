"""Celery's side of the service and transitions workers: thin Celery tasks and one bootstep.

Imported by the workers of those two roles only (``celeryapp``). The service worker runs the
engine beside its pool; its queue is consumed only while the engine leads, so that of two services
started by mistake one does everything and the other nothing.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

from celery import bootsteps
from celery.worker.consumer.tasks import Tasks
from celery.worker.control import control_command

from balsam_celery import keys, procs
from balsam_celery.celeryapp import ROLE_VARIABLE, app, current_site
from balsam_celery.copies import Begun, Copy, hook_order
from balsam_celery.schedulers import make_scheduler
from balsam_celery.service import hookrun, kill
from balsam_celery.service.runtime import Service
from balsam_celery.site import Site, connect_store
from balsam_celery.tasks.connect import client_of, push, until_done

log = logging.getLogger(__name__)

#: Steps that the service wants to be ended here.
_KILLED = hookrun.Killed()
#: Steps that have begun here, and those that have ended: Redis may forget both.
_BEGUN, _ENDED = Begun(), hookrun.Ends()


class ServiceStep(bootsteps.StartStopStep):
    """Runs the engine for as long as the worker runs."""

    requires = ("celery.worker.components:Pool",)
    service: Service | None = None
    leads = False
    _worker: Any = None

    def include_if(self, parent: Any) -> bool:
        """Only in the service worker."""
        return os.environ.get(ROLE_VARIABLE) == "service"

    def start(self, parent: Any) -> None:
        """Open the database and start the engine's thread."""
        cls = type(self)
        cls._worker = parent
        site = current_site()
        settings = site.settings
        scheduler = make_scheduler(
            settings.scheduler.kind, settings=settings, local_dir=site.local_dir
        )
        backend: Any = app.backend
        cls.service = Service(site, app, connect_store(site), scheduler, backend, self._on_lead)
        cls.service.start()

    def stop(self, parent: Any) -> None:
        """Stop the engine and give up the lease."""
        cls = type(self)
        service, cls.service = cls.service, None
        if service is not None:
            service.stop()

    terminate = stop

    def _on_lead(self, leads: bool) -> None:
        cls = type(self)
        cls.leads = leads
        consumer = getattr(cls._worker, "consumer", None)
        if consumer is not None and consumer.task_consumer is not None:
            # this is the engine's thread: the consumer's own thread changes its queues
            consumer.call_soon(follow, consumer)


class QueueStep(bootsteps.StartStopStep):
    """Lets the consumer, whenever it (re)connects, take from the queue only while we lead."""

    requires = (Tasks,)

    def include_if(self, parent: Any) -> bool:
        """Only in the service worker."""
        return os.environ.get(ROLE_VARIABLE) == "service"

    def start(self, parent: Any) -> None:
        """Consume, or not yet."""
        follow(parent)


def follow(consumer: Any) -> None:
    """Take from the service queue while this service leads."""
    if consumer.task_consumer is None:
        return  # it is being set up again; QueueStep.start comes after
    if ServiceStep.leads:
        consumer.add_task_queue(keys.SERVICE_QUEUE)
    else:
        consumer.cancel_task_queue(keys.SERVICE_QUEUE)


class SubreaperStep(bootsteps.Step):
    """What programs of hooks leave behind becomes the transitions worker's to find and reap."""

    def include_if(self, parent: Any) -> bool:
        """Only in the transitions worker."""
        return os.environ.get(ROLE_VARIABLE) == "transitions"

    def create(self, parent: Any) -> None:
        """Become a subreaper, before any hook starts."""
        procs.become_subreaper()


app.steps["worker"].add(ServiceStep)
app.steps["worker"].add(SubreaperStep)
app.steps["consumer"].add(QueueStep)


@control_command(name=kill.END_STEPS)
def end_steps(state: Any, ids: list[str], now: float) -> dict[str, str]:
    """End steps of staging and hooks, by the ids of their messages."""
    _KILLED.add(ids, now)
    return {"ok": "they are ended"}


@app.task(name="balsam.pack", ignore_result=True)
def pack() -> None:
    """Ask for the allocations that the backlog needs."""
    if ServiceStep.service is not None:
        ServiceStep.service.pack()


@app.task(name="balsam.poll", ignore_result=True)
def poll() -> None:
    """Learn what became of the allocations."""
    if ServiceStep.service is not None:
        ServiceStep.service.poll()


@app.task(name="balsam.housekeep", ignore_result=True)
def housekeep() -> None:
    """Note heartbeats, drain idle pilots, find what was lost."""
    if ServiceStep.service is not None:
        ServiceStep.service.housekeep()


@app.task(name=keys.TRANSITION, ignore_result=True)
def transition(order: dict[str, Any]) -> None:
    """Do one step of staging or one hook, and report it until Redis takes the report.

    A message that comes twice or late is dropped: its program would end that of the first.
    """
    site = current_site()
    id, sent = f"{order['id']}.{order['attempt']}.{order['step']}", order.get("sent", 0.0)
    key = keys.begun(site.settings.key_prefix, keys.hook_message(id))
    copy, client = Copy(key, hook_order(sent)), client_of(app)
    if not _BEGUN.note(id, copy.order) or not until_done(
        f"the start of {id}", lambda: copy.begin(client)
    ):
        log.warning("dropped a message of %s: it, or a later one, has begun before", id)
        return
    timeout = site.settings.transitions.step_timeout
    since = order.get("since", 0.0)
    ended = _ENDED.of(id, since)
    if ended is None:
        job = keys.hooks_job(site.settings.site.id)
        killed = functools.partial(_KILLED.has, id, sent)
        ended = hookrun.run(order, _variables(site), timeout, killed, job)
    else:
        log.warning("the end of %s was lost, and is told again", id)
    _ENDED.note(id, since, ended)
    what = f"the end of {ended.step} of task {ended.id}"
    if not until_done(what, lambda: copy.end(client)):
        log.warning("%s is not told: it was taken for lost and has begun anew", what)
        return
    until_done(what, lambda: push(app, ended))


def _variables(site: Site) -> dict[str, str]:
    """The environment that hooks get: this worker's, without what is the site's own (R11)."""
    own = {ROLE_VARIABLE, site.settings.redis.url_env, site.settings.database.url_env}
    return {name: value for name, value in os.environ.items() if name not in own}
