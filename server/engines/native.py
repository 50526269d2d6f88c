"""The native engine: our own kernels (server/kernels), called through their C interface.

Prefill and decode are one routine over tokens, each with its row and position. A token's logits are the same bits
whatever it is computed together with.
"""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.catalogue.architecture import Architecture
from server.catalogue.engines import (
    BITS,
    CACHE_BITS,
    CACHE_SCALE_BYTES,
    KERNELS_INSTALL,
    KERNELS_VERSION,
    choose_cache,
    instruction_set as set_in_force,
)
from server.convert.native_layout import head_bits
from server.engines.base import KV, Hidden, Judged, Logits, Memory, Run
from server.engines.crew import Crew

CHUNK = 16 << 20
"""Bytes read at a time; progress is reported after each."""
ACTIVATIONS = ("gelu_new", "gelu", "relu", "silu", "quick_gelu", "tanh", "mish")
"""In the order of their numbers in gpt2d_kernels.h."""
NO_ACTIVATION = -1
"""GPT2D_NO_ACTIVATION in gpt2d_kernels.h."""
NOTHING_S = 10e-6
"""Time without a core that a step may have without a word: some clocks and interrupts."""
BEST_ROWS = 2
"""Most rows of a step for which the kernels read the head in two passes (src/head.cpp)."""
LONGEST_BYTES = 1 << 17
"""GPT2D_LONGEST_BYTES in gpt2d_kernels.h: the longest context whose keys and values can be bytes."""
NO_MEMORY = -2
"""GPT2D_NO_MEMORY in gpt2d_kernels.h."""


Quantised = tuple[NDArray[np.int8], NDArray[np.float32]]
"""[tokens, n] whole numbers, and [tokens, n / BLOCK] scales of their blocks."""


class Shape(ctypes.Structure):
    """Numbers of a model, as gpt2d_shape in gpt2d_kernels.h."""

    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in (
                "layers",
                "heads",
                "width",
                "inner",
                "context",
                "vocabulary",
                "bits",
                "head_bits",
                "tied",
                "activation",
                "scaled",
                "scaled_by_layer",
            )
        ),
        ("epsilon", ctypes.c_float),
        ("cache_bits", ctypes.c_int32),
    )


class Choice(ctypes.Structure):
    """Settings for choosing one token, as gpt2d_choice in gpt2d_kernels.h.

    `biased`, `banned`, `seen` and `counts` are addresses of int32, `biases` of float32, as many as their count says.
    """

    _fields_ = (
        ("uniform", ctypes.c_double), ("top_p", ctypes.c_double), ("typical_p", ctypes.c_double),
        ("temperature", ctypes.c_float), ("min_p", ctypes.c_float), ("top_k", ctypes.c_int32),
        ("biased_count", ctypes.c_int32), ("banned_count", ctypes.c_int32), ("seen_count", ctypes.c_int32),
        ("biased", ctypes.c_void_p), ("biases", ctypes.c_void_p), ("banned", ctypes.c_void_p),
        ("seen", ctypes.c_void_p), ("counts", ctypes.c_void_p),
        ("repetition", ctypes.c_float), ("presence", ctypes.c_float), ("frequency", ctypes.c_float),
    )  # fmt: skip


class Scores(ctypes.Structure):
    """What is told of tokens at their places, as gpt2d_scores in gpt2d_kernels.h."""

    _fields_ = (
        ("count", ctypes.c_int32),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "places", "tokens", "members", "logits", "totals", "entropies", "masses", "ranks", "greedy",
            )
        ),
    )  # fmt: skip


def shape_of(arch: Architecture, precision: str, cache: str | None = None) -> Shape:
    """Return the numbers of a model whose LM head is its token table."""
    cache_bits = CACHE_BITS[choose_cache("native", precision, cache)]
    return Shape(
        arch.layers, arch.heads, arch.width, arch.inner, arch.context, arch.vocabulary,
        BITS[precision], head_bits(precision), 1, ACTIVATIONS.index(arch.activation),
        arch.scale_attn_weights, arch.scale_attn_by_inverse_layer_idx, arch.epsilon, cache_bits,
    )  # fmt: skip


@cache
def library() -> ctypes.CDLL:
    """Return the kernels. Raises: ImportError, saying what is missing."""
    import gpt2d_kernels

    path = gpt2d_kernels.library()
    if path is None:
        raise ImportError("gpt2d-kernels was installed without a C++ compiler")
    kernels = ctypes.CDLL(str(path))
    if kernels.gpt2d_version() != KERNELS_VERSION:
        raise ImportError(f"gpt2d-kernels has another version; {KERNELS_INSTALL} builds this one")
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    kernels.gpt2d_new.argtypes, kernels.gpt2d_new.restype = (
        [ctypes.POINTER(Shape), integer, integer, ctypes.c_char_p],
        pointer,
    )
    kernels.gpt2d_free.argtypes, kernels.gpt2d_free.restype = [pointer], None
    kernels.gpt2d_weights.argtypes, kernels.gpt2d_weights.restype = [pointer, ctypes.POINTER(ctypes.c_size_t)], pointer
    kernels.gpt2d_observe.argtypes = [pointer, integer, integer, pointer, pointer, pointer, pointer, pointer]
    kernels.gpt2d_calibrate.argtypes = [integer, integer, pointer, pointer, integer, pointer, pointer]
    kernels.gpt2d_forward.argtypes = [pointer, integer, pointer, pointer, pointer, integer, *[pointer] * 4]
    kernels.gpt2d_score.argtypes = [pointer, integer, pointer, pointer, pointer, integer, *[pointer] * 3]
    kernels.gpt2d_strips_read.argtypes = [pointer]
    kernels.gpt2d_always_two_passes.argtypes, kernels.gpt2d_always_two_passes.restype = [pointer, integer], None
    kernels.gpt2d_use_threads.argtypes = [pointer, integer]
    kernels.gpt2d_waits.argtypes, kernels.gpt2d_waits.restype = [pointer, pointer], ctypes.c_double
    kernels.gpt2d_move.argtypes = [pointer, integer, integer, integer, integer]
    kernels.gpt2d_export.argtypes = kernels.gpt2d_restore.argtypes = [pointer, integer, integer, pointer, pointer]
    kernels.gpt2d_sample.argtypes = [ctypes.c_char_p, integer, pointer, pointer, integer, pointer, pointer]
    kernels.gpt2d_choose.argtypes = [pointer, integer, pointer, pointer, pointer, pointer]
    kernels.gpt2d_matmul.argtypes = [
        ctypes.c_char_p, integer, integer, integer, pointer, integer, integer, pointer, pointer,
    ]  # fmt: skip
    return kernels


def choose(
    logits: Logits, rows: Sequence[int], choices: Sequence[Choice], *, instruction_set: str | None = None
) -> list[int]:
    """Choose a token from each of the rows, on this thread alone; -1 where its logits are not numbers.

    `logits` is float32 [., vocabulary]; biases, bans and penalties change it.

    Raises: ImportError, MemoryError.
    """
    tokens = _numbers([0] * len(rows))
    code = library().gpt2d_sample(
        instruction_set.encode() if instruction_set else None, len(rows), _numbers(rows),
        _at(logits), logits.shape[1], _addresses(choices), tokens,
    )  # fmt: skip
    return _chosen(code, tokens)


def _numbers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * len(values))(*values)


def _addresses(choices: Sequence[Choice]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(choices))(*map(ctypes.addressof, choices))


def _chosen(code: int, tokens: ctypes.Array[ctypes.c_int32]) -> list[int]:
    if code:
        raise MemoryError("choosing a token ran out of memory")
    return list(tokens)


class NativeEngine:
    """One model in the kernels' layout, and its KV cache: float32 for fp32, else bytes with scales, or fp16."""

    def __init__(
        self,
        arch: Architecture,
        weights: Path,
        precision: str,
        rows: int,
        threads: int,
        *,
        cache: str | None = None,
        instruction_set: str | None = None,
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        """`weights` is the file that `Layout.write` made; `progress(done, total)` counts its bytes.

        Raises: ImportError, MemoryError, OSError, ValueError if the file does not belong to the
        architecture, if its context is too long for a cache of bytes, or if the environment forces
        an instruction set that is not here.
        """
        self.rows = rows
        self.best_rows = min(rows, BEST_ROWS)
        self.context = arch.context
        self.vocabulary = arch.vocabulary
        self.width = arch.width
        self.threads = self.threads_used = threads
        self.steps = self.steps_threads = 0
        self._crew = Crew(threads)
        self._last: Callable[[], Logits | None] = lambda: None
        """What the last step returned, while somebody has it."""
        self._waits = (ctypes.c_double * threads)()
        self.quantised_share = float(precision != "fp32")  # convert/native_layout.py packs all matrices
        self._arch, self._kernels = arch, library()
        size = weights.stat().st_size
        shape = shape_of(arch, precision, cache)
        if shape.cache_bits == 8 and arch.context > LONGEST_BYTES:
            raise ValueError(
                f"a context of {arch.context} tokens is too long for keys and values of bytes, which reach "
                f"{LONGEST_BYTES}: load it with the cache fp16"
            )
        self._kv_dtype = np.dtype({32: np.float32, 16: np.float16, 8: np.int8}[shape.cache_bits])
        self._kv_head = arch.head + (CACHE_SCALE_BYTES if shape.cache_bits == 8 else 0)
        self.instruction_set = instruction_set or set_in_force()
        for tied in (1, 0):  # the file's size says which
            shape.tied = tied
            self._model = self._kernels.gpt2d_new(shape, rows, threads, self.instruction_set.encode())
            if not self._model:
                raise MemoryError("the native engine could not get memory for this model")
            needed = ctypes.c_size_t()
            at = self._kernels.gpt2d_weights(self._model, needed)
            if needed.value == size:
                break
            self.close()
        else:
            raise ValueError(f"{weights} has {size} bytes, and the kernels need {needed.value}")
        # A decode step's arrays stay where they are, and with them their addresses.
        self._step_ids, self._step_past = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        self._step_rows = np.arange(rows, dtype=np.int32)
        self._step_best = np.zeros(rows, np.int32)
        self._step_logits = np.empty((rows, self.vocabulary), np.float32)
        self._step = [
            _at(a) for a in (self._step_ids, self._step_rows, self._step_past, self._step_rows, self._step_logits)
        ]
        with weights.open("rb", buffering=0) as stream:
            memory = memoryview((ctypes.c_char * size).from_address(at)).cast("B")
            done = 0
            while done < size:
                read = stream.readinto(memory[done : done + CHUNK])
                if not read:
                    raise OSError(f"{weights} ended early")
                done += read
                progress(done, size)

    def prefill(
        self, row: int, ids: Sequence[int], past: int, wanted: Sequence[int], hidden: Hidden | None = None
    ) -> Logits:
        count = len(ids)
        return self._forward(list(ids), [row] * count, list(range(past, past + count)), list(wanted), hidden)

    def decode(
        self,
        ids: Sequence[int],
        past: Sequence[int],
        hidden: Hidden | None = None,
        best: Sequence[int] | None = None,
    ) -> Logits:
        count = len(ids)
        self._step_ids[:count], self._step_past[:count] = ids, past
        if best is not None:
            self._step_best[:count] = best
        self._run(
            count, *self._step[:3], count, *self._step[3:], None if hidden is None else _at(hidden),
            None if best is None else _at(self._step_best),
        )  # fmt: skip
        return self._returned(self._step_logits[:count])

    def run(self, runs: Sequence[Run]) -> Logits:
        steps = _steps(runs)
        return self._forward(steps[0], steps[1], steps[2], steps[3])

    def judge(self, runs: Sequence[Run], members: NDArray[np.float32] | None) -> tuple[Logits, Judged]:
        steps = _steps(runs)
        wanted = np.array(steps.pop(), np.int32)
        places: list[int] = []
        tokens: list[int] = []
        end = 0
        for run in runs:
            end += len(run.ids)
            places += range(end - len(run.judged), end)
            tokens += run.judged
        count = len(tokens)
        made = np.array(steps, np.int32)
        asked = np.array([places, tokens], np.int32)
        logits = np.empty((len(wanted), self.vocabulary), np.float32)
        own = np.empty(count, np.float32)
        found, counts = np.empty((3, count)), np.empty((2, count), np.int32)
        if members is not None:
            members = np.ascontiguousarray(members, np.float32)
        scores = Scores(
            count, *map(_at, asked), None if members is None else _at(members), _at(own), *map(_at, found),
            *map(_at, counts),
        )  # fmt: skip
        self._run(
            end, *map(_at, made), len(wanted), _at(wanted), _at(logits), ctypes.addressof(scores),
            call=self._kernels.gpt2d_score,
        )  # fmt: skip
        if np.isnan(own).any():
            raise FloatingPointError("the logits are not numbers")
        masses = None if members is None else found[2]
        return self._returned(logits), Judged(own - found[0], counts[0], found[1], counts[1], masses)

    def choose(self, logits: Logits, rows: Sequence[int], choices: Sequence[Choice]) -> list[int]:
        """Choose as `choose` does, by the model's threads: a row, which may come once, is a thread's.

        It is faster from what the last step has returned, which nobody else can change.
        """
        tokens, at = _numbers([0] * len(rows)), None if self._are_last(logits) else _at(logits)
        code = self._kernels.gpt2d_choose(self._running(), len(rows), _numbers(rows), at, _addresses(choices), tokens)
        if code != NO_MEMORY:
            self._check(code)
        return _chosen(code, tokens)

    def _are_last(self, logits: Logits) -> bool:
        """Return True for what the last step has returned, or its first rows."""
        last = self._last()
        if last is None:
            return False
        return logits is last or (logits.base is not None and logits.base is last and _at(logits) == _at(last))

    def observe(
        self, layer: int, rows: Sequence[int], positions: Sequence[int], x: Hidden, inputs: Sequence[Quantised]
    ) -> None:
        """Run one layer alone: x, [tokens, width], becomes what it makes of it; `inputs` take what its matrices get.

        All are contiguous, and widths padded to BLOCK. Raises: ValueError at fp32.
        """
        q, scales = ((ctypes.c_void_p * len(inputs))(*map(_at, arrays)) for arrays in zip(*inputs, strict=True))
        self._check(
            self._kernels.gpt2d_observe(
                self._running(), layer, len(x), _numbers(rows), _numbers(positions), _at(x), q, scales
            )
        )

    @property
    def strips_read(self) -> int:
        """Strips of 16 tokens that the last step read after a first pass over the head; 0: it read the head once."""
        return int(self._kernels.gpt2d_strips_read(self._running()))

    def always_two_passes(self, always: bool) -> None:
        """Read the head in two passes also where that is slower, for tests."""
        self._kernels.gpt2d_always_two_passes(self._running(), int(always))

    def move(self, source: int, target: int, positions: int, first: int = 0) -> None:
        self._check(self._kernels.gpt2d_move(self._running(), source, target, first, positions))

    def export(self, row: int, positions: int, spare: Memory | None = None) -> KV:
        shape = (self._arch.layers, self._arch.heads, positions, self._kv_head)
        kv = KV.empty(shape, self._kv_dtype, spare)
        self._check(
            self._kernels.gpt2d_export(self._running(), row, positions, kv.keys.ctypes.data, kv.values.ctypes.data)
        )
        return kv

    def restore(self, row: int, kv: KV) -> None:
        keys, values = (np.ascontiguousarray(part, self._kv_dtype) for part in (kv.keys, kv.values))
        self._check(
            self._kernels.gpt2d_restore(self._running(), row, kv.positions, keys.ctypes.data, values.ctypes.data)
        )

    def close(self) -> None:
        model, self._model = self._model, None
        if model:
            self._kernels.gpt2d_free(model)

    def _forward(
        self, ids: list[int], rows: list[int], positions: list[int], wanted: list[int], hidden: Hidden | None = None
    ) -> Logits:
        steps = np.array([ids, rows, positions], np.int32)
        chosen = np.array(wanted, np.int32)
        logits = np.empty((len(wanted), self.vocabulary), np.float32)
        self._run(
            len(ids), *map(_at, steps), len(wanted), _at(chosen), _at(logits),
            None if hidden is None else _at(hidden), None,
        )  # fmt: skip
        return self._returned(logits)

    def _returned(self, logits: Logits) -> Logits:
        """Note what a step returns. Only the kernels may change it, who know what is in it."""
        logits.flags.writeable = False
        self._last = weakref.ref(logits)
        return logits

    def _run(self, count: int, *arguments: int | None, call: Callable[..., int] | None = None) -> None:
        """Take a step with as many threads as the crew says, by gpt2d_forward or another `call`.

        Raises: MemoryError, ValueError.
        """
        model, crew = self._running(), self._crew
        if crew.used != self.threads_used:
            self._kernels.gpt2d_use_threads(model, crew.used)
            self.threads_used = crew.used
        began = time.perf_counter()
        self._check((call or self._kernels.gpt2d_forward)(model, count, *arguments))
        took = time.perf_counter() - began
        self.steps += 1
        self.steps_threads += self.threads_used
        lost = self._kernels.gpt2d_waits(model, self._waits)
        if lost > NOTHING_S or crew.watching:
            wanted = arguments[3]
            crew.took((count, wanted), took, list(self._waits))

    def _check(self, code: int) -> None:
        if code == NO_MEMORY:
            raise MemoryError("the native engine ran out of memory")
        if code:
            raise ValueError("the native engine was given a token, row or position that there is not")

    def _running(self) -> int:
        if not self._model:
            raise RuntimeError("the engine is closed")
        return int(self._model)


def _steps(runs: Sequence[Run]) -> list[list[int]]:
    """Return the tokens of all runs, their rows and positions, and which of them are wanted."""
    ids: list[int] = []
    rows: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    for run in runs:
        wanted += [len(ids) + index for index in run.wanted]
        ids += run.ids
        rows += [run.row] * len(run.ids)
        positions += range(run.past, run.past + len(run.ids))
    return [ids, rows, positions, wanted]


def _at(array: NDArray[np.generic]) -> int:
    return int(array.ctypes.data)
