"""Run of a batch on the engine: a chunk of a prompt, and a token or more for every row that decodes.

A failure ends only the task that causes it: a prompt or a search ends its own request, and when the engine fails for a
whole batch, the row with which it does is searched for.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import numpy as np

from protocol.errors import RequestError
from server.engines.base import Adaptive, Engine, Hidden, Judge, Logits, Run, Selective, Together
from server.worker.costs import Costs, price
from server.worker.faults import for_client
from server.worker.sampling import sample
from server.worker.scheduler import Batch, Outcome, Part
from server.worker.task import Question, Row, Sampled, is_sampled

Chosen = list[tuple[Sampled, list[int]]]
MOST_LOGITS = 144
"""Most tokens of a step with guesses, those of all rows together: their logits take memory (28 MB on gpt2, twice)."""


@dataclass(slots=True)
class _Tried:
    """Row whose guesses a step verifies."""

    row: Sampled
    guess: list[int]
    first: int
    """Place of its first logits among those of the step."""
    found: list[int] = field(default_factory=list)
    """Tokens chosen so far."""

    @property
    def goes_on(self) -> bool:
        """Whether the token found last is the one guessed, so that the logits after it count."""
        count = len(self.found)
        return count <= len(self.guess) and self.found[-1] == self.guess[count - 1] and not self.row.fault


class Runner:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._together = engine if isinstance(engine, Together) else None
        self._selective = engine if isinstance(engine, Selective) else None
        self._judging = engine if isinstance(engine, Judge) else None
        self._adaptive = engine if isinstance(engine, Adaptive) else None
        self.costs = Costs()

    @property
    def _threads(self) -> int:
        """Number of threads of the latest step."""
        return self._adaptive.threads_used if self._adaptive else self._engine.threads

    def run(self, batch: Batch) -> Outcome:
        """Take one step. A fault of the engine, of a sampler or of a search is not raised: its task fails."""
        rows, parts = batch.decode, batch.prefill
        if not parts:
            return Outcome(self._decode(rows) if rows else [], [], 0.0)
        if self._together and len(rows) + len(parts) > 1 and not _look_inside(batch):
            outcome = self._run_together(self._together, batch)
            if outcome is not None:
                return outcome
        chosen = self._decode(rows) if rows else []
        began = time.perf_counter()
        fresh = [self._prefill(part) for part in parts]
        return Outcome(chosen, fresh, (time.perf_counter() - began) * 1000)

    def _run_together(self, engine: Together, batch: Batch) -> Outcome | None:
        """Take one step in one call of the engine; return None where that fails: whose fault it is shows one by one."""
        rows, parts = batch.decode, batch.prefill
        guesses = self._guesses(rows)
        runs = _runs_of(rows, guesses)
        questions = self._questions(parts)
        runs += [_run_of(part, question) for part, question in zip(parts, questions, strict=True)]
        began = time.perf_counter()
        try:
            logits = self._judge(runs, questions) if any(questions) else engine.run(runs)  # [all wanted, vocabulary]
        except Exception as e:  # noqa: BLE001 - whatever it is
            for_client("the engine", e)
            return None
        took_ms = (time.perf_counter() - began) * 1000
        ends = list(itertools.accumulate(len(run.wanted) for run in runs))
        decoded = ends[len(rows) - 1] if rows else 0
        chosen = self._take(rows, guesses, logits[:decoded], None) if rows else []
        fresh = [
            self._prefilled(part, logits[end - len(run.wanted) : end], None)
            for part, run, end in zip(parts, runs[len(rows) :], ends[len(rows) :], strict=True)
        ]
        return Outcome(chosen, fresh, took_ms * batch.prompt_tokens / (batch.prompt_tokens + decoded))

    def _prefill(self, part: Part) -> Many[Row]:
        """Run a chunk of a prompt; return the rows that decode from here on."""
        prompt, chunk = part.prompt, part.chunk
        try:
            if any(questions := self._questions([part])):
                return self._prefilled(part, self._judge([_run_of(part, questions[0])], questions), None)
            hidden = self._hidden(len(chunk)) if prompt.looks_inside else None
            logits = self._engine.prefill(prompt.row, chunk, prompt.cached, part.wanted, hidden)  # [wanted, vocabulary]
        except Exception as e:  # noqa: BLE001 - whatever it is, it concerns this prompt alone
            prompt.fail(for_client("the engine", e))
            return ()
        return self._prefilled(part, logits, hidden)

    def _questions(self, parts: Many[Part]) -> list[Question | None]:
        """Return what each of the prompts asks of an engine that judges."""
        return [part.prompt.asked(len(part.chunk)) if self._judging else None for part in parts]

    def _judge(self, runs: Many[Run], questions: Many[Question | None]) -> Logits:
        """Take a step, answer the questions of its last runs, and return the logits that are wanted."""
        if self._judging is None:
            raise TypeError("this engine does not judge")
        members = next((question.members for question in questions if question and question.members is not None), None)
        logits, judged = self._judging.judge(runs, members)
        first = 0
        for question in questions:
            if question is not None:
                question.take(judged.part(first, first + len(question.tokens)))
                first += len(question.tokens)
        return logits

    def _prefilled(self, part: Part, logits: Logits, hidden: Hidden | None) -> Many[Row]:
        """Give a prompt the results of its chunk; return the rows that decode from here on."""
        try:
            return part.prompt.prefilled(len(part.chunk), logits, hidden, self._engine)
        except Exception as e:  # noqa: BLE001 - whatever it is, it concerns this prompt alone
            part.prompt.fail(for_client("a prompt", e))
            return ()

    def _decode(self, rows: Many[Row]) -> Chosen:
        """Run the next token of every row.

        When the engine fails, the row with which it does ends, and no row gets a token in this step.
        """
        try:
            return self._advance(rows, self._guesses(rows))
        except Exception as e:  # noqa: BLE001 - the row that causes it is searched for
            fault = for_client("the engine", e)
        return [] if self._blame(rows, fault) else self._advance(rows, [])

    def _blame(self, rows: Many[Row], fault: RequestError) -> bool:
        """End the row with which a step fails; return False if there is none.

        A step may be repeated: it writes the same keys and values to the same places.
        """
        for count in range(1, len(rows) + 1):
            try:
                self._engine.decode([row.ids[-1] for row in rows[:count]], [row.cached for row in rows[:count]])
            except Exception:  # noqa: BLE001 - the same fault again, or another
                rows[count - 1].fail(fault)
                return True
        return False

    def _guesses(self, rows: Many[Row]) -> list[list[int]]:
        """Return guesses at what follows each row's next token; none at all where there are none, or searches."""
        sampled = [row for row in rows if is_sampled(row)]
        if self._together is None or not rows or len(sampled) < len(rows):
            return []
        cost = price(self.costs.of_row(self._threads), len(rows))
        most = MOST_LOGITS // len(rows) - 1
        guesses = [row.guess(cost, most) for row in sampled]
        return guesses if any(guesses) else []

    def _advance(self, rows: Many[Row], guesses: list[list[int]]) -> Chosen:
        """Take a step. Raises: whatever the engine raises."""
        hidden = self._hidden(len(rows)) if any(row.search and row.search.looks_inside for row in rows) else None
        began = time.perf_counter()
        if self._together and guesses:
            logits = self._together.run(_runs_of(rows, guesses))
        else:
            logits = self._step(rows, hidden)
        self.costs.note(len(logits), self._threads, (time.perf_counter() - began) * 1000)
        return self._take(rows, guesses, logits, hidden)

    def _step(self, rows: Many[Row], hidden: Hidden | None) -> Logits:
        """Run a token of every row, of whose logits the samplers may say that the largest are enough."""
        ids, past = [row.ids[-1] for row in rows], [row.cached for row in rows]
        if self._selective and len(rows) <= self._selective.best_rows:
            best = [row.sampler.best if is_sampled(row) else 0 for row in rows]
            if all(best):
                return self._selective.decode(ids, past, hidden, best)
        return self._engine.decode(ids, past, hidden)

    def _take(self, rows: Many[Row], guesses: list[list[int]], logits: Logits, hidden: Hidden | None) -> Chosen:
        """Choose from a step's logits, [rows and guesses, vocabulary]; searches take their own."""
        sampled = [row for row in rows if is_sampled(row)]
        if guesses:
            return self._accept(sampled, guesses, logits)
        if len(sampled) < len(rows):
            for search in {id(row.search): row.search for row in rows if row.search is not None}.values():
                own = [lane.row for lane in search.lanes]
                try:
                    search.advance(logits[own], None if hidden is None else hidden[own], self._engine)
                except Exception as e:  # noqa: BLE001 - whatever it is, it concerns this search alone
                    search.fail(for_client("a search", e))
            logits = logits[[row.row for row in sampled]]  # [sampled, vocabulary]
        tokens = self._choose(logits, sampled, [row.ids for row in sampled])
        return [(row, [token]) for row, token in zip(sampled, tokens, strict=True)]

    def _accept(self, rows: list[Sampled], guesses: list[list[int]], logits: Logits) -> Chosen:
        """Choose token after token of each row from [rows and guesses, vocabulary], as long as each is the one guessed.

        The next ones of all rows are chosen together.
        """
        firsts = itertools.accumulate((len(guess) + 1 for guess in guesses[:-1]), initial=0)
        tried = [_Tried(row, guess, first) for row, guess, first in zip(rows, guesses, firsts, strict=True)]
        going = tried
        while going:
            histories = [[*one.row.ids, *one.found] if one.found else one.row.ids for one in going]
            places = [one.first + len(one.found) for one in going]
            tokens = self._choose(logits, [one.row for one in going], histories, places)
            for one, token in zip(going, tokens, strict=True):
                one.found.append(token)
            going = [one for one in going if one.goes_on]
        for one in tried:
            if one.guess:
                one.row.learn(len(one.guess), len(one.found) - 1)
        return [(one.row, one.found) for one in tried]

    def _choose(
        self, logits: Logits, rows: list[Sampled], histories: Many[Many[int]], places: Many[int] | None = None
    ) -> list[int]:
        """Choose a token for each row, after its history, from [., vocabulary] at its place there (None: in order).

        A row whose sampler fails ends with the fault, and its token is not used; the others go on.
        """
        tokens: list[int] = []
        chosen = sample(logits, [row.sampler for row in rows], histories, self._engine, places)
        for row, token in zip(rows, chosen, strict=True):
            if isinstance(token, Exception):
                row.fail(for_client("sampling", token))
                tokens.append(0)
            else:
                tokens.append(token)
        return tokens

    def _hidden(self, count: int) -> Hidden:
        return np.empty((count, self._engine.width), np.float32)  # [tokens, width]


def _look_inside(batch: Batch) -> bool:
    """Return True if some task of a step needs hidden states."""
    searches = [row.search for row in batch.decode if row.search is not None]
    return any(search.looks_inside for search in searches) or any(part.prompt.looks_inside for part in batch.prefill)


def _run_of(part: Part, question: Question | None) -> Run:
    """Return what the engine runs of a prompt's chunk."""
    judged = question.tokens if question else ()
    return Run(part.prompt.row, part.chunk, part.prompt.cached, part.wanted, judged)


def _runs_of(rows: Many[Row], guesses: list[list[int]]) -> list[Run]:
    """Return what the engine runs of rows that decode: of each the token that is due, and what is guessed after it."""
    tried = [[row.ids[-1], *guess] for row, guess in zip(rows, guesses or [[]] * len(rows), strict=True)]
    return [
        Run(at, tokens, row.cached, range(len(tokens)))
        for at, (row, tokens) in enumerate(zip(rows, tried, strict=True))
    ]
