"""Texts of a request to score -> their tokens, and those that stand before them."""

from __future__ import annotations

from collections.abc import Iterator

from protocol import messages as m
from protocol.errors import BadRequest
from server.worker.text import Spans, Text
from server.worker.text_scores import Piece


class Passages:
    """The texts of one request, in their order."""

    def __init__(self, text: Text, request: m.Score) -> None:
        self._text, self._request = text, request
        self._contexts: dict[str, list[int]] = {}
        """Tokens of contexts that were given as texts: many texts may have the same."""

    def __iter__(self) -> Iterator[Piece]:
        """Raises: BadRequest, which names the text, for a token that does not exist, and for what has no beginning."""
        request = self._request
        if request.bos == "always" and self._text.start is None:
            raise BadRequest(
                "score: this model has neither a bos_token_id nor an eos_token_id to begin with; leave out `bos`"
            )
        if request.texts is None:
            spans = self._text.spans(request)
            yield Piece(self._lead(spans, [], own=request.text is not None), spans)
            return
        for index, passage in enumerate(request.texts):
            try:
                yield self._piece(passage)
            except BadRequest as e:
                raise BadRequest(f"score: texts[{index}]: {e}") from None

    def _piece(self, passage: m.Passage) -> Piece:
        context: list[int] = []
        if passage.context is not None:
            context = self._context(passage.context)
        elif passage.context_ids is not None:
            context = self._text.spans_of_tokens(passage.context_ids).ids
        if passage.text is None:
            spans = self._text.spans_of_tokens(passage.ids or [])
        else:
            spans = self._text.spans_of_text(passage.text, specials=self._request.specials, after=bool(context))
        own = passage.context is not None if context else passage.text is not None
        return Piece(self._lead(spans, context, own=own, goes_on=passage.goes_on), spans)

    def _lead(self, spans: Spans, context: list[int], *, own: bool, goes_on: bool = False) -> list[int]:
        """Return what stands before a text; `own`: whether the tokenizer has put its own tokens before that; `goes_on`:
        whether the context is the text's beginning.
        """
        start, bos = self._text.start, self._request.bos
        if start is None or bos == "never" or (own and self._text.before[:1] == (start,)):
            return context
        first = (context or spans.ids)[:1]
        if bos == "always" or ((goes_on or not context) and first != [start]):
            return [start, *context]
        return context

    def _context(self, text: str) -> list[int]:
        """Return the tokens of a context that was given as a text; none of an empty one."""
        if text not in self._contexts:
            spans = self._text.spans_of_text(text, specials=self._request.specials)
            self._contexts[text] = spans.ids if text else []
        return self._contexts[text]
