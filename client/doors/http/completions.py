"""/v1/completions: texts that go on, and texts that are looked at.

A prompt's log-probabilities come from `score`, the continuation's from `generate`; both give a token and its
alternatives by the same float, and JSON keeps it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from client.doors.http.catalogue import Which
from client.doors.http.errors import Refused
from client.doors.http.fields import Completion, Prompt
from client.doors.http.logprobs import Listing
from client.doors.http.replies import Text, Usage, finish, head, identify, merged, texts, together
from protocol import messages as m
from protocol.aio import AsyncClient


@dataclass(frozen=True)
class Asked:
    """A prompt as far as it is told."""

    text: str = ""
    """Where an echo is asked for."""
    count: int = 0
    """Number of its tokens, where nothing is written after it."""
    logprobs: dict[str, Any] | None = None


class Completions:
    """Answer to one body."""

    def __init__(self, client: AsyncClient, body: Completion, which: Which) -> None:
        """`which` names the model. Raises: Refused."""
        body.check()
        self._client = client
        self._body = body
        self._which = which
        self._prompts = body.prompts
        self._head = head("cmpl", "text_completion", body.model)
        self._usage = Usage()

    async def whole(self) -> bytes:
        """Return the answer at once. Raises: Gpt2dError, Refused."""
        answers = await together([self._answer(prompt) for prompt in self._prompts])
        choices = [choice for answer in answers for choice in answer]
        for index, choice in enumerate(choices):
            choice["index"] = index
        return msgspec.json.encode(self._head | {"choices": choices, "usage": self._usage.told()})

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Yield the answer as the data of events. Raises: Gpt2dError, Refused."""
        body = self._body
        asked = await together([self._look(prompt) for prompt in self._prompts])
        listings = []
        for index in range(len(asked) * body.count):
            one = asked[index // body.count]
            listings.append(self._listing(one))
            if body.echo:
                yield self._chunk(index, one.text, one.logprobs)
            if not body.longest:
                yield self._chunk(index, "", None, "length")
        self._usage.prompt_tokens = sum(one.count for one in asked)
        streams = []
        if body.longest:
            streams = [self._client.stream(**self._settings(prompt)) for prompt in self._prompts]
        async with contextlib.aclosing(merged(streams)) as events:
            async for number, event in events:
                first = number * body.count
                if isinstance(event, m.Tokens):
                    index = first + event.index
                    yield self._chunk(index, event.text, self._listed(listings[index], event.logprobs))
                    continue
                self._usage.count(event)
                for index, written in enumerate(texts(event), first):
                    yield self._chunk(index, "", None, finish(written.finish_reason))
        if body.usage_wanted:
            yield msgspec.json.encode(self._head | {"choices": [], "usage": self._usage.told()})
        yield b"[DONE]"

    async def _answer(self, prompt: Prompt) -> list[dict[str, Any]]:
        """Return the choices of one prompt."""
        body = self._body
        if not body.longest:
            asked = await self._look(prompt)
            self._usage.prompt_tokens += asked.count
            one = {"text": asked.text, "index": 0, "logprobs": asked.logprobs, "finish_reason": "length"}
            return [dict(one) for _ in range(body.count)]
        looking = asyncio.ensure_future(self._look(prompt))
        try:
            result = await self._client.generate(**self._settings(prompt))
            asked = await looking
        finally:
            looking.cancel()
        self._usage.count(result)
        identify(self._head, result)
        written = texts(result)
        if body.written > body.count:
            written = sorted(written, key=_mean_logprob, reverse=True)[: body.count]
        return [self._choice(asked, one) for one in written]

    def _choice(self, asked: Asked, one: Text) -> dict[str, Any]:
        logprobs = self._listed(self._listing(asked), one.logprobs)
        if logprobs and asked.logprobs:
            before = asked.logprobs
            logprobs = {name: None if told is None else before[name] + told for name, told in logprobs.items()}
        text = asked.text + one.text
        return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish(one.finish_reason)}

    async def _look(self, prompt: Prompt) -> Asked:
        """Return what is told of a prompt: nothing where it only goes on.

        Raises: Refused for one that the context does not hold.
        """
        body = self._body
        if not body.echo and body.longest:
            return Asked()
        given: dict[str, Any] = {"text": prompt} if isinstance(prompt, str) else {"ids": prompt}
        told = await self._client.tokenize(**given, **self._which, about=True)
        count = len(told.ids)
        if told.about and count > told.about.context:
            room = f"the prompt has {count} tokens, more than the context of {told.about.context}; shorten it"
            raise Refused(400, room, code="context_length_exceeded", param="prompt")
        if not body.echo:
            return Asked(count=count)
        if body.logprobs is None:
            return Asked(told.text, 0 if body.longest else count)
        scored = None
        if count > 1:
            scored = await self._client.score(ids=told.ids, top=body.logprobs, bos="never", **self._which)
        listing = Listing(body.logprobs)
        listing.prompt(told, scored)
        return Asked(told.text, 0 if body.longest else count, listing.take())

    def _settings(self, prompt: Prompt) -> dict[str, Any]:
        """Return the settings of a prompt's generation."""
        body = self._body
        told = body.logprobs
        if told is None and body.written > body.count:
            told = 0  # by which the best are found
        given = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_ids": prompt}
        own = {"n": body.written, "max_new_tokens": body.longest, "logprobs": told}
        return {**self._which, **given, **body.settings(), **own}

    def _listing(self, asked: Asked) -> Listing:
        return Listing(self._body.logprobs or 0, len(asked.text))

    def _listed(self, listing: Listing, tokens: Sequence[m.TokenLogprobs]) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        listing.new(tokens)
        return listing.take()

    def _chunk(self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None = None) -> bytes:
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}
        told = {"usage": None} if self._body.usage_wanted else {}
        return msgspec.json.encode(self._head | {"choices": [choice]} | told)


def _mean_logprob(one: Text) -> float:
    logprobs = [token.logprob for token in one.logprobs]
    return math.fsum(logprobs) / len(logprobs) if logprobs else float("-inf")
