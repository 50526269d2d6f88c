"""What both kinds of completion answer: their head, usage, reasons, and several generations at once."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from client.doors.http.errors import SERVER, Refused
from protocol import messages as m
from protocol.aio import AsyncStream
from protocol.client import GENERATE_S

R = TypeVar("R")
Text: TypeAlias = m.Generated | m.Continuation

UNNAMED = "gpt2d"
"""What the model is called in a stream whose request named none."""


@dataclass
class Usage:
    """Tokens of one answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reused: int = 0

    def count(self, result: m.Generated) -> None:
        """Count a generation, its prompt once."""
        self.prompt_tokens += result.ledger.prompt_tokens
        self.reused += result.ledger.reused_tokens
        self.completion_tokens += sum(len(one.ids) for one in texts(result))

    def told(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.reused},
        }


def texts(result: m.Generated) -> list[Text]:
    """Return all that one generation wrote, in its order."""
    return [result, *result.others]


def head(kind: str, of: str, model: str | None) -> dict[str, Any]:
    """Return what each answer, and each piece of one, begins with."""
    name = f"{kind}-{secrets.token_hex(12)}"
    return {"id": name, "object": of, "created": int(time.time()), "model": model or UNNAMED}


def identify(head: dict[str, Any], result: m.Generated) -> None:
    """Put into an answer's head which model wrote it."""
    head["model"] = f"{result.model}/{result.engine}/{result.precision}"
    head["system_fingerprint"] = f"fp_{result.digest[:16]}"


def finish(reason: m.FinishReason) -> str:
    """Return OpenAI's word for the end of a text. Raises: Refused for one that was cut off."""
    if reason == "deadline":
        raise Refused(504, f"the text was not done within {GENERATE_S:.0f} s; ask for fewer tokens", SERVER, "timeout")
    if reason == "cancelled":
        raise Refused(503, "the text was cancelled by the server", SERVER)
    return "length" if reason == "length" else "stop"


async def together(work: Sequence[Coroutine[Any, Any, R]]) -> list[R]:
    """Return the results of several coroutines, in their order; where one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def merged(streams: Sequence[AsyncStream]) -> AsyncGenerator[tuple[int, m.Tokens | m.Generated]]:
    """Yield the pieces of several streams as they come, each with its stream's number, and each one's result.

    Leaving the iteration cancels all that still write. Raises: what a stream raises.
    """
    waiting = {asyncio.ensure_future(_next(stream)): number for number, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = waiting.pop(task)
                event = task.result()
                if isinstance(event, m.Tokens):
                    waiting[asyncio.ensure_future(_next(streams[number]))] = number
                yield number, event
    finally:
        for task in waiting:
            task.cancel()
        for stream in streams:
            stream.close()


async def _next(stream: AsyncStream) -> m.Tokens | m.Generated:
    """Return the next piece of a stream, after the last one its result."""
    async for piece in stream:
        return piece
    return stream.result
