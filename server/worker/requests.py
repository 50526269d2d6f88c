"""A request -> its tasks, and its answer."""

from __future__ import annotations

import secrets
from collections.abc import Sequence as Many
from typing import TypeAlias

from protocol import messages as m
from protocol.errors import BadRequest, TooLong
from server.engines.base import Engine, Judge
from server.link import Work
from server.worker.beams import BeamSearch
from server.worker.contrastive import ContrastiveSearch
from server.worker.passages import Passages
from server.worker.replies import Answer, Continuations, Served
from server.worker.scoring import Scores, texts_of
from server.worker.sequence import Generation, Sequence
from server.worker.task import Prompt
from server.worker.text import Text
from server.worker.text_scores import Told

Opened: TypeAlias = tuple[Answer, Many[Prompt]]


class Requests:
    """Reader of requests for one engine."""

    def __init__(self, engine: Engine, text: Text, served: Served) -> None:
        self._engine = engine
        self._text = text
        self._served = served

    def tokenized(self, request_id: int, request: m.Tokenize) -> m.Tokenized:
        """Answer a tokenize request. Raises: BadRequest for a token that does not exist, or too many."""
        spans = self._text.spans(request)
        about = self._text.about(self._engine.context) if request.about else None
        return m.Tokenized(id=request_id, text=spans.text, ids=spans.ids, offsets=spans.offsets, about=about)

    def scoring(self, work: Work, request: m.Score, received: float) -> Opened:
        """Make the answer of a score request, and its first tasks.

        Raises: BadRequest for a token that does not exist, too few, or too large a stride.
        """
        if request.stride and request.stride > self._engine.context:
            raise BadRequest(
                f"score: a stride of {request.stride} is more than the context of {self._engine.context} tokens, "
                "its limit"
            )
        boundaries = self._text.boundaries if request.unit == "word" else None
        told = Told(request.top, self._text.vocabulary.alternative, boundaries)
        texts = texts_of(request, Passages(self._text, request), told, self._engine.context)
        scores = Scores(work, request, texts, received, judges=isinstance(self._engine, Judge))
        return scores, list(scores.prompts())

    def generation(self, work: Work, request: m.Generate, received: float) -> Opened:
        """Encode the prompt and fit it into the context; make a task for each continuation, or one for all of a search.

        Raises: BadRequest, TooLong.
        """
        prompt, dropped = self._fit(self._prompt(request), request)
        if request.rows > self._engine.rows:
            raise BadRequest(
                f"strategy {request.strategy} needs {request.rows} rows here, but {self._served.engine} has "
                f"{self._engine.rows}; ask for fewer, or start the server with more --rows"
            )
        if request.strategy == "contrastive" and request.num_candidates > self._engine.vocabulary:
            raise BadRequest(f"num_candidates must be at most the model's {self._engine.vocabulary} tokens")
        generation = Generation(
            id=work.id,
            group=work.group,
            request=request,
            prompt=prompt,
            dropped=dropped,
            seed=request.seed if request.seed is not None else secrets.randbits(62),
            bad_words=[ids for word in request.bad_words for ids in self._text.forms(word)],
            stops=self._text.stops(request.stop),
            vocabulary=self._text.vocabulary,
            received=received,
            owner=work.owner,
        )
        if request.rows > 1:
            search = (ContrastiveSearch if request.strategy == "contrastive" else BeamSearch)(generation)
            return Continuations(search.outputs, self._served), [search]
        sequences = [Sequence(generation, index) for index in range(request.n)]
        return Continuations(sequences, self._served), sequences

    def _prompt(self, request: m.Generate) -> list[int]:
        """Return the prompt's tokens. Raises: BadRequest for a token that does not exist."""
        if request.logit_bias:
            self._checked("logit_bias", [token for token, _ in request.logit_bias])
        if request.prompt is not None:
            return self._text.encode(request.prompt, specials=request.specials)
        return self._checked("prompt_ids", request.prompt_ids or [])

    def _checked(self, field: str, ids: list[int]) -> list[int]:
        """Return what Text.check does. Raises: BadRequest, which names the field."""
        try:
            return self._text.check(ids)
        except BadRequest as e:
            raise BadRequest(f"{field}: {e}") from None

    def _fit(self, prompt: list[int], request: m.Generate) -> tuple[list[int], int]:
        """Return the part of the prompt that fits, and the number of tokens cut off its beginning.

        What the tokenizer puts before a text stays before what is left of it. Raises: TooLong.
        """
        context = self._engine.context
        if request.max_new_tokens >= context:
            raise TooLong(
                f"max_new_tokens must be at most {context - 1} with a context of {context} tokens, "
                f"got {request.max_new_tokens}"
            )
        excess = len(prompt) + request.max_new_tokens - context
        if excess <= 0:
            return prompt, 0
        if request.truncate == "error":
            raise TooLong(
                f"the prompt has {len(prompt)} tokens and max_new_tokens is {request.max_new_tokens}, together more "
                f'than the context of {context}; shorten either, or ask for truncate="left"'
            )
        room = context - request.max_new_tokens
        before = list(self._text.before if request.prompt is not None else ())[: room - 1]
        return [*before, *prompt[len(prompt) - room + len(before) :]], excess
