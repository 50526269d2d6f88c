"""The loop of a process that holds one model: schedule -> run -> postprocess."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence as Many
from functools import partial

import psutil

from protocol import messages as m
from server.catalogue.architecture import Architecture
from server.engines.base import Adaptive, Engine
from server.launch.spec import Spec
from server.link import Beat, ForWorker, Pieces, Work
from server.worker.connection import Connection
from server.worker.faults import for_client
from server.worker.intervals import Intervals
from server.worker.prefix_cache import PrefixCache
from server.worker.reader import LONG_CHARACTERS, Reader, is_long, length
from server.worker.replies import WAITED, Answer, Served, failed, prompt_tokens
from server.worker.requests import Requests
from server.worker.runner import Runner
from server.worker.scheduler import Scheduler
from server.worker.task import Prompt, Task
from server.worker.text import Text

BEAT_S = 0.25
"""Longest time between two beats, by which the gateway knows that the loop moves."""
READING_MS = 1
"""Longest sleep of an idle loop while a request is being read."""
YIELD_S = 0.001
"""Pause after the first token of a stream that runs alone, in which the token travels.

When the engine's threads fill all cores, each thread on the way to the client would wait for a timer tick (4 ms)
before it gets one. A stream beside others has no pause, since the others would wait too
(docs/decisions/spinning-and-priorities.md).
"""


class Worker:
    """Loop that takes requests, steps and sends replies, all in one thread."""

    def __init__(
        self,
        spec: Spec,
        connection: Connection,
        engine: Engine,
        text: Text,
        digest: str,
        arch: Architecture,
        *,
        calibrated: bool = False,
        instruction_set: str = "",
    ) -> None:
        self._connection = connection
        adaptive = engine if isinstance(engine, Adaptive) else None
        served = Served(
            spec.model,
            spec.engine,
            spec.precision,
            digest,
            engine.threads,
            spec.cache,
            adaptive,
            calibrated,
            instruction_set,
        )
        self._requests = Requests(engine, text, served)
        self.scheduler = Scheduler(engine, _prefix_cache(arch, spec))
        self._runner = Runner(engine)
        self._reader = Reader(self._read)
        self._read_here = 0
        """Length of the requests that were read in the loop's thread since the last step."""
        self._answers: dict[int, Answer] = {}
        """Request id -> its answer, until that is complete."""
        self._process = psutil.Process()
        self._beat_at = 0.0
        self._intervals = Intervals()
        self._taken = 0
        self._prompt_tokens = self._new_tokens = 0
        self._busy_s = 0.0

    def run(self) -> None:
        """Serve until this process ends."""
        while True:
            idle = not (self.scheduler.running or self.scheduler.waiting)
            wait_ms = READING_MS if self._reader else BEAT_S * 1000
            for message in self._connection.receive(int(wait_ms) if idle else 0):
                self.take(message)
            began = time.perf_counter()
            self.step()
            self._busy_s += time.perf_counter() - began
            self.beat()

    def step(self) -> None:
        """Schedule, run, postprocess: compute one batch, and send its results."""
        self._read_here = 0
        if self._reader:
            self._take_read()
        for task in self.scheduler.reap():
            self._answer(task)
        batch = self.scheduler.schedule()
        if not batch.prefill and not batch.decode:
            return
        outcome = self._runner.run(batch)
        advanced = self.scheduler.postprocess(batch, outcome)
        self._send_pieces(advanced)
        self.scheduler.release(advanced)
        begun = [part.prompt for part, fresh in zip(batch.prefill, outcome.fresh, strict=True) if fresh]
        if begun and begun[0].streams and self.scheduler.serves_only(begun[0].id):
            time.sleep(YIELD_S)

    def take(self, message: ForWorker) -> None:
        """Take in a message: answer a request, or put it in line; one that takes long to read, later, and so what many
        together would take.
        """
        if isinstance(message, m.Cancel):
            if self._reader.cancel(message.target):
                self._connection.send(m.Failure(id=message.target, code="cancelled", message=WAITED["cancelled"]))
            self._cancel(message.target)
        elif isinstance(message, Work):  # a task is for a process that does it alone
            self._taken += 1
            together = self._read_here + length(message.request)
            if is_long(message.request) or together >= LONG_CHARACTERS:
                self._reader.add(message)
            else:
                self._read_here = together
                self._read(message)()

    def beat(self) -> None:
        """Send a beat a few times a second: the loop moves, and this is what it has done."""
        now = time.monotonic()
        if now < self._beat_at + BEAT_S * 0.9:
            return
        self._beat_at = now
        self.send_places()
        beat = Beat(
            id=None,
            running=self.scheduler.running,
            waiting=self.scheduler.waiting + len(self._reader),
            rss_bytes=self._process.memory_info().rss,
            requests=self._taken,
            prompt_tokens=self._prompt_tokens,
            new_tokens=self._new_tokens + sum(answer.new_tokens for answer in self._answers.values()),
            busy_ms=self._busy_s * 1000,
        )
        self._connection.send(beat)

    def send_places(self) -> None:
        """Send each waiting stream its place in line, if that has changed."""
        line = list(self.scheduler.in_line())
        for place, prompt in enumerate(line, 1):
            if prompt.streams and prompt.place != place:
                prompt.place = place
                self._connection.send(
                    m.Progress(id=prompt.id, stage="waiting", done=place, total=len(line), unit="place")
                )

    def _read(self, work: Work) -> Callable[[], None]:
        """Read a request; return what is to be done with it in the loop's thread. May run in the reader's thread."""
        request, received = work.request, time.monotonic()
        try:
            if isinstance(request, m.Tokenize):
                return partial(self._connection.send, self._requests.tokenized(work.id, request))
            if isinstance(request, m.Score):
                return partial(self._line_up, work.id, *self._requests.scoring(work, request, received))
            return partial(self._line_up, work.id, *self._requests.generation(work, request, received))
        except Exception as e:  # noqa: BLE001 - whatever it is, it concerns this request alone
            return partial(self._connection.send, failed(work.id, for_client("a request", e)))

    def _line_up(self, request_id: int, answer: Answer, prompts: Iterable[Prompt]) -> None:
        """Put the tasks of a request in line."""
        self._answers[request_id] = answer
        for prompt in prompts:
            self.scheduler.add(prompt)

    def _take_read(self) -> None:
        """Take in the requests that the reader has read."""
        for request_id, opened, cancelled in self._reader.take():
            opened()
            if cancelled:
                self._cancel(request_id)

    def _cancel(self, request_id: int) -> None:
        for task in self.scheduler.find(request_id):
            task.end("cancelled")

    def _send_pieces(self, tasks: Many[Task]) -> None:
        """Send the results of a step: new text of streams, and the last replies of requests that finished."""
        due = self._intervals.due({task.interval_ms for task in tasks}, time.monotonic())
        pieces: list[m.Tokens] = []
        ended: list[Task] = []
        for task in tasks:
            if task.finished is None and (task.silent or task.interval_ms in due):
                try:
                    pieces += task.pieces()
                except Exception as e:  # noqa: BLE001 - whatever it is, it concerns this request alone
                    task.fail(for_client("a piece of text", e))
            if task.finished is not None:
                ended.append(task)
        self._send_together(pieces)
        for task in ended:
            self._answer(task)

    def _send_together(self, pieces: Many[m.Tokens]) -> None:
        """Send pieces in one message; a single one as it is."""
        if len(pieces) == 1:
            self._connection.send(pieces[0])
        elif pieces:
            self._connection.send(Pieces(id=None, pieces=list(pieces)))

    def _answer(self, task: Task) -> None:
        """Send what the request of a task that has finished is answered, and put further tasks of it in line."""
        answer = self._answers.get(task.id)
        if answer is None:
            return
        for ready in answer.ready():
            self._connection.send(ready)
        for prompt in answer.prompts():
            self.scheduler.add(prompt)
        if not answer.complete:
            return
        del self._answers[task.id]
        try:
            self._send_together(answer.rest())
            last = answer.last()
            self._connection.send(last)
        except Exception as e:  # noqa: BLE001 - whatever it is, it concerns this request alone
            last = failed(task.id, for_client("an answer", e))
            self._connection.send(last)
        self._prompt_tokens += prompt_tokens(last)
        self._new_tokens += answer.new_tokens


def _prefix_cache(arch: Architecture, spec: Spec) -> PrefixCache:
    kind = (spec.engine, spec.precision, spec.cache)
    return PrefixCache(arch.prefix_cache_bytes(*kind), arch.row_bytes(*kind) // arch.context)
