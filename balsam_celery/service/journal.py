"""What planning decided, line by line in ``logs/decisions.jsonl``: to be replayed and explained."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler

from balsam_celery.decisions import Line, PackingDecision, PlacementDecision
from balsam_celery.site import Site
from balsam_celery.wire import encode

log = logging.getLogger(__name__)

NAME = "decisions.jsonl"


class _File(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        log.warning("a decision was not written down", exc_info=True)


class Journal:
    """Writes decisions once they are committed, where ``[logs] decisions`` says so."""

    def __init__(self, site: Site) -> None:
        logs = site.settings.logs
        self.wanted = logs.decisions
        self._handler: _File | None = None
        if self.wanted:
            self._handler = _File(
                site.log_dir / NAME, maxBytes=logs.max_bytes, backupCount=logs.backups, delay=True
            )

    def write(self, decision: PlacementDecision | PackingDecision | None) -> None:
        """Write a decision down, from any thread; a full disk costs the line alone."""
        if decision is None or self._handler is None:
            return
        line = (
            Line(placement=decision)
            if isinstance(decision, PlacementDecision)
            else Line(packing=decision)
        )
        record = logging.LogRecord(NAME, logging.INFO, "", 0, encode(line), None, None)
        self._handler.handle(record)

    def close(self) -> None:
        """Close the file."""
        if self._handler is not None:
            self._handler.close()
