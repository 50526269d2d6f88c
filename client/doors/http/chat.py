"""/v1/chat/completions: conversations, for models whose folder says how a prompt is made of one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec

from client.doors.http.catalogue import Which
from client.doors.http.errors import Refused
from client.doors.http.fields import Chat
from client.doors.http.logprobs import name_of
from client.doors.http.replies import Text, Usage, finish, head, identify, merged, texts
from client.doors.http.template import render
from protocol import messages as m
from protocol.aio import AsyncClient
from protocol.tokens import bytes_of


class Conversation:
    """Answer to one body."""

    def __init__(self, client: AsyncClient, body: Chat, which: Which) -> None:
        """`which` names the model."""
        self._client = client
        self._body = body
        self._which = which
        self._usage = Usage()

    async def whole(self) -> bytes:
        """Return the answer at once. Raises: Gpt2dError, Refused."""
        result = await self._client.generate(**await self._settings())
        self._usage.count(result)
        choices = [self._choice(index, one) for index, one in enumerate(texts(result))]
        begin = head("chatcmpl", "chat.completion", self._body.model)
        identify(begin, result)
        return msgspec.json.encode(begin | {"choices": choices, "usage": self._usage.told()})

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Yield the answer as the data of events. Raises: Gpt2dError, Refused."""
        begin = head("chatcmpl", "chat.completion.chunk", self._body.model)
        if self._body.usage_wanted:
            begin["usage"] = None
        streams = [self._client.stream(**await self._settings())]
        begun = set[int]()
        async with contextlib.aclosing(merged(streams)) as events:
            async for _, event in events:
                if isinstance(event, m.Tokens):
                    delta = {"content": event.text}
                    if event.index not in begun:
                        begun.add(event.index)
                        delta = {"role": "assistant", **delta}
                    yield self._chunk(begin, event.index, delta, event.logprobs)
                    continue
                self._usage.count(event)
                for index, one in enumerate(texts(event)):
                    yield self._chunk(begin, index, {}, (), finish(one.finish_reason))
        if self._body.usage_wanted:
            yield msgspec.json.encode(begin | {"choices": [], "usage": self._usage.told()})
        yield b"[DONE]"

    async def _settings(self) -> dict[str, Any]:
        """Return the settings of the generation, with the prompt that the template makes."""
        body = self._body
        about = (await self._client.tokenize("", about=True, **self._which)).about
        if about is None or not about.chat_template:
            raise Refused(
                400,
                f"the model {body.model or 'in use'} has no chat template, so it continues texts and holds no "
                "conversations: use /v1/completions",
                param="model",
            )
        messages = [message.told() for message in body.messages]
        prompt = await render(about.chat_template, messages, about.names)
        ids = (await self._client.tokenize(prompt, **self._which)).ids[len(about.before) :]  # the template has its own
        longest = max(1, about.context - len(ids)) if body.longest is None else body.longest
        own = {"prompt_ids": ids, "max_new_tokens": longest, "logprobs": body.told}
        return {**self._which, **body.settings(), **own}

    def _choice(self, index: int, one: Text) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": one.text, "refusal": None},
            "logprobs": self._logprobs(one.logprobs),
            "finish_reason": finish(one.finish_reason),
        }

    def _chunk(
        self,
        begin: dict[str, Any],
        index: int,
        delta: dict[str, str],
        logprobs: Sequence[m.TokenLogprobs],
        reason: str | None = None,
    ) -> bytes:
        told = self._logprobs(logprobs) if delta else None
        choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}
        return msgspec.json.encode(begin | {"choices": [choice]})

    def _logprobs(self, tokens: Sequence[m.TokenLogprobs]) -> dict[str, Any] | None:
        if self._body.told is None:
            return None
        content = [
            _told(token.name or token.text, token.logprob)
            | {"top_logprobs": [_told(name_of(one), one.logprob) for one in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}


def _told(name: str, logprob: float) -> dict[str, Any]:
    return {"token": name, "logprob": logprob, "bytes": list(bytes_of(name))}
