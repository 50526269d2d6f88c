"""A real daemon process whose workers have a fake engine: known logits, a delay for each step, and faults on demand.

    python -m scripts.reliability.daemon '{"delay_ms": 5}' ARGUMENTS OF gpt2d-server

The engine's next token is a function of the tokens before it (scripts.reliability.fakes.FakeEngine). A text that was
mixed up with another's, or lost a token, is therefore another text.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

from scripts.daemon import Daemon
from scripts.reliability.fakes import FakeEngine
from server.engines.base import Hidden, Logits

POISON = 13
"""A prompt that begins with this token meets the fault."""


@dataclass(frozen=True)
class Behaviour:
    delay_ms: float = 0.0
    """Time of each prefill and each decode step."""
    rows: int = 16
    context: int = 1024
    fault: str = ""
    """Fault of a row that begins with POISON: "raises", "out of memory", "no numbers", "dies" or "moves badly"."""
    load_s: float = 0.0
    """Time of a load."""


class FakeDaemon(Daemon):
    """A daemon whose every engine and precision is the fake one. Models are named as always.

    It is killed at the end of its block: there is nothing to finish that anybody waits for.
    """

    def __init__(self, folder: Path, behaviour: Behaviour, *arguments: str) -> None:
        self.program = ("scripts.reliability.daemon", json.dumps(asdict(behaviour)))
        super().__init__(folder, *arguments)

    def rss(self) -> int:
        """Return the resident bytes of the gateway's process."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()


class Behaving(FakeEngine):
    """The fake engine with a Behaviour."""

    def __init__(self, behaviour: Behaviour, vocabulary: int) -> None:
        super().__init__(behaviour.rows, behaviour.context, vocabulary)
        self._behaviour = behaviour

    def prefill(
        self, row: int, ids: Sequence[int], past: int, wanted: Sequence[int], hidden: Hidden | None = None
    ) -> Logits:
        logits = super().prefill(row, ids, past, wanted, hidden)
        self.calls.clear()
        time.sleep(self._behaviour.delay_ms / 1000)
        return self._faulty(logits, [row]) if len(logits) else logits

    def decode(self, ids: Sequence[int], past: Sequence[int], hidden: Hidden | None = None) -> Logits:
        logits = super().decode(ids, past, hidden)
        self.calls.clear()
        time.sleep(self._behaviour.delay_ms / 1000)
        return self._faulty(logits, range(len(ids)))

    def move(self, source: int, target: int, positions: int, first: int = 0) -> None:
        if self._behaviour.fault == "moves badly" and self.cells[source, 0] == POISON:
            raise RuntimeError("made up: a row that cannot be moved")
        super().move(source, target, positions, first)

    def _faulty(self, logits: Logits, rows: Sequence[int]) -> Logits:
        for i, row in enumerate(rows):
            if self._behaviour.fault not in {"", "moves badly"} and self.cells[row, 0] == POISON:
                if self._behaviour.fault == "dies":
                    os._exit(3)
                if self._behaviour.fault == "raises":
                    raise RuntimeError("a fault that was asked for")
                if self._behaviour.fault == "out of memory":
                    raise MemoryError
                logits[i] = np.nan
        return logits


def expected(prompt: list[int], count: int, vocabulary: int) -> list[int]:
    """Return what the fake engine writes after a prompt."""
    return FakeEngine(1, 1, vocabulary).greedy(prompt, count)


def main() -> None:
    """Run gpt2d-server with launchers that start another program as its workers."""
    from server import __main__ as server
    from server.launch import local

    local.PROGRAM = ("scripts.reliability.worker", sys.argv.pop(1))
    logging.getLogger("gpt2d").info("with a fake engine")
    server.main()


if __name__ == "__main__":
    main()
