"""Run of a batch on the engine: a chunk of a prompt, and a token or more for every row that decodes.

A failure ends only the task that causes it: a prompt or a search ends its own request, and when the engine fails for a
whole batch, the row with which it does is searched for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Many

import numpy as np

from server.engines.base import Engine, Hidden, Logits, Verifier
from server.worker.faults import incident
from server.worker.sampling import sample
from server.worker.scheduler import Batch, Outcome
from server.worker.task import Prompt, Row, Sampled, is_sampled

Chosen = list[tuple[Sampled, list[int]]]


class Runner:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._verifier = engine if isinstance(engine, Verifier) else None

    def run(self, batch: Batch) -> Outcome:
        """Take one step. A fault of the engine, of a sampler or of a search is not raised: its task fails."""
        chosen = self._decode(batch.decode) if batch.decode else []
        if batch.prefill is None:
            return Outcome(chosen, (), 0.0)
        began = time.perf_counter()
        fresh = self._prefill(batch.prefill, batch.chunk)
        return Outcome(chosen, fresh, (time.perf_counter() - began) * 1000)

    def _prefill(self, prompt: Prompt, chunk: list[int]) -> Many[Row]:
        """Run a chunk of a prompt; return the rows that decode from here on."""
        at_fault = "the engine"
        try:
            wanted = prompt.wanted(len(chunk))
            hidden = self._hidden(len(chunk)) if prompt.looks_inside else None
            logits = self._engine.prefill(prompt.row, chunk, prompt.cached, wanted, hidden)  # [wanted, vocabulary]
            at_fault = "a prompt"
            return prompt.prefilled(len(chunk), logits, hidden, self._engine)
        except Exception as e:  # noqa: BLE001 - whatever it is, it concerns this prompt alone
            prompt.fail(incident(at_fault, e))
            return ()

    def _decode(self, rows: Many[Row]) -> Chosen:
        """Run the next token of every row.

        When the engine fails, the row with which it does ends, and no row gets a token in this step.
        """
        try:
            return self._advance(rows, ahead=True)
        except Exception as e:  # noqa: BLE001 - the row that causes it is searched for
            fault = incident("the engine", e)
        return [] if self._blame(rows, fault) else self._advance(rows, ahead=False)

    def _blame(self, rows: Many[Row], fault: str) -> bool:
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

    def _advance(self, rows: Many[Row], *, ahead: bool) -> Chosen:
        """Take a step, with guesses if `ahead`. Raises: whatever the engine raises."""
        due = [row.ids[-1] for row in rows]
        past = [row.cached for row in rows]
        sampled = [row for row in rows if is_sampled(row)]
        if len(sampled) == len(rows):
            return self._advance_sampled(due, past, sampled, ahead=ahead)
        searches = list({id(row.search): row.search for row in rows if row.search is not None}.values())
        hidden = self._hidden(len(rows)) if any(search.looks_inside for search in searches) else None
        logits = self._engine.decode(due, past, hidden)  # [rows, vocabulary]
        for search in searches:
            own = [lane.row for lane in search.lanes]
            try:
                search.advance(logits[own], None if hidden is None else hidden[own], self._engine)
            except Exception as e:  # noqa: BLE001 - whatever it is, it concerns this search alone
                search.fail(incident("a search", e))
        if not sampled:
            return []
        tokens = self._choose(logits[[row.row for row in sampled]], sampled)  # of [sampled, vocabulary]
        return [(row, [token]) for row, token in zip(sampled, tokens, strict=True)]

    def _advance_sampled(self, due: list[int], past: list[int], rows: list[Sampled], *, ahead: bool) -> Chosen:
        batch = len(rows)
        guesses = [row.guess(batch, self._engine.context) for row in rows] if self._verifier and ahead else []
        if self._verifier is None or not any(guesses):
            tokens = self._choose(self._engine.decode(due, past), rows)
            return [(row, [token]) for row, token in zip(rows, tokens, strict=True)]
        tried = [[token, *guess] for token, guess in zip(due, guesses, strict=True)]
        logits = self._verifier.verify(tried, past)  # [all tokens, vocabulary]
        chosen: Chosen = []
        first = 0
        for row, guess in zip(rows, guesses, strict=True):
            chosen.append((row, self._accept(logits[first : first + len(guess) + 1], row, guess)))
            first += len(guess) + 1
        return chosen

    def _accept(self, logits: Logits, row: Sampled, guess: list[int]) -> list[int]:
        """Choose token after token from [guess + 1, vocabulary], as long as each is the one guessed."""
        found: list[int] = []
        for i in range(len(guess) + 1):
            (token,) = self._choose(logits[i : i + 1], [row], found)
            found.append(token)
            if i == len(guess) or token != guess[i] or row.fault:
                break
        if guess:
            row.learn(len(guess), len(found) - 1)
        return found

    def _choose(self, logits: Logits, rows: list[Sampled], more: Many[int] = ()) -> list[int]:
        """Choose a token for each row of [rows, vocabulary], after the row's own tokens and `more`.

        A row whose sampler fails ends with the fault, and its token is not used; the others go on.
        """
        histories = [[*row.ids, *more] if more else row.ids for row in rows]
        tokens: list[int] = []
        for row, token in zip(rows, sample(logits, [row.sampler for row in rows], histories), strict=True):
            if isinstance(token, Exception):
                row.fail(incident("sampling", token))
                tokens.append(0)
            else:
                tokens.append(token)
        return tokens

    def _hidden(self, count: int) -> Hidden:
        return np.empty((count, self._engine.width), np.float32)  # [tokens, width]
