"""The real window driven by steps from inside, for benchmarks; and how fast texts stream into it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from protocol import Client

CHARACTERS = 200_000
LINE = "Shall I compare thee to a summer's day? Thou art more lovely and more temperate: "
LINE += "rough winds do shake the buds of May.\n"
WAIT_S = 120.0
GENERATIONS = 6
"""Number of texts whose median speed counts, after one that is not counted."""
SETTINGS: dict[str, Any] = {"max_new_tokens": 300, "ignore_eos": True, "strategy": "greedy"}
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
    """Texts that stream into the page one after the other."""

    def __init__(self, endpoint: str, model: str) -> None:
        super().__init__(endpoint, model)
        self.speeds: list[float] = []
        self.cpu = 0.0
        """Seconds of CPU a second of streaming, of this process."""

    def steps(self) -> Iterator[float | Callable[[], bool]]:
        from client.window import events as e

        yield from self.open_page()
        self.state.preferences.sampling = dict(SETTINGS)
        wall = cpu = 0.0
        for number in range(1, GENERATIONS + 2):
            began, spent = time.monotonic(), time.process_time()
            self.window.app.tell(e.Do("generate"))
            yield lambda: self.state.ledgers.count >= number and self.state.page.generating is None  # noqa: B023
            last = self.state.ledgers.last
            if number > 1 and last:
                self.speeds.append(last.ledger.tokens_per_second)
                wall += time.monotonic() - began
                cpu += time.process_time() - spent
        self.cpu = cpu / wall if wall else 0.0

    def told(self) -> dict[str, Any]:
        """Return the speed, what it cost, and the request to which a script's speed can be compared."""
        last = self.state.history.entries[-1]
        way = {"model": last.result.model, "engine": last.result.engine, "precision": last.result.precision}
        speed = round(statistics.median(self.speeds), 1)
        return {"tokens_per_s": speed, "cpu": round(self.cpu, 2), "request": {"prompt": last.prompt, **way}}


def print_stream(endpoint: str, model: str) -> None:
    stream = Stream(endpoint, model)
    stream.drive()
    print(json.dumps(stream.told()))


def in_a_window(endpoint: str, model: str, **variables: str) -> dict[str, Any]:
    """Return what `Stream.told` does, of a process with these variables."""
    code = f"from scripts.bench.window import print_stream; print_stream({endpoint!r}, {model!r})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=os.environ | variables, stdout=subprocess.PIPE, text=True, timeout=10 * WAIT_S, check=True
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def in_a_script(endpoint: str, request: dict[str, Any]) -> float:
    """Return the median speed at which a script gets texts for the same request."""
    speeds = list[float]()
    with Client(endpoint) as client:
        for _ in range(GENERATIONS + 1):
            stream = client.stream(**request, **SETTINGS, logprobs=LOGPROBS, truncate="left")
            for _piece in stream:
                pass
            speeds.append(stream.result.ledger.tokens_per_second)
    return statistics.median(speeds[1:])


def speeds(endpoint: str, model: str) -> dict[str, float]:
    """Measure in turns how fast a text is written for a script and for the window: drawn by llvmpipe, as here without a
    graphics card; and with GALLIUM_NOOP=1, which draws nothing and so stands for a card.
    """
    software = in_a_window(endpoint, model)
    scripts = [in_a_script(endpoint, software["request"])]
    card = in_a_window(endpoint, model, GALLIUM_NOOP="1")
    scripts.append(in_a_script(endpoint, software["request"]))
    script = statistics.mean(scripts)
    return {
        "script_tokens_per_s": round(script, 1),
        "software_tokens_per_s": software["tokens_per_s"],
        "software_share": round(software["tokens_per_s"] / script, 3),
        "software_cpu": software["cpu"],
        "card_tokens_per_s": card["tokens_per_s"],
        "card_share": round(card["tokens_per_s"] / script, 3),
        "card_cpu": card["cpu"],
    }
