"""The ONNX Runtime engine: a hand-made graph, a KV cache that stays in place, one `run_with_iobinding` a step.

An OrtValue made from a NumPy array shares its memory. So the first B rows of one large array are the cache of a batch
of B, a single row is the cache of a prefill, and the small inputs of a step are written straight into their arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from server.catalogue.architecture import Architecture
from server.engines.base import KV, Hidden, Logits, Memory

SPIN_US = 20
"""Microseconds that an idle thread of the runtime waits awake: over the gaps between operators.

Not longer, for the sake of a second model.
"""


class _Step:
    """The bound inputs and outputs of a decode step for B sequences."""

    def __init__(self, engine: OnnxEngine, batch: int) -> None:
        self.ids = np.zeros((batch, 1), np.int64)
        self.positions = np.zeros((batch, 1), np.int64)
        self.seqlens = np.zeros(batch, np.int32)
        self.total = np.zeros((), np.int32)
        self.wanted = np.arange(batch, dtype=np.int64)
        self.logits = np.zeros((batch, engine.vocabulary), np.float32)
        self.binding = engine.bind(0, batch)
        for name in ("ids", "positions", "seqlens", "total", "wanted"):
            self.binding.bind_ortvalue_input(name, _share(getattr(self, name)))
        self.binding.bind_ortvalue_output("logits", _share(self.logits))


class OnnxEngine:
    """Runs a built graph on the CPU. Several sequences decode together; a prompt's chunk is run for one at a time."""

    def __init__(self, arch: Architecture, graph: Path, precision: str, rows: int, threads: int) -> None:
        """`graph` is the ONNX file that `Graph.write` made."""
        self.quantised_share = float(precision != "fp32")  # all products are of one kind (convert/onnx_graph.py)
        self.rows = rows
        self.context = arch.context
        self.vocabulary = arch.vocabulary
        self.width = arch.width
        self.threads = threads
        self._layers = arch.layers
        self._session: ort.InferenceSession | None = _session(graph, threads)
        shape = (rows, arch.heads, arch.context, arch.head)
        self._keys = [np.zeros(shape, np.float32) for _ in range(arch.layers)]
        self._values = [np.zeros(shape, np.float32) for _ in range(arch.layers)]
        self._prefills: dict[int, ort.IOBinding] = {}
        self._steps: dict[int, _Step] = {}

    def bind(self, first: int, count: int) -> ort.IOBinding:
        """A binding whose KV cache is rows first..first+count-1, the same buffers as past and as present."""
        binding = self._running().io_binding()
        for i in range(self._layers):
            for part, arrays in (("key", self._keys), ("value", self._values)):
                cache = _share(arrays[i][first : first + count])
                binding.bind_ortvalue_input(f"past_{part}_{i}", cache)
                binding.bind_ortvalue_output(f"present_{part}_{i}", cache)
        return binding

    def prefill(
        self, row: int, ids: Sequence[int], past: int, wanted: Sequence[int], hidden: Hidden | None = None
    ) -> Logits:
        binding = self._prefills.get(row)
        if binding is None:
            binding = self._prefills[row] = self.bind(row, 1)
        count = len(ids)
        end = past + count
        logits = np.empty((len(wanted), self.vocabulary), np.float32)
        binding.bind_cpu_input("ids", np.array(ids, np.int64)[None])
        binding.bind_cpu_input("positions", np.arange(past, end, dtype=np.int64)[None])
        binding.bind_cpu_input("seqlens", np.array([end - 1], np.int32))
        binding.bind_cpu_input("total", np.array(end, np.int32))
        binding.bind_cpu_input("wanted", np.array(wanted, np.int64))
        binding.bind_ortvalue_output("logits", _share(logits))
        self._run(binding, count, hidden)
        return logits

    def decode(self, ids: Sequence[int], past: Sequence[int], hidden: Hidden | None = None) -> Logits:
        batch = len(ids)
        step = self._steps.get(batch)
        if step is None:
            step = self._steps[batch] = _Step(self, batch)
        step.ids[:, 0] = ids
        step.positions[:, 0] = past
        step.seqlens[:] = past
        step.total[...] = max(past) + 1
        self._run(step.binding, batch, hidden)
        return step.logits

    def _run(self, binding: ort.IOBinding, tokens: int, hidden: Hidden | None) -> None:
        # What is bound once stays bound: without a place that is asked for, the states go to one that nobody reads.
        binding.bind_ortvalue_output(
            "hidden", _share(np.empty((tokens, self.width), np.float32) if hidden is None else hidden)
        )
        self._running().run_with_iobinding(binding)

    def move(self, source: int, target: int, positions: int, first: int = 0) -> None:
        for cache in (*self._keys, *self._values):
            cache[target, :, first:positions] = cache[source, :, first:positions]

    def export(self, row: int, positions: int, spare: Memory | None = None) -> KV:
        first = self._keys[0][row, :, :positions]
        kv = KV.empty((len(self._keys), *first.shape), first.dtype, spare)
        for arrays, saved in ((self._keys, kv.keys), (self._values, kv.values)):
            np.stack([cache[row, :, :positions] for cache in arrays], out=saved)
        return kv

    def restore(self, row: int, kv: KV) -> None:
        for arrays, saved in ((self._keys, kv.keys), (self._values, kv.values)):
            for cache, layer in zip(arrays, saved, strict=True):
                cache[row, :, : kv.positions] = layer

    def close(self) -> None:
        self._prefills.clear()
        self._steps.clear()
        self._keys.clear()
        self._values.clear()
        self._session = None

    def _running(self) -> ort.InferenceSession:
        if self._session is None:
            raise RuntimeError("the engine is closed")
        return self._session


def _share(array: NDArray[np.generic]) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(array)


def _session(graph: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
