"""The real window driven by steps from inside, for benchmarks; and how fast texts stream into it."""

from __future__ import annotations

import itertools
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Self

from protocol import Client

CHARACTERS = 200_000
LINE = "Shall I compare thee to a summer's day? Thou art more lovely and more temperate: "
LINE += "rough winds do shake the buds of May.\n"
WAIT_S = 120.0
TURNS = 6
"""Number of texts whose median speed counts, after one that is not counted."""
SETTINGS: dict[str, Any] = {"max_new_tokens": 200, "ignore_eos": True, "strategy": "greedy"}
LOGPROBS = 10
"""What the window asks for beside the text, so that the script asks for it, too."""


class Driven(ABC):
    """A window that goes through `steps` while it draws as it does for a user."""

    def __init__(self, endpoint: str, model: str) -> None:
        from client.window.loop import Window

        self.window, self.model = Window(endpoint), model
        self.state = self.window.app.state
        self._steps = self.steps()
        self._next = 0.0
        self._ready: Callable[[], bool] = lambda: True
        self._give_up = time.monotonic() + WAIT_S
        self.forced = False
        """Whether sixty frames a second are drawn even if nothing changes."""

    @abstractmethod
    def steps(self) -> Iterator[float | Callable[[], bool]]:
        """Yield what to wait for before the next step: seconds, or a condition."""

    def drive(self) -> None:
        """Go through the steps, and close the window."""
        take = self.window.app.take_events

        def take_events() -> bool:
            self._advance()
            if self.forced:
                self.window.backend.touch()
            return take()

        self.window.app.take_events = take_events  # type: ignore[method-assign]
        try:
            self.window.run()
        finally:
            self.window.close()

    def open_page(self) -> Iterator[float | Callable[[], bool]]:
        """Steps to a page of 200,000 characters, and the model chosen for it."""
        from client.window import events as e

        yield lambda: self.state.link.status == "ready" and bool(self.state.models.known)
        text = (LINE * (CHARACTERS // len(LINE) + 1))[:CHARACTERS]
        self.window.app.tell(e.Edit(0, 0, text, "pasted"))
        self.window.app.tell(e.Choose(self.model, self.state.models.engine, self.state.models.precision))
        yield 1.0

    def _advance(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        if not self._ready():
            if now > self._give_up:
                raise TimeoutError(f"waited {WAIT_S:.0f} s in vain; {self.state.link.status} {self.state.link.trouble}")
            return
        try:
            step = next(self._steps)
        except StopIteration:
            self.state.quitting = True
            return
        self._ready = step if callable(step) else lambda: True
        self._next = now + (0 if callable(step) else step)
        self._give_up = now + WAIT_S


class Stream(Driven):
    """A text that streams into the page for each line on stdin; tells of it in a line of JSON."""

    def __init__(self, endpoint: str, model: str) -> None:
        super().__init__(endpoint, model)
        self._turns: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in itertools.chain(sys.stdin, [""]):
            self._turns.put(line)
            self.window.wake()

    def steps(self) -> Iterator[float | Callable[[], bool]]:
        from client.window import events as e

        yield from self.open_page()
        state, tell = self.state, self.window.app.tell
        state.preferences.sampling = dict(SETTINGS)
        print(json.dumps({}), flush=True)
        for number in itertools.count(1):
            yield lambda: not self._turns.empty()
            if not self._turns.get():
                return
            began, spent = time.monotonic(), time.process_time()
            tell(e.Do("generate"))
            yield lambda: state.ledgers.count >= number and state.page.generating is None  # noqa: B023
            cpu = (time.process_time() - spent) / (time.monotonic() - began)
            tell(e.Do("undo"))  # the next text follows the same one
            last = state.history.entries[-1]
            way = {"model": last.result.model, "engine": last.result.engine, "precision": last.result.precision}
            speed = last.result.ledger.tokens_per_second
            told = {"tokens_per_s": speed, "cpu": cpu, "request": {"prompt": last.prompt, **way}}
            print(json.dumps(told), flush=True)


def stream(endpoint: str, model: str) -> None:
    Stream(endpoint, model).drive()


class Streaming:
    """A window in a process of its own, with these variables, into which texts stream. A context manager."""

    def __init__(self, endpoint: str, model: str, **variables: str) -> None:
        code = f"from scripts.bench.window import stream; stream({endpoint!r}, {model!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._told()

    def write(self) -> dict[str, Any]:
        """Let a text stream; return its speed, the share of a core that this process took, and the request to which a
        script's speed can be compared.
        """
        assert self._process.stdin
        self._process.stdin.write("write\n")
        self._process.stdin.flush()
        return self._told()

    def _told(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the window has ended with status {self._process.wait(WAIT_S)}")
        told: dict[str, Any] = json.loads(line)
        return told

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=WAIT_S)
        finally:
            self._process.kill()


def in_a_script(client: Client, request: dict[str, Any]) -> float:
    """Return the speed at which a script gets a text for the same request."""
    stream = client.stream(**request, **SETTINGS, logprobs=LOGPROBS, truncate="left")
    for _piece in stream:
        pass
    return stream.result.ledger.tokens_per_second


def speeds(endpoint: str, model: str) -> dict[str, float]:
    """Measure in turns how fast a text is written for a script and for the window: drawn by llvmpipe, as here without a
    graphics card; and with GALLIUM_NOOP=1, which draws nothing and so stands for a card.

    A share is the median of those of each turn, since the memory's speed changes within seconds.
    """
    scripts = list[float]()
    with (
        Streaming(endpoint, model) as software,
        Streaming(endpoint, model, GALLIUM_NOOP="1") as card,
        Client(endpoint) as client,
    ):
        windows = {"software": software, "card": card}
        told: dict[str, list[dict[str, Any]]] = {name: [] for name in windows}
        for _ in range(TURNS + 1):
            for name, window in windows.items():
                told[name].append(window.write())
            scripts.append(in_a_script(client, told["card"][-1]["request"]))
    figures = {"script_tokens_per_s": round(statistics.median(scripts[1:]), 1)}
    for name, texts in told.items():
        rates = [text["tokens_per_s"] for text in texts]
        shares = [rate / script for rate, script in zip(rates, scripts, strict=True)]
        figures[f"{name}_tokens_per_s"] = round(statistics.median(rates[1:]), 1)
        figures[f"{name}_share"] = round(statistics.median(shares[1:]), 3)
        figures[f"{name}_cpu"] = round(statistics.median(text["cpu"] for text in texts[1:]), 3)
    return figures
