"""The loop of a process that holds one model: schedule -> run -> postprocess."""

from __future__ import annotations

import itertools
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Sequence as Many

import numpy as np
import psutil

from protocol import messages as m
from protocol.errors import BadRequest, RequestError, TooLong
from server.catalogue.architecture import Architecture
from server.engines.base import Engine, Logits, Verifier
from server.launch.spec import Spec
from server.link import Beat, ForWorker, Work
from server.worker.beams import BeamSearch
from server.worker.connection import Connection
from server.worker.contrastive import ContrastiveSearch
from server.worker.prefix_cache import PrefixCache
from server.worker.processors import Processors
from server.worker.sampling import Sampler, sample
from server.worker.scheduler import Batch, Scheduler
from server.worker.scoring import Scoring
from server.worker.search import Lane, Search
from server.worker.sequence import Sequence, result
from server.worker.text import Text

PIECE_S = 0.020
"""Text goes out at once for the first token of a sequence, then at most this often."""
BEAT_S = 0.25
"""The loop tells at least this often that it moves."""
SEEDS = 1 << 63
YIELD_S = 0.001
"""After a stream's first token: a pause in which it travels. Where the engine's threads fill all cores, each thread on the
way to the client would wait for a timer tick (4 ms) before it gets one."""


class Worker:
    def __init__(
        self, spec: Spec, link: Connection, engine: Engine, text: Text, digest: str, arch: Architecture
    ) -> None:
        self._spec, self._link, self._engine, self._text, self._digest = spec, link, engine, text, digest
        self._verifier = engine if isinstance(engine, Verifier) else None
        self._end_of_text = arch.end_of_text
        self._scheduler = Scheduler(engine, _prefix_cache(arch, spec))
        self._open: dict[int, list[Sequence]] = {}
        """Request id -> its continuations, until all have finished."""
        self._process = psutil.Process()
        self._beat_at = 0.0
        self._requests = self._prompt_tokens = self._new_tokens = 0
        self._busy_s = 0.0

    def run(self) -> None:
        """Until this process is ended."""
        while True:
            idle = not (self._scheduler.running or self._scheduler.waiting)
            for request in self._link.receive(int(BEAT_S * 1000) if idle else 0):
                self._take(request)
            for sequence in self._scheduler.reap():
                self._end(sequence)
            self._step()
            self._beat()

    def _step(self) -> None:
        batch = self._scheduler.schedule()
        if not (batch.prefill or batch.decode):
            return
        began = time.perf_counter()
        first_token: int | None = None
        if batch.prefill:
            try:
                wanted, scored = self._prefill(batch.prefill, batch.chunk)
            except Exception as e:  # noqa: BLE001 - whatever it is, it is this prompt's alone
                batch.prefill.fail(self._fault("the engine", e))
                self._end(batch.prefill)
                self._scheduler.release([batch.prefill])
                batch = Batch(None, [], batch.decode)
            else:
                if wanted and isinstance(batch.prefill, Sequence) and not batch.prefill.search:
                    first_token = self._choose(scored, [batch.prefill])[0]
        prefilled = time.perf_counter()
        tokens = self._decode(batch.decode) if batch.decode else []
        advanced = self._scheduler.postprocess(batch, first_token, tokens, (prefilled - began) * 1000)
        for sequence in advanced:
            if sequence.finished:
                self._end(sequence)
            elif sequence.request.stream:
                for output in sequence.outputs:
                    self._send_piece(output)
        self._scheduler.release(advanced)
        if isinstance(batch.prefill, Scoring):
            batch.prefill.take(len(batch.chunk), wanted, scored)
            if batch.prefill.finished:
                self._end(batch.prefill)
                self._scheduler.release([batch.prefill])
        self._prompt_tokens += len(batch.chunk)
        self._new_tokens += sum(map(len, tokens)) + (first_token is not None)
        self._busy_s += time.perf_counter() - began

    def _prefill(self, prompt: Sequence | Scoring, chunk: list[int]) -> tuple[list[int], Logits]:
        """Run a chunk of a prompt; return which of its logits were wanted, and these. A search takes them itself."""
        wanted = prompt.wanted(len(chunk))
        search = prompt.search if isinstance(prompt, Sequence) else None
        inside = search is not None and search.looks_inside
        hidden = np.empty((len(chunk), self._engine.width), np.float32) if inside else None
        logits = self._engine.prefill(prompt.row, chunk, prompt.cached, wanted, hidden)
        if search is not None and hidden is not None:
            search.see(hidden)
        if search is not None and wanted:
            self._search(search, lambda: search.start(logits[0], self._engine))
        return wanted, logits

    def _decode(self, lanes: Many[Sequence | Lane]) -> list[list[int]]:
        """The next token of each sequence, and more where guesses were right. Where the engine fails, the sequence with which it does ends."""
        try:
            return self._advance(lanes, ahead=True)
        except Exception as e:  # noqa: BLE001 - found out below whose it is
            fault = self._fault("the engine", e)
        for count in range(1, len(lanes) + 1):  # a step may be taken anew: it writes the same where it wrote before
            try:
                self._engine.decode([s.ids[-1] for s in lanes[:count]], [s.cached for s in lanes[:count]])
            except Exception:  # noqa: BLE001 - the same again, or another
                lanes[count - 1].fail(fault)
                return [[] for _ in lanes]
        return self._advance(lanes, ahead=False)

    def _advance(self, lanes: Many[Sequence | Lane], *, ahead: bool) -> list[list[int]]:
        """Take a step; searches take their tokens themselves. Raises: what the engine raises."""
        sequences = [s for s in lanes if isinstance(s, Sequence)]
        searches = list({id(s.search): s.search for s in lanes if isinstance(s, Lane)}.values())
        due, past = [s.ids[-1] for s in lanes], [s.cached for s in lanes]
        if not searches:
            return self._advance_plain(due, past, sequences, ahead=ahead)
        inside = any(search.looks_inside for search in searches)
        hidden = np.empty((len(lanes), self._engine.width), np.float32) if inside else None
        logits = self._engine.decode(due, past, hidden)
        for search in searches:
            rows = [lane.row for lane in search.lanes]
            own = logits[rows], None if hidden is None else hidden[rows]
            self._search(search, lambda: search.advance(*own, self._engine))  # noqa: B023 - called at once
        chosen = iter(self._choose(logits[[s.row for s in sequences]], sequences) if sequences else ())
        return [[next(chosen)] if isinstance(s, Sequence) else [] for s in lanes]

    def _advance_plain(
        self, due: list[int], past: list[int], sequences: list[Sequence], *, ahead: bool
    ) -> list[list[int]]:
        guesses = [s.guess(len(sequences), self._engine.context) if self._verifier and ahead else [] for s in sequences]
        if self._verifier is None or not any(guesses):
            return [[token] for token in self._choose(self._engine.decode(due, past), sequences)]
        logits = self._verifier.verify([[token, *guess] for token, guess in zip(due, guesses, strict=True)], past)
        tokens, first = [], 0
        for sequence, guess in zip(sequences, guesses, strict=True):
            tokens.append(self._accept(logits[first : first + len(guess) + 1], sequence, guess))
            first += len(guess) + 1
        return tokens

    def _search(self, search: Search, step: Callable[[], None]) -> None:
        """Take a step of a search; one that fails ends with the fault."""
        self._new_tokens += 1
        try:
            step()
        except Exception as e:  # noqa: BLE001 - whatever it is, it is this search's alone
            search.outputs[0].fail(self._fault("the search", e))

    def _fault(self, what: str, e: Exception) -> str:
        """Log it; return what the client is told."""
        incident = secrets.token_hex(4)
        print(f"{what} failed, incident {incident}:", file=sys.stderr)
        traceback.print_exception(e)
        return f"a fault of the server ({type(e).__name__}); its log has the details under {incident}"

    def _accept(self, logits: Logits, sequence: Sequence, guess: list[int]) -> list[int]:
        """Choose token after token, as long as each is what was guessed."""
        found: list[int] = []
        for i in range(len(guess) + 1):
            (token,) = self._choose(logits[i : i + 1], [sequence], found)
            found.append(token)
            if i == len(guess) or token != guess[i] or sequence.fault:
                break
        if guess:
            sequence.pace.learn(len(guess), len(found) - 1)
        return found

    def _choose(self, logits: Logits, sequences: list[Sequence], more: Many[int] = ()) -> list[int]:
        """A token for each sequence, after its own and `more`. One whose sampler fails gets the end of text and ends with the fault; the others go on."""
        tokens: list[int] = []
        for sequence, chosen in zip(
            sequences,
            sample(logits, [s.sampler for s in sequences], [[*s.ids, *more] if more else s.ids for s in sequences]),
            strict=True,
        ):
            if isinstance(chosen, Exception):
                sequence.fail(self._fault("sampling", chosen))
            tokens.append(self._end_of_text if isinstance(chosen, Exception) else chosen)
        return tokens

    def _take(self, request: ForWorker) -> None:
        received = time.monotonic()
        if isinstance(request, m.Cancel):
            for sequence in self._scheduler.find(request.target):
                sequence.end("cancelled")
            return
        if not isinstance(request, Work):
            return  # for a process that measures, and serves nothing
        self._requests += 1
        try:
            if isinstance(request.request, m.Tokenize):
                text, ids, offsets = self._text.spans(request.request)
                self._link.send(m.Tokenized(id=request.id, text=text, ids=ids, offsets=offsets))
                return
            if isinstance(request.request, m.Score):
                self._scheduler.add(self._scoring(request, request.request, received))
                return
            sequences = self._sequences(request, request.request, received)
        except RequestError as e:
            self._fail(request.id, e.code, str(e))
            return
        except Exception as e:  # noqa: BLE001 - whatever it is, it is this request's alone
            self._fail(request.id, "internal", self._fault("a request", e))
            return
        self._open[request.id] = sequences
        for sequence in sequences[:1] if sequences[0].search else sequences:
            self._scheduler.add(sequence)

    def _scoring(self, work: Work, request: m.Score, received: float) -> Scoring:
        """Raises: BadRequest for a token there is not, or too few."""
        _, ids, offsets = self._text.spans(request)
        if len(ids) < 2:
            raise BadRequest("score: a text of at least two tokens is needed")
        if request.stride > self._engine.context:
            raise BadRequest(f"score: the stride is at most the context, {self._engine.context}")
        sizes = [end - start for start, end in itertools.pairwise(offsets)]
        return Scoring(work, request, ids, sizes, self._engine.context, received)

    def _sequences(self, work: Work, request: m.Generate, received: float) -> list[Sequence]:
        """Encode the prompt and fit it into the context; one sequence for each continuation. Raises: BadRequest, TooLong."""
        prompt = (
            self._text.encode(request.prompt)
            if request.prompt is not None
            else self._text.check(request.prompt_ids or [])
        )
        self._text.check([token for token, _ in request.logit_bias])
        context, dropped = self._engine.context, 0
        if request.max_new_tokens >= context:
            raise TooLong(
                f"max_new_tokens is {request.max_new_tokens}; the context of {context} has room for {context - 1}"
            )
        excess = len(prompt) + request.max_new_tokens - context
        if excess > 0:
            if request.truncate == "error":
                raise TooLong(
                    f"the prompt has {len(prompt)} tokens and max_new_tokens is {request.max_new_tokens}, together over the "
                    f'context of {context}; shorten either, or ask for truncate="left"'
                )
            prompt, dropped = prompt[excess:], excess
        if request.rows > self._engine.rows:
            raise BadRequest(
                f"strategy {request.strategy} needs {request.rows} rows here, and {self._spec.engine} has {self._engine.rows}; "
                "ask for fewer, or start the server with more --rows"
            )
        seed = request.seed if request.seed is not None else secrets.randbits(62)
        bad_words = [ids for word in request.bad_words for ids in self._text.forms(word)]
        sequences = []
        for index in range(request.n):
            own_seed = (seed + index) % SEEDS
            processors = Processors(request, len(prompt), self._end_of_text, bad_words)
            sampler = Sampler(request, own_seed, processors)
            increments = self._text.increments()
            sequences.append(
                Sequence(
                    work, request, index, prompt, dropped, own_seed, increments, sampler, self._end_of_text, received
                )
            )
        if request.rows > 1:
            lead = sequences[0]
            lead.branches = True  # what it computes of the prompt is kept

            def fresh() -> Processors:
                return Processors(request, len(prompt), self._end_of_text, bad_words)

            def stops(tokens: Many[int]) -> bool:
                text = self._text.increments()
                written = "".join(map(text.push, tokens))
                return any(stop in written for stop in request.stop)

            if request.strategy == "contrastive":
                lead.search, lead.reuses = ContrastiveSearch(sequences, fresh), False
            else:
                lead.search = BeamSearch(sequences, fresh, self._end_of_text, stops)
        return sequences

    def _send_piece(self, sequence: Sequence) -> None:
        now = time.monotonic()
        if now >= sequence.sent_at + PIECE_S and (piece := sequence.take_piece()):
            first, sequence.sent_at = sequence.sent_at < 0, now
            self._link.send(piece)
            if first:
                time.sleep(YIELD_S)

    def _end(self, sequence: Sequence | Scoring | Lane) -> None:
        """A sequence has finished. With the last of its request's: the last reply, a result if any had started, else an error."""
        if isinstance(sequence, Scoring):
            if sequence.finished == "length":
                self._link.send(sequence.result())
            elif sequence.fault:
                self._fail(sequence.id, "internal", sequence.fault)
            else:
                self._fail(sequence.id, str(sequence.finished), "not scored to its end")
            return
        sequences = self._open.get(sequence.id, [])
        if not sequences or any(s.finished is None for s in sequences):
            return  # it has been answered with another that ended in the same moment; or there are others to come
        del self._open[sequence.id]
        for one in sequences:
            if one.request.stream and (piece := one.take_piece()):
                self._link.send(piece)
        if fault := next((s.fault for s in sequences if s.fault), ""):
            self._fail(sequence.id, "internal", fault)
            return
        if not any(s.started for s in sequences):
            why = {"cancelled": "cancelled while it waited", "deadline": "its time ran out while it waited"}
            reason = str(sequence.finished)
            self._fail(sequence.id, reason, why[reason])
            return
        spec = self._spec
        names = {"model": spec.model, "engine": spec.engine, "precision": spec.precision}
        self._link.send(result(sequences, **names, digest=self._digest, threads=self._engine.threads))

    def _fail(self, request_id: int, code: str, message: str) -> None:
        self._link.send(m.Failure(id=request_id, code=code, message=message))

    def _tell_places(self) -> None:
        """Tell streams that wait where they stand."""
        line = list(self._scheduler.in_line())
        for place, sequence in enumerate(line, 1):
            if sequence.streams and isinstance(sequence, Sequence) and sequence.place != place:
                sequence.place = place
                self._link.send(m.Progress(id=sequence.id, stage="waiting", done=place, total=len(line), unit="place"))

    def _beat(self) -> None:
        now = time.monotonic()
        if now < self._beat_at + BEAT_S * 0.9:
            return
        self._beat_at = now
        self._tell_places()
        self._link.send(
            Beat(
                id=None, running=self._scheduler.running, waiting=self._scheduler.waiting, rss_bytes=self._process.memory_info().rss,
                requests=self._requests, prompt_tokens=self._prompt_tokens, new_tokens=self._new_tokens, busy_ms=self._busy_s * 1000,
            )
        )  # fmt: skip


def _prefix_cache(arch: Architecture, spec: Spec) -> PrefixCache:
    kind = spec.engine, spec.precision
    return PrefixCache(arch.prefix_cache_bytes(*kind), arch.row_bytes(*kind) // arch.context)
