"""Many requests at once: what came back to each, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict

from protocol import Client, Gpt2dError, messages as m
from protocol.connection import Event
from scripts.reliability.daemon import expected
from server.catalogue.architecture import read_architecture
from server.catalogue.catalogue import DEMO_FOLDER

VOCABULARY = read_architecture(DEMO_FOLDER).vocabulary


class Which(TypedDict):
    """The engine and precision of a loaded model."""

    engine: str
    precision: str


NATIVE: Which = {"engine": "native", "precision": "int8"}
ONNX: Which = {"engine": "onnx", "precision": "int8"}


@dataclass
class Asked:
    """A request under way. `last` is its result or its error."""

    request: m.AnyRequest
    id: int = -1
    events: list[Event] = field(default_factory=list)
    last: m.Result | Gpt2dError | None = None
    at: float = 0.0
    """Time (monotonic) at which the last one came."""
    begun: threading.Event = field(default_factory=threading.Event)
    """Set when the first event has come."""
    done: threading.Event = field(default_factory=threading.Event)

    def take(self, event: Event) -> None:
        assert self.last is None, f"something came after the last reply: {event}"
        self.events.append(event)
        self.begun.set()
        if isinstance(event, m.Result | Gpt2dError):
            self.last, self.at = event, time.monotonic()
            self.done.set()

    def wait(self, seconds: float) -> m.Result | Gpt2dError:
        assert self.done.wait(seconds), f"no last reply within {seconds} s; {len(self.events)} events, {self.request}"
        assert self.last is not None
        return self.last

    def is_right(self) -> None:
        """Check that it ended with the text that the fake engine writes, and that its pieces, in order, are this text.

        Raises: AssertionError.
        """
        result, request = self.last, self.request
        assert isinstance(request, m.Generate) and request.prompt_ids, request
        assert isinstance(result, m.Generated), f"{type(result).__name__}: {result}"
        assert result.ids == expected(list(request.prompt_ids), request.max_new_tokens, VOCABULARY)
        if request.stream:
            pieces = [event for event in self.events if isinstance(event, m.Tokens)]
            assert [token for piece in pieces for token in piece.ids] == result.ids
        numbers = [event.seq for event in self.events if isinstance(event, m.Reply)]
        assert numbers == list(range(len(numbers))), f"a gap in {numbers}"


def ask(client: Client, request: m.AnyRequest, timeout: float = 60) -> Asked:
    asked = Asked(request)
    asked.id = client.connection.submit(request, asked.take, timeout)
    return asked


def text(
    key: int,
    tokens: int,
    *,
    stream: bool = True,
    prompt_tokens: int = 6,
    engine: str | None = None,
    precision: str | None = None,
) -> m.Generate:
    """Return a greedy generation whose text is known. No two keys below 4,000 have the same."""
    return m.Generate(
        engine=engine,
        precision=precision,
        prompt_ids=[14 + key % 4000] * prompt_tokens,
        max_new_tokens=tokens,
        strategy="greedy",
        ignore_eos=True,
        speculate=0,
        stream=stream,
    )


def error_of(call: Callable[[], object], *kinds: type[Gpt2dError]) -> Gpt2dError:
    """Return the error that a call raises. Raises: AssertionError if it raises none, or one of another kind."""
    try:
        result = call()
    except kinds as e:
        return e
    except Gpt2dError as e:
        raise AssertionError(f"another error, {type(e).__name__}: {e}") from e
    raise AssertionError(f"no error: {result}")


def running(client: Client) -> int:
    """Number of sequences in all workers, waiting ones included."""
    return sum(worker.running + worker.waiting for worker in client.ping().workers)


def until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait until `condition()` holds; return the seconds it took. Raises: AssertionError."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds, f"{what}: not within {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - began
