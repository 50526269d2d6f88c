"""Log: lines on stderr, as text or JSON, which never block on a reader that has stopped."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import queue
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal

QUEUE = 10_000
STDERR_S = 2.0


class _Bounded(logging.handlers.QueueHandler):
    """Hands records to a thread that writes them; drops them while a blocked stderr has filled the queue, and says so
    afterwards.
    """

    _lost = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock held."""
        try:
            if self._lost:
                self.queue.put_nowait(self.prepare(_losses(self._lost)))
                self._lost = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self._lost += 1


def _losses(number: int) -> logging.LogRecord:
    said = "%d lines of the log were lost: whoever reads it had stopped"
    return logging.LogRecord("gpt2d", logging.WARNING, __file__, 0, said, (number,), None)


class _Json(logging.Formatter):
    """Formats each record as one object; times are RFC 3339 in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {"time": time, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


@contextlib.contextmanager
def to_stderr(form: Literal["text", "json"]) -> Iterator[None]:
    """Write the log until the block ends, and for up to STDERR_S longer what is left of it."""
    lines: queue.Queue[logging.LogRecord] = queue.Queue(QUEUE)
    handler = _Bounded(lines)
    handler.setFormatter(_Json() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    writer = logging.handlers.QueueListener(lines, logging.StreamHandler())
    writer.start()
    log = logging.getLogger("gpt2d")
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        # In a thread with a deadline: whoever reads stderr may have stopped.
        last = threading.Thread(target=writer.stop, daemon=True)
        last.start()
        last.join(STDERR_S)
