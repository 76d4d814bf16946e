"""Everything that one service process has: the engine, and the bodies of what beat asks for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from celery import Celery

from balsam_celery.celeryapp import redis_client
from balsam_celery.errors import StoreError
from balsam_celery.schedulers.base import Scheduler
from balsam_celery.service import givingback, housekeep, kill, lostnodes
from balsam_celery.service.apart import together_or_apart
from balsam_celery.service.backoff import Announcer
from balsam_celery.service.checks import Checks
from balsam_celery.service.effects import AWAY, ResultBackend
from balsam_celery.service.engine import WHO, Engine
from balsam_celery.service.inbox import push
from balsam_celery.service.journal import Journal
from balsam_celery.service.leading import NotLeading
from balsam_celery.service.lingering import Lingering
from balsam_celery.service.pack import pack
from balsam_celery.service.patience import Hangs, Patient
from balsam_celery.service.poll import Poller
from balsam_celery.service.publish import Publisher
from balsam_celery.service.reap import reap
from balsam_celery.service.reconcile import Reconciler
from balsam_celery.service.record import Recorded, bare, record
from balsam_celery.site import Site
from balsam_celery.store import runtimes
from balsam_celery.store.engine import Store
from balsam_celery.wire import KillOrder, Record, Wake

log = logging.getLogger(__name__)

#: Seconds between two times at which what was learned fades.
_FADE = 300.0
#: Packing takes no more than one part in so many of the time.
_SHARE = 5.0
#: Seconds between two looks for idle nodes while queued allocations are waited for.
_BESIDE = 30.0


class Service:
    """One service process of a site.

    Args:
        site: the site.
        app: its Celery application.
        store: its database; closed by :meth:`stop`.
        scheduler: its batch scheduler.
        backend: where results go.
        on_lead: told, in the engine's thread, when leadership comes and goes.
    """

    def __init__(
        self,
        site: Site,
        app: Celery[Any],
        store: Store,
        scheduler: Scheduler,
        backend: ResultBackend,
        on_lead: Callable[[bool], None] = lambda leads: None,
    ) -> None:
        self.site = site
        self.store = store
        self._scheduler = scheduler
        self._client = redis_client(site)
        self._prefix = site.settings.key_prefix
        self._publisher = Publisher(app)
        self._journal = Journal(site)
        self.engine = Engine(site, app, store, redis_client(site), backend, self._journal, on_lead)
        self._announcer = Announcer()
        lingering = Lingering(store, self._client, site)
        self._patient = Patient()
        self._poller = Poller(store, scheduler, site, lingering, self._patient)
        self._reconciler = Reconciler(store, self._client, site, self._send_kills)
        self._checks = Checks(
            store,
            app,
            self._client,
            self._prefix,
            self.engine.leadership,
            self.engine.outstanding,
            site.settings.retry,
        )
        self._giving_at: dict[str, float] = {}
        self._fade_at = 0.0
        self._pack_at = 0.0
        self._beside_at = 0.0
        self._turns = {name: threading.Lock() for name in ("pack", "poll", "housekeep")}

    def start(self) -> None:
        """Start the engine's thread."""
        self.engine.start()

    def stop(self) -> None:
        """Stop the engine, and give the lease to whoever waits for it."""
        self.engine.ask_to_stop()
        if self.engine.is_alive():
            self.engine.join(timeout=30)
        self._publisher.close()
        self._client.close()
        self._journal.close()
        self.store.close()

    def pack(self) -> None:
        """Ask for the allocations that the backlog needs."""
        with self._turn("pack") as mine:
            if mine and time.monotonic() >= self._pack_at:
                begin = time.monotonic()
                look_beside = begin >= self._beside_at
                if look_beside:
                    self._beside_at = begin + _BESIDE
                packed = pack(
                    self.store, self._scheduler, self.site, self._client, look_beside=look_beside
                )
                self._journal.write(packed.decision)
                self.engine.courier.tell(packed.changes)
                self._announcer.tell(packed.paused)
                # where a look takes long, most of the time is left to others
                took = time.monotonic() - begin
                self._pack_at = begin + _SHARE * took

    def poll(self) -> None:
        """Learn what became of the allocations, and reap those that have ended."""
        with self._turn("poll") as mine:
            if not mine:
                return
            client, prefix = self._client, self._prefix
            for allocation in self._poller.poll():
                with _apart(f"reaping allocation {allocation}"):
                    reap(
                        self.store,
                        self.site,
                        allocation,
                        record=self._record,
                        client=client,
                        read=self._patient.read,
                    )
                    push(client, prefix, Wake())
            for lost in lostnodes.find(self.store, self._scheduler, self._poller.running):
                with _apart(f"giving up node {lost.node} of pilot {lost.pilot.id}"):
                    lostnodes.give_up(self.store, client, prefix, lost)
            givingback.carry_on(
                self.store,
                self._scheduler,
                client,
                prefix,
                self._poller.running,
                self._giving_at,
            )

    def housekeep(self) -> None:
        """Note heartbeats, tell pilots to end, find what no worker holds."""
        with self._turn("housekeep") as mine:
            if not mine:
                return
            housekeep.note_heartbeats(self.store, self._client, self.site)
            housekeep.send_drains(self.store, self._client, self.site)
            self._reconciler.look()
            self.engine.courier.tell(self._checks.run())
            housekeep.sweep(self.store, self._client, self.site)
            if self.store.clock() >= self._fade_at:
                self.store.run(runtimes.fade, durable=False)
                self._fade_at = self.store.clock() + _FADE

    @contextmanager
    def _turn(self, name: str) -> Iterator[bool]:
        """One at a time, while this service leads; what is away now is tried next time."""
        lock = self._turns[name]
        if not self.engine.leadership.is_leader or not lock.acquire(blocking=False):
            yield False
            return
        try:
            yield True
        except NotLeading:
            log.info("%s: another service leads now", name)
        except (*AWAY, StoreError) as error:
            log.warning("%s waits: %s", name, error)
        finally:
            lock.release()

    def _record(self, records: Sequence[Record]) -> None:
        retry = self.site.settings.retry

        def write(some: Sequence[Record]) -> Recorded:
            return self.engine.leadership.run(
                lambda conn: record(conn, some, now=self.store.clock(), who=WHO, retry=retry)
            )

        for recorded in together_or_apart(write, records, bare):
            self.engine.absorb(recorded)

    def _send_kills(self, pilot: str, worker: str, orders: Sequence[KillOrder]) -> None:
        kill.send(self._publisher, pilot, worker, orders)


@contextmanager
def _apart(what: str) -> Iterator[None]:
    """A fault in one thing keeps no other from its turn; the next poll tries it again."""
    try:
        yield
    except (*AWAY, StoreError, NotLeading):
        raise
    except Hangs as error:
        log.info("%s waits: %s", what, error)
    except Exception:
        log.exception("%s has a fault", what)
