"""The service's loop: record what workers tell, give slots to tasks, send the messages.

One thread, one leader (a lease in SQL). Redis or SQL may go away at any time: nothing that is not
committed is taken out of the inbox, nothing is done in the leader's name without its lease, and
whatever a crash leaves half done is found again from SQL by the next leader.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
from celery import Celery
from sqlalchemy import Connection

from balsam_celery.errors import StoreError
from balsam_celery.ledger import Ledger
from balsam_celery.service import hooks, kill, place
from balsam_celery.service.apart import together_or_apart
from balsam_celery.service.aside import Watch, put_aside, rule_of
from balsam_celery.service.cases import Batch
from balsam_celery.service.courier import Courier
from balsam_celery.service.dispatch import Dispatcher
from balsam_celery.service.effects import AWAY, Performer, ResultBackend
from balsam_celery.service.inbox import Inbox, Letters
from balsam_celery.service.journal import Journal
from balsam_celery.service.leading import Leadership, NotLeading
from balsam_celery.service.pace import Pace
from balsam_celery.service.record import Recorded, bare, record
from balsam_celery.service.senders import Told, of_own_attempts
from balsam_celery.settings import Settings
from balsam_celery.site import Site
from balsam_celery.store.engine import Store
from balsam_celery.suspects import Suspect
from balsam_celery.wire import Wake, WorkerLost

log = logging.getLogger(__name__)

WHO = "service"
#: Seconds that the loop waits for a report; also how late it notices that it should stop.
_WAIT = 0.2
#: Seconds between two looks into SQL when nothing was told; a lost wake-up costs no more.
_LOOK = 1.0
#: Seconds between two rebuilds of the ledger from SQL.
_REBUILD = 30.0
#: Seconds between two tries to lead, of one that does not.
_STANDBY = 1.0
_PAUSES = (0.1, 5.0)


class Engine(threading.Thread):
    """The service of a site.

    Args:
        site, app, store: the site, its Celery application and its database.
        client: Redis, for this thread.
        backend: where results go.
        journal: where passes of placement are written down.
        on_lead: told in this thread when leadership comes and goes.
    """

    def __init__(
        self,
        site: Site,
        app: Celery[Any],
        store: Store,
        client: redis.Redis,
        backend: ResultBackend,
        journal: Journal,
        on_lead: Callable[[bool], None] = lambda leads: None,
    ) -> None:
        super().__init__(name="balsam-engine", daemon=True)
        self.leadership = Leadership(store)
        self.outstanding = hooks.Outstanding()
        self._site = site
        self._store = store
        self._on_lead = on_lead
        self._term: int | None = None
        self._stop_asked = threading.Event()
        settings: Settings = site.settings
        self._limits = place.Limits(
            site.run_dir,
            settings.site.kill_grace,
            settings.pilot.drain_margin,
            float(settings.placement.ageing),
            journal.wanted,
        )
        self._journal = journal
        self._pace = Pace(settings.placement.look_ahead)
        self._inbox = Inbox(client, settings.key_prefix)
        self._out = Dispatcher(app, client, site)
        self._kills = kill.Kills()
        self._ledger = Ledger.empty()
        self._watch = Watch(rule_of(settings.retry))
        self._suspects: list[tuple[str, Suspect]] = []  # with their pilots; to be put aside yet
        self._rebuilt = 0.0
        self._looked = 0.0
        self._dirty = True
        self.courier = Courier(
            app,
            lambda publisher: Performer(store, app, publisher, backend),
            lambda: self.leadership.is_leader,
        )

    def ask_to_stop(self) -> None:
        """Let the loop end after the turn that is under way."""
        self._stop_asked.set()

    def absorb(self, recorded: Recorded) -> None:
        """Announce what another thread recorded (reaping)."""
        self.courier.tell(recorded.changes)

    def run(self) -> None:
        """Lead when it can and serve while it leads, until :meth:`ask_to_stop`."""
        self.courier.start()
        pause = 0.0
        while not self._stop_asked.is_set():
            try:
                self._turn()
            except NotLeading:
                continue
            except (*AWAY, StoreError) as error:
                if not pause:
                    log.warning("the service waits: %s", error)
                pause = self._rest(pause)
            except Exception:
                # a bug in one place must not end the service of all
                log.exception("the service goes on after an error")
                pause = self._rest(pause)
            else:
                if pause:
                    log.info("the service goes on")
                pause = 0.0
        self._end()

    def _rest(self, pause: float) -> float:
        pause = min(max(2 * pause, _PAUSES[0]), _PAUSES[1])
        self._dirty = True
        # what was committed before the fault may not have reached the ledger
        self._rebuilt = 0.0
        self._stop_asked.wait(pause)
        return pause

    def _end(self) -> None:
        self.courier.end()
        self.courier.join(timeout=10)
        self._out.close()
        try:
            self.leadership.give_up()
        except StoreError as error:
            log.warning("the lease of the service runs out by itself: %s", error)

    def _turn(self) -> None:
        leads = self.leadership.keep()
        term = self.leadership.term
        if term != self._term:  # a new one of our own too: another led in between
            self._become(leads)
            self._term = term
        if not leads:
            self._stop_asked.wait(_STANDBY)
            return
        # before anything is sent: a Redis that takes no more has room again when this is taken away
        letters = self._inbox.read(0 if self._dirty else _WAIT)
        begin = time.monotonic()
        if letters.raw:
            self._receive(letters)
        self._put_aside()
        now = self._store.clock()
        if self._dirty or now >= self._looked + _LOOK:
            self._look(now)
        self._out.flush()
        if letters.raw:
            self._pace.turn(time.monotonic() - begin)
        self._out.limits(self._ledger, now)

    def _become(self, leads: bool) -> None:
        """Start afresh from SQL, or stop acting."""
        log.info("this service %s", "leads" if leads else "stands by: another one leads")
        self._out.forget()
        self._kills = kill.Kills()
        self._ledger = Ledger.empty()
        self._suspects.clear()
        self._dirty = True
        if leads:
            # an earlier life sent what waits; ``checks`` finds what was lost with it
            with self._store.read() as conn:
                pending = hooks.pending(conn, self._store.clock())
            self.outstanding.adopt(pending, self._store.clock())
        self._on_lead(leads)

    def _receive(self, letters: Letters) -> None:
        """Record what was read, then take it out of the inbox and acknowledge it."""
        records = [one.record for one in letters.told]
        self._pace.note(records, self._store.clock())
        unwanted: list[tuple[str, str]] = []
        if any(not isinstance(one, Wake) for one in records):
            for recorded in self._record(letters.told):
                self._absorb(recorded)
                unwanted += recorded.unwanted
        for one in records:
            if isinstance(one, WorkerLost) and not one.restarted and one.pilot:
                self._ledger = self._ledger.lose_node(one.pilot, one.node)
        if not (self.leadership.keep() and self.leadership.term == self._term):
            # another may have taken these away, and what begins the inbox now may look the same
            raise NotLeading
        # what is not acknowledged is sent again, but what is not dropped is read for ever
        self._inbox.drop(letters)
        self._dirty = True
        # a Redis that is full takes no order before that has made room; its pilot registers again
        # as long as it is not acknowledged
        for pilot, reason in unwanted:
            self._out.drain(pilot, reason)
        self._inbox.acknowledge(letters.reports)

    def _record(self, told: Sequence[Told]) -> list[Recorded]:
        run = self.leadership.run
        retry = self._site.settings.retry

        def write(some: Sequence[Told]) -> Recorded:
            def step(conn: Connection) -> Recorded:
                own = of_own_attempts(conn, some)
                return record(conn, own, now=self._store.clock(), who=WHO, retry=retry)

            return run(step)

        def least(one: Told, fault: str) -> Told | None:
            found = bare(one.record, fault)
            return Told(one.pilot, found) if found is not None else None

        return together_or_apart(write, told, least)

    def _absorb(self, recorded: Recorded) -> None:
        for pilot, task, attempt in recorded.left:
            self._ledger = self._ledger.give_back(pilot, [(task, attempt)])
        self.courier.tell(recorded.changes)
        for asked in recorded.foreign:
            # before they are dropped, for nobody asks again; a Redis that is full takes this too
            self._out.revoke(asked.ids, terminate=asked.terminate)
        if recorded.ends:
            now = self._store.clock()
            self._suspects += self._watch.note(recorded.ends, self._ledger, now)

    def _put_aside(self) -> None:
        """Use no more the nodes that fail what they are given."""
        while self._suspects:
            pilot, one = self._suspects.pop(0)

            def write(conn: Connection, pilot: str = pilot, one: Suspect = one) -> Batch:
                batch = Batch(conn, self._store.clock(), WHO)
                put_aside(batch, pilot, one)
                return batch

            try:
                batch = self.leadership.run(write)
            except StoreError:
                self._suspects.insert(0, (pilot, one))
                raise
            self._ledger = self._ledger.lose_node(pilot, one.node)
            self.courier.tell(batch.changes)

    def _look(self, now: float) -> None:
        """One transaction over all that may go on, then the messages for it."""
        if now >= self._rebuilt + _REBUILD or now < self._rebuilt:
            self._ledger = Ledger.empty()
            self._rebuilt = now
        before = self._ledger
        ahead = self._pace.ahead(now)

        def step(
            conn: Connection,
        ) -> tuple[Batch, kill.Doomed, list[hooks.Pending], list[hooks.Pending], place.Placed]:
            batch = Batch(conn, now, WHO)
            doomed = self._kills.due(conn, now)
            ending = hooks.end_killed(batch, doomed.between, self.outstanding)
            pending = hooks.advance(batch, tuple(self.outstanding.copies))
            placed = place.start(conn, before, self._limits, now=now, who=WHO, ahead=ahead)
            return batch, doomed, ending, pending, placed

        batch, doomed, ending, pending, placed = self.leadership.run(step)
        self._journal.write(placed.decision)
        self._ledger = placed.ledger
        self._looked = now
        self._dirty = placed.more
        self._out.add(placed.sent)
        self.courier.tell((*batch.changes, *placed.changes))
        self._out.flush()
        self._out.hooks(self.outstanding.unsent(pending, now), self.outstanding, now)
        self._out.recall(placed.recalled, now)
        self._out.kill(doomed.programs, doomed.steps)
        ending = [one for one in ending if one.row.id in doomed.due]
        self._out.end_hooks(ending, self.outstanding, now)
        ordered = (*doomed.programs, *doomed.steps, *(one.row for one in ending))
        self._kills.sent(ordered, now)
