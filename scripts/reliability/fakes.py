"""A fake engine with known logits, with which everything but the arithmetic is tested in microseconds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from server.engines.base import KV, Hidden, Logits, Memory, Run
from server.link import ForWorker, FromWorker, Pieces


class FakeEngine:
    """Remembers the token at each position of each row, and predicts: 1 + (sum of the row) % (vocabulary - 1).

    A sequence whose row was mixed up with another's therefore gets other tokens.
    """

    width = 1
    threads = 1
    quantised_share = 0.0

    def __init__(self, rows: int = 4, context: int = 64, vocabulary: int = 97) -> None:
        self.rows = rows
        self.context = context
        self.vocabulary = vocabulary
        self.cells = np.full((rows, context), -1, np.int64)  # [rows, context]
        self.calls: list[str] = []

    def prefill(
        self, row: int, ids: Sequence[int], past: int, wanted: Sequence[int], hidden: Hidden | None = None
    ) -> Logits:
        self.calls.append(f"prefill {row} {past}+{len(ids)}")
        assert (self.cells[row, :past] >= 0).all(), "positions before the chunk are missing"
        self.cells[row, past : past + len(ids)] = ids
        return (
            np.stack([self._logits(row, past + w + 1) for w in wanted])
            if wanted
            else np.empty((0, self.vocabulary), np.float32)
        )

    def decode(self, ids: Sequence[int], past: Sequence[int], hidden: Hidden | None = None) -> Logits:
        self.calls.append(f"decode {len(ids)}")
        for row, (token, position) in enumerate(zip(ids, past, strict=True)):
            self.cells[row, position] = token
        return np.stack([self._logits(row, position + 1) for row, position in enumerate(past)])

    def move(self, source: int, target: int, positions: int, first: int = 0) -> None:
        self.calls.append(f"move {source}->{target}")
        self.cells[target, first:positions] = self.cells[source, first:positions]
        self.cells[target, positions:] = -1

    def export(self, row: int, positions: int, spare: Memory | None = None) -> KV:
        """Return the tokens in place of their keys and values, 8 bytes a position."""
        cells = self.cells[row, :positions].astype(np.float32).reshape(1, 1, positions, 1).copy()
        return KV(cells, cells)

    def restore(self, row: int, kv: KV) -> None:
        self.calls.append(f"restore {row} {kv.positions}")
        self.cells[row] = -1
        self.cells[row, : kv.positions] = kv.keys[0, 0, :, 0].astype(np.int64)

    def close(self) -> None:
        pass

    def _logits(self, row: int, end: int) -> Logits:
        logits = np.zeros(self.vocabulary, np.float32)
        logits[self.expected(self.cells[row, :end].tolist())] = 10
        return logits

    def expected(self, ids: Sequence[int]) -> int:
        """Return the greedy next token of a sequence, which is never token 0, the end of text."""
        return 1 + sum(ids) % (self.vocabulary - 1)

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """Return what it writes after a prompt."""
        ids = list(prompt)
        for _ in range(count):
            ids.append(self.expected(ids))
        return ids[len(prompt) :]


class TogetherEngine(FakeEngine):
    """The same, and it runs rows together."""

    def run(self, runs: Sequence[Run]) -> Logits:
        self.calls.append("run " + " ".join(f"{run.row}:{run.past}+{len(run.ids)}" for run in runs))
        assert len({run.row for run in runs}) == len(runs)
        found = [np.empty((0, self.vocabulary), np.float32)]
        for run in runs:
            assert (self.cells[run.row, : run.past] >= 0).all(), "positions before the tokens are missing"
            self.cells[run.row, run.past : run.past + len(run.ids)] = run.ids
            found += [self._logits(run.row, run.past + index + 1)[None] for index in run.wanted]
        return np.concatenate(found)


class ListConnection:
    """A worker's connection to the gateway that is two lists: what it has for the worker, and what the worker sent.

    Pieces that came in one message are apart in `sent`, as the gateway passes them on.
    """

    def __init__(self) -> None:
        self.coming: list[ForWorker] = []
        self.sent: list[FromWorker] = []
        self.messages = 0

    def send(self, message: FromWorker) -> None:
        self.messages += 1
        self.sent += message.pieces if isinstance(message, Pieces) else [message]

    def receive(self, timeout_ms: int) -> list[ForWorker]:
        coming, self.coming = self.coming, []
        return coming
