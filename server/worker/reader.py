"""Reads requests whose texts or tokens take long, beside the loop: in a thread, in turns by peer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeAlias

from protocol import messages as m
from server.link import Work
from server.worker.turns import Turns

LONG_CHARACTERS = 4096
"""Length from which a text is long: it takes more than a millisecond or two."""
LONG_TOKENS = 2048
"""Number of tokens from which their text and its places take as long."""
FORMS, WORD_CHARACTERS = 3, 60
"""How often each of `bad_words` is encoded, about, and what that takes however short the word is."""

Opened: TypeAlias = Callable[[], None]
"""What is to be done with a request when it has been read, in the loop's thread."""
Read: TypeAlias = Callable[[Work], Opened]


class Reader:
    """The requests that are being read, and the thread that reads them. Used by the loop's thread."""

    def __init__(self, read: Read) -> None:
        """`read` is called in the thread with each request. It raises nothing."""
        self._read = read
        self._lock = threading.Lock()
        self._waiting: Turns[Work] = Turns()
        self._open: dict[int, bool] = {}
        """Id of each request that is not taken yet -> whether it was cancelled."""
        self._done: queue.SimpleQueue[tuple[int, Opened]] = queue.SimpleQueue()
        self._runs = False

    def __len__(self) -> int:
        return len(self._open)

    def add(self, work: Work) -> None:
        """Have a request read."""
        self._open[work.id] = False
        with self._lock:
            self._waiting.add(work.group, work)
            begins, self._runs = not self._runs, True
        if begins:
            try:
                threading.Thread(target=self._run, name="reader", daemon=True).start()
            except RuntimeError:  # the system gives no more threads: the others wait
                self._run()

    def cancel(self, request_id: int) -> bool:
        """Note that nobody waits for a request any more. True: it waited to be read, and is forgotten."""
        if request_id not in self._open:
            return False
        with self._lock:
            work = next((work for work in self._waiting if work.id == request_id), None)
            if work:
                self._waiting.drop(work.group, work)
        if work:
            del self._open[request_id]
            return True
        self._open[request_id] = True
        return False

    def take(self) -> Iterator[tuple[int, Opened, bool]]:
        """Yield the requests that have been read: id, what is to be done, and whether it was cancelled meanwhile."""
        while not self._done.empty():
            request_id, opened = self._done.get()
            yield request_id, opened, self._open.pop(request_id)

    def _run(self) -> None:
        """Read until nothing waits; the thread ends then."""
        while work := self._next():
            self._done.put((work.id, self._read(work)))

    def _next(self) -> Work | None:
        with self._lock:
            if not self._waiting:
                self._runs = False
                return None
            return self._waiting.take_next()


def is_long(request: m.OfModel) -> bool:
    """Return whether reading a request takes long enough to hold others up."""
    return length(request) >= LONG_CHARACTERS or not request.specials


def length(request: m.OfModel) -> int:
    """Return how much of a request there is to read, in characters of a text."""
    if isinstance(request, m.Score) and request.texts:
        return request.cost * m.CHARACTERS
    if isinstance(request, m.Generate):
        return len(request.prompt or "") + sum(WORD_CHARACTERS + FORMS * len(word) for word in request.bad_words)
    return max(len(request.text or ""), len(request.ids or ()) * LONG_CHARACTERS // LONG_TOKENS)
