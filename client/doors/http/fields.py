"""Bodies of requests: OpenAI's names and defaults. What is not known is refused by name; null is the default."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from client.doors.http.errors import Refused
from protocol.codec import sentence

B = TypeVar("B", bound="Body")

Tokens: TypeAlias = list[int]
Prompt: TypeAlias = str | Tokens
MAX_PROMPTS = 128
UNKNOWN = re.compile(r"Object contains unknown field `(.+?)`(?: - at `\$\.(.+)`)?")
FIELD = re.compile(r"- at `\$\.(\w+)")
LEAST_P = 1e-9
"""What stands for a top_p of 0, which leaves the likeliest token alone."""


class Body(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all bodies."""

    model: Annotated[str, Meta(min_length=1, max_length=400)] | None = None


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Accepted, and not done: it hides sizes from who reads along, and this is not encrypted anyway."""


class Writing(Body, frozen=True, kw_only=True):
    """What both kinds of completion have."""

    max_tokens: Annotated[int, Meta(ge=0, le=65_536)] | None = None
    temperature: float | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    user: str | None = None

    @property
    def count(self) -> int:
        """Number of choices of each prompt."""
        return self.n or 1

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream tells of its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def settings(self) -> dict[str, Any]:
        """Return the settings of a generation that these fields mean."""
        given = {
            "stop": self.stop,
            "seed": self.seed,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": self.logit_bias,
        }
        return {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else max(self.top_p, LEAST_P),
            "top_k": 0,
            "n": self.count,
            **{name: value for name, value in given.items() if value is not None},
        }


class Completion(Writing, frozen=True, kw_only=True):
    """Body of /v1/completions."""

    prompt: str | list[str | int | Tokens] | None = None
    best_of: Annotated[int, Meta(ge=1, le=16)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None

    @property
    def prompts(self) -> list[Prompt]:
        """Return each prompt; without any, an empty one. Raises: Refused."""
        given = "" if self.prompt is None else self.prompt
        if isinstance(given, str):
            return [given]
        if given and all(isinstance(one, int) for one in given):
            return [[one for one in given if isinstance(one, int)]]
        several: list[Prompt] = [one for one in given if not isinstance(one, int)]
        if len(several) < len(given) or len({type(one) for one in several}) > 1 or not several:
            raise Refused(400, "prompt must be a text, a list of texts, a list of tokens, or a list of such lists")
        if len(several) > MAX_PROMPTS:
            raise Refused(400, f"prompt must have at most {MAX_PROMPTS} texts, got {len(several)}", param="prompt")
        return several

    @property
    def written(self) -> int:
        """Number of texts to write for each prompt, of which `n` are returned."""
        return max(self.best_of or 1, self.count)

    @property
    def longest(self) -> int:
        return 16 if self.max_tokens is None else self.max_tokens

    def check(self) -> None:
        """Raises: Refused for what cannot be together."""
        if self.suffix:
            raise Refused(400, "suffix is not supported: GPT-2 continues a text, and fills no gaps", param="suffix")
        if self.best_of is not None and self.best_of < self.count:
            raise Refused(400, f"best_of must be at least n, got {self.best_of} with n {self.count}", param="best_of")
        if self.stream and self.written > self.count:
            raise Refused(
                400, "best_of above n cannot be streamed: which is the best is known at the end", param="best_of"
            )


class Message(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: str
    content: str | list[dict[str, Any]]
    name: str | None = None

    def told(self) -> dict[str, str]:
        """Return what a template sees. Raises: Refused for what is not text."""
        content = self.content
        if not isinstance(content, str):
            if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in content):
                raise Refused(400, "the content of a message must be text", param="messages")
            content = "".join(part["text"] for part in content)
        return {"role": self.role, "content": content} | ({"name": self.name} if self.name else {})


class Chat(Writing, frozen=True, kw_only=True):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=1024)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None

    @property
    def longest(self) -> int | None:
        """Most tokens to write; None: as many as the context has room for."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def told(self) -> int | None:
        """Number of alternatives to tell of each token; None: nothing is told."""
        return (self.top_logprobs or 0) if self.logprobs else None


class Tokenize(Body, frozen=True, kw_only=True):
    """Body of /tokenize, as vLLM and lm-eval have it."""

    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class Detokenize(Body, frozen=True, kw_only=True):
    tokens: Tokens


class Load(Body, frozen=True, kw_only=True):
    """Body of /models/load and /models/unload."""

    model: Annotated[str, Meta(min_length=1, max_length=400)]


def read(kind: type[B], body: bytes) -> B:
    """Read a body. Raises: Refused, which says what is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as e:
        if found := UNKNOWN.fullmatch(str(e)):
            known = "" if found[2] else ", ".join(name for name in kind.__struct_fields__ if name != "suffix")
            more = f"; there are: {known}" if known else ""
            raise Refused(400, f"{found[1]} is not supported here{more}", param=found[1]) from None
        if str(e).startswith("Expected `object`") and "$" not in str(e):
            raise Refused(400, "the body must be an object of JSON") from None
        at = FIELD.search(str(e))
        raise Refused(400, sentence(e, kind), param=at[1] if at else None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Refused(400, f"the body is not JSON: {e}") from None
