"""The native kernels: the same bits with each instruction set and in any company, their own limits."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from server.catalogue.architecture import Architecture, read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.catalogue.engines import INSTRUCTION_SET, instruction_sets, native_problem
from server.checkpoint.tensors import expected_shapes
from server.convert.native_layout import FILE, Layout, pack, pack_blocks
from server.convert.quantise import Blocks, quantise
from server.engines.base import Run
from server.engines.native import LONGEST_BYTES, NO_ACTIVATION, Choice, NativeEngine, Shape, choose, library
from tests.dequantise import dequantise

ARCH = read_architecture(DEMO_FOLDER)
SETS = instruction_sets()
PRECISIONS = ("fp32", "int8", "int4")
HALVES = {"fp32": "fp32", "int8": "fp16", "int4": "fp16"}
"""KV caches without bytes."""
ODD = Architecture(layers=2, heads=3, width=60, inner=100, context=50, vocabulary=77, epsilon=1e-5, ends=(0,))
"""Nothing in it is a multiple of 16."""
OTHER = replace(ODD, activation="mish", scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True)
Floats = NDArray[np.float32]


def make(
    folder: Path,
    arch: Architecture,
    precision: str,
    *,
    rows: int = 4,
    threads: int = 2,
    cache: str | None = None,
    instruction_set: str | None = None,
) -> NativeEngine:
    rng = np.random.default_rng(3)
    weights = {
        name: (rng.normal(0, 0.2, shape) + (name.endswith(".weight") and "ln" in name)).astype(np.float32)
        for name, shape in expected_shapes(arch).items()
    }
    Layout(arch, weights, precision, lambda *_: None).write(folder)
    return NativeEngine(arch, folder / FILE, precision, rows, threads, cache=cache, instruction_set=instruction_set)


def matmul(name: str, bits: int, matrix: NDArray[np.generic], outputs: int, x: Floats) -> Floats:
    raw, y = np.ascontiguousarray(matrix), np.empty((len(x), outputs), np.float32)
    code = library().gpt2d_matmul(
        name.encode(), bits, outputs, x.shape[1], raw.ctypes.data, len(x), NO_ACTIVATION, x.ctypes.data, y.ctypes.data
    )
    assert code == 0
    return y


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bits", [8, 4])
def test_integers_are_exact(name: str, bits: int) -> None:
    """With scales of 1 each sum is a whole number that a float holds: any fault of the integer part shows."""
    rng = np.random.default_rng(bits)
    outputs, inputs = 96, 160
    rows = 11
    top = 127 if bits == 8 else 7
    w = rng.integers(-top, top + 1, (outputs, inputs)).astype(np.float32)
    x = rng.integers(-127, 128, (rows, inputs)).astype(np.float32)
    w[0], x[0] = top, 127
    w[1], x[:, ::32] = -top, 127  # each block's largest, so that its scale is 1
    zero = 1 << (bits - 1)
    values = (w + zero).astype(np.uint8).reshape(outputs, inputs // 32, 32)
    stored = values if bits == 8 else values[..., 0::2] | values[..., 1::2] << np.uint8(4)
    blocks = Blocks(bits, stored, np.ones((outputs, inputs // 32), np.float32), inputs)
    np.testing.assert_array_equal(dequantise(blocks), w)
    np.testing.assert_array_equal(matmul(name, bits, pack_blocks(blocks), outputs, x), x @ w.T)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bits", [32, 8, 4])
def test_products_of_floats(name: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    w, x = rng.normal(size=(64, 96)).astype(np.float32), rng.normal(size=(7, 96)).astype(np.float32)
    want = x @ (w if bits == 32 else dequantise(quantise(w, bits))).T
    got = matmul(name, bits, pack(w, bits), 64, x)
    assert np.abs(got - want).max() < (1e-4 if bits == 32 else 0.02 * np.abs(want).max())
    alone = np.concatenate([matmul(name, bits, pack(w, bits), 64, x[i : i + 1]) for i in range(7)])
    np.testing.assert_array_equal(got, alone)


@pytest.mark.parametrize("arch", [ODD, OTHER], ids=["ordinary", "other"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_instruction_sets_give_the_same_bits(tmp_path: Path, precision: str, arch: Architecture) -> None:
    ids = [5, 76, 0, 3, 3, 9, 41] * 6
    results = {}
    for name in SETS:
        engine = make(tmp_path, arch, precision, instruction_set=name)
        results[name] = engine.prefill(0, ids, 0, range(len(ids)))
        engine.close()
    for name in SETS:
        np.testing.assert_array_equal(results[name].view(np.uint32), results["plain"].view(np.uint32), name)


def test_the_environment_forces_an_instruction_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETS:
        monkeypatch.setenv(INSTRUCTION_SET, name)
        assert not native_problem()
        engine = make(tmp_path, ODD, "int4")
        engine.close()
        assert engine.instruction_set == name
    monkeypatch.setenv(INSTRUCTION_SET, "mmx")
    wrong = f"{INSTRUCTION_SET} is mmx, and here there are {', '.join(SETS)}"
    assert native_problem() == wrong
    with pytest.raises(ValueError, match=wrong):
        make(tmp_path, ODD, "int4")


WAYS = [(name, ODD, precision, HALVES[precision]) for name in SETS for precision in PRECISIONS]
WAYS += [(SETS[0], OTHER, precision, HALVES[precision]) for precision in PRECISIONS]
WAYS += [(name, ODD, "int8", "int8") for name in SETS] + [(SETS[0], OTHER, "int4", "int8")]


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: f"{way[0]}-{way[2]}-{way[3]}-{way[1].activation}")
def odd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeEngine]:
    way = request.param
    engine = make(tmp_path_factory.mktemp("odd"), *way[1:3], cache=way[3], instruction_set=way[0])
    yield engine
    engine.close()


def test_the_same_bits_in_any_company(odd: NativeEngine) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, ODD.vocabulary, n).tolist() for n in (30, 12, 19, 48)]
    alone = [odd.prefill(0, ids, 0, range(len(ids))) for ids in prompts]
    for row, ids in enumerate(prompts):  # cut differently, and in another row
        cut = len(ids) // 3 + 1
        first = odd.prefill(row, ids[:cut], 0, range(cut))
        np.testing.assert_array_equal(first, alone[row][:cut])
        steps = [odd.prefill(row, ids[i : i + 1], i, [0])[0] for i in range(cut, len(ids) - 4)]
        np.testing.assert_array_equal(np.array(steps), alone[row][cut : len(ids) - 4])
    ends = [len(ids) - 4 for ids in prompts]
    together = odd.decode([ids[end] for ids, end in zip(prompts, ends, strict=True)], ends)
    for row, end in enumerate(ends):
        np.testing.assert_array_equal(together[row], alone[row][end])
    tried = [ids[end : end + 1 + row] for row, (ids, end) in enumerate(zip(prompts, ends, strict=True))]
    verified = odd.run([Run(row, tried[row], ends[row], range(1 + row)) for row in range(len(tried))])
    want = np.concatenate([alone[row][end : end + 1 + row] for row, end in enumerate(ends)])
    np.testing.assert_array_equal(verified, want)
    # Two prompts from their beginnings, of one the last logits alone, beside two rows that go on
    beside = odd.run(
        [
            Run(3, prompts[0], 0, [len(prompts[0]) - 1]),
            Run(0, prompts[1][:9], 0, range(9)),
            Run(1, [prompts[1][ends[1]]], ends[1], [0]),
            Run(2, prompts[2][ends[2] :], ends[2], [1, 3]),
        ]
    )
    want = np.stack([alone[0][-1], *alone[1][:9], alone[1][ends[1]], alone[2][ends[2] + 1], alone[2][ends[2] + 3]])
    np.testing.assert_array_equal(beside, want)


def test_exported_rows_come_back_bit_for_bit(odd: NativeEngine) -> None:
    ids = list(range(40))
    want = odd.prefill(1, ids, 0, [39])
    kv = odd.export(1, 39)
    odd.prefill(1, ids[::-1], 0, [])
    odd.restore(3, kv.first(20))
    np.testing.assert_array_equal(odd.prefill(3, ids[20:], 20, [19]), want)
    odd.move(3, 0, 39)
    np.testing.assert_array_equal(odd.decode([39], [39]), want)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_cache_of_bytes_holds_what_one_of_halves_does(tmp_path: Path, precision: str) -> None:
    ids = list(range(45))
    halves, of_bytes = (make(tmp_path, ODD, precision, cache=cache) for cache in ("fp16", "int8"))
    want, got = (engine.prefill(0, ids, 0, range(45)) for engine in (halves, of_bytes))
    assert 0 < np.abs(got - want).max() < 0.05 * np.abs(want).max()
    pairs = zip((halves.export(0, 45).keys, halves.export(0, 45).values),
                (of_bytes.export(0, 45).keys, of_bytes.export(0, 45).values), strict=True)  # fmt: skip
    for exact, stored in pairs:  # [layers, heads, positions, head], of bytes with a scale behind each head
        values, scales = stored[..., : ODD.head], np.ascontiguousarray(stored[..., ODD.head :]).view(np.float32)
        first = exact[0].astype(np.float32)  # layers after the first have other inputs
        assert np.abs(values).max(axis=3).min() == 127
        assert (np.abs(values[0] * scales[0] - first) <= 0.51 * scales[0] + 1e-3 * np.abs(first)).all()
    for engine in (halves, of_bytes):
        engine.close()


@pytest.mark.parametrize("threads", [1, 3, 7])
def test_any_number_of_threads(tmp_path: Path, threads: int) -> None:
    ids = list(range(45))
    engine, other = make(tmp_path, ODD, "int8"), make(tmp_path, ODD, "int8", threads=threads)
    np.testing.assert_array_equal(other.prefill(0, ids, 0, range(45)), engine.prefill(0, ids, 0, range(45)))
    engine.close()
    other.close()


def test_the_same_bits_while_the_number_of_threads_changes(tmp_path: Path) -> None:
    ids = list(range(45))
    engine, other = make(tmp_path, ODD, "int8"), make(tmp_path, ODD, "int8", threads=5)
    want = [engine.prefill(0, [token], past, [0]) for past, token in enumerate(ids)]
    for past, token in enumerate(ids):
        other._crew.used = (5, 1, 3, 2, 4)[past % 5]  # the step's; then the rule goes on from there
        np.testing.assert_array_equal(other.prefill(0, [token], past, [0]), want[past])
        assert other.threads_used == (5, 1, 3, 2, 4)[past % 5]
    assert [library().gpt2d_use_threads(other._model, n) for n in (0, 6, 5)] == [-1, -1, 0]
    engine.close()
    other.close()


def succeeds_in_a_fresh_process(check: Callable[[Path], None], folder: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=check, args=(folder,))
    process.start()
    process.join(60)
    try:
        assert process.exitcode == 0  # None: it waits for ever
    finally:
        process.kill()


def share_one_core(folder: Path) -> None:
    """In a process of its own: two threads that have one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    engine = make(folder, ODD, "int8")
    used: list[int] = []
    until = time.monotonic() + 20
    while used[-200:] != [1] * 200 and time.monotonic() < until:
        engine.decode([1], [0])
        used.append(engine.threads_used)
    assert used[0] == 2 and used[-1] == 1
    engine.close()


@pytest.mark.skipif(sys.platform != "linux", reason="threads are bound to a core as Linux does")
def test_two_threads_that_share_a_core_become_one(tmp_path: Path) -> None:
    succeeds_in_a_fresh_process(share_one_core, tmp_path)


def test_an_idle_engine_takes_no_time(tmp_path: Path) -> None:
    engine = make(tmp_path, ODD, "int8")
    engine.decode([1], [0])
    time.sleep(0.1)  # it lingers for a moment after a step
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.02
    engine.decode([1], [0])
    engine.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda e: e.prefill(0, [ODD.vocabulary], 0, [0]),
        lambda e: e.prefill(0, [-1], 0, [0]),
        lambda e: e.prefill(9, [1], 0, [0]),
        lambda e: e.prefill(0, [1, 1], ODD.context - 1, [0]),
        lambda e: e.prefill(0, [1], 0, [1]),
        lambda e: e.move(0, 4, 3),
        lambda e: e.export(0, ODD.context + 1),
    ],
)
def test_what_there_is_not_is_refused(odd: NativeEngine, call: object) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match="that there is not"):
        call(odd)


@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_tokens_of_the_last_step_are_those_of_a_copy_of_its_logits(
    instruction_set: str, precision: str, tmp_path: Path
) -> None:
    """What the kernels have noted of a step's logits changes no choice, nor what a choice makes of them."""
    arch = replace(ODD, vocabulary=2000)  # in chunks of 64, the last of 16
    engine = make(tmp_path, arch, precision, threads=3, instruction_set=instruction_set)
    named = (ctypes.c_int32 * 3)(1999, 70, 3)
    biases, at = (ctypes.c_float * 3)(9, -3, 0.5), ctypes.addressof(named)
    changes = {"biased": at, "biases": ctypes.addressof(biases), "biased_count": 3, "seen": at, "counts": at}
    kinds: list[dict[str, float]] = [
        {"top_k": 50}, {"top_k": 1}, {"temperature": 0}, {"top_k": 3, **changes},
        {"top_k": 0, "top_p": 0.5, "banned": at, "banned_count": 2}, {"temperature": 0, **changes, "seen_count": 3},
    ]  # fmt: skip
    settings_of = [
        {"top_p": 1, "typical_p": 1, "temperature": 1, "repetition": 1.5, "uniform": 0.6, **k} for k in kinds
    ]
    for past, kind in enumerate(settings_of * 2):
        ids, rows = [past, 2, 1999, 7], [3, 0, 1, 2]
        logits = (
            engine.decode(ids, [past] * 4) if past % 2 else engine.run([Run(r, [ids[r]], past, [0]) for r in range(4)])
        )
        copied, choices = logits.copy(), [Choice(**kind) for _ in rows]
        for _ in range(2):  # the second time from what the first has changed
            want = choose(copied, rows, choices, instruction_set=instruction_set)
            assert engine.choose(logits, rows, choices) == want and min(want) >= 0
            np.testing.assert_array_equal(logits, copied)
        fewer = engine.decode(ids, [past] * 4)
        assert engine.choose(fewer[:2], [1], choices[:1]) == choose(fewer[:2].copy(), [1], choices[:1])
        with pytest.raises(ValueError, match="read-only"):
            logits[0, 5] = 100
    engine.close()


def test_a_step_whose_logits_are_not_numbers_gives_no_token(tmp_path: Path) -> None:
    arch = replace(ODD, vocabulary=2000)
    weights = {name: np.zeros(shape, np.float32) for name, shape in expected_shapes(arch).items()}
    weights["wte.weight"][1500] = np.nan
    Layout(arch, weights, "fp32", lambda *_: None).write(tmp_path)
    engine = NativeEngine(arch, tmp_path / FILE, "fp32", rows=3, threads=2)
    logits = engine.decode([1, 2, 3], [0, 0, 0])
    assert np.isnan(logits[:, 1500]).all()
    assert (
        engine.choose(logits, [0, 1, 2], [Choice(), Choice(top_p=1, typical_p=1, temperature=1), Choice()]) == [-1] * 3
    )
    with pytest.raises(ValueError, match="row"):
        engine.choose(logits, [3], [Choice()])
    engine.close()


def test_a_context_whose_sums_of_bytes_may_pass_32_bits_asks_for_another_cache(tmp_path: Path) -> None:
    arch = replace(ODD, context=LONGEST_BYTES + 1)
    weights = {name: np.zeros(shape, np.float32) for name, shape in expected_shapes(arch).items()}
    Layout(arch, weights, "int8", lambda *_: None).write(tmp_path)
    with pytest.raises(ValueError, match=r"131073 tokens is too long for keys and values of bytes, .* cache fp16"):
        NativeEngine(arch, tmp_path / FILE, "int8", rows=1, threads=1)
    NativeEngine(arch, tmp_path / FILE, "int8", rows=1, threads=1, cache="fp16").close()


def leave(mebibytes: float) -> None:
    """Let this process have only so much more address space than it has now."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(mebibytes * (1 << 20)), resource.RLIM_INFINITY))


def live_with_little_memory(folder: Path) -> None:
    """In a process of its own: an engine whose threads and steps do not get the memory that they ask for."""
    arch = replace(ODD, context=131_000)  # so that what each thread needs for itself is megabytes
    short, long = [5, 6, 7], [n % arch.vocabulary for n in range(60_000)]
    logits = np.zeros((1, 4 << 20), np.float32)  # [1, vocabulary]
    logits[0, 7], choice = 100, Choice(uniform=0.5, top_p=1, typical_p=1, temperature=1, repetition=1)
    spared, engine = make(folder, arch, "int8", rows=1), make(folder, arch, "int8", rows=1)
    leave(2)
    first = engine.prefill(0, short, 0, [2])  # a thread takes no memory of its own, at the first step either
    with pytest.raises(MemoryError):
        engine.prefill(0, long, 0, [2])
    np.testing.assert_array_equal(engine.prefill(0, short, 0, [2]), first)
    with pytest.raises(MemoryError):
        choose(logits, [0], [choice])
    spare = engine.export(0, 3).memory
    for memory in (None, spare):  # the prefix cache goes without
        with pytest.raises(MemoryError):
            engine.export(0, arch.context, memory)
    leave(20)
    with pytest.raises(MemoryError):  # some threads begin, for others there is no stack
        NativeEngine(arch, folder / FILE, "int8", rows=1, threads=64)
    leave(1000)
    assert choose(logits, [0], [choice]) == [7]
    np.testing.assert_array_equal(spared.prefill(0, short, 0, [2]), first)
    np.testing.assert_array_equal(engine.prefill(0, long[:900], 0, [899]), spared.prefill(0, long[:900], 0, [899]))


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own memory as Linux does")
def test_memory_that_runs_out_is_an_error_and_the_next_step_works(tmp_path: Path) -> None:
    succeeds_in_a_fresh_process(live_with_little_memory, tmp_path)


def restore_into_used_memory(folder: Path) -> None:
    """In a process of its own, whose memory is not 0 when it is new: what pads a head must still add nothing."""
    for cache in ("fp16", "int8"):
        first, other = (make(folder, ODD, "int8", rows=1, cache=cache) for _ in range(2))
        first.prefill(0, list(range(20)), 0, [])
        other.restore(0, first.export(0, 20))
        np.testing.assert_array_equal(other.decode([20], [20]), first.decode([20], [20]))


@pytest.mark.skipif(sys.platform != "linux", reason="asks for it as glibc does")
def test_a_cache_needs_no_memory_that_is_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_PERTURB_", "128")  # each byte 0x7f, and two of them are a NaN in fp16
    succeeds_in_a_fresh_process(restore_into_used_memory, tmp_path)


def cache_memory(cache_bits: int, rows: int, used: int) -> tuple[int, int]:
    """Return the bytes that become resident where rows of gpt2 are filled, and those of their keys and values."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE

    kernels = library()
    model = kernels.gpt2d_new(Shape(12, 12, 768, 32, 1024, 32, 8, 8, 1, 0, 1, 0, 1e-5, cache_bits), rows, 1, None)
    part = np.ones(12 * 12 * used * (64 * cache_bits // 8 + (4 if cache_bits == 8 else 0)), np.int8)
    before = resident()
    for row in range(rows):
        assert kernels.gpt2d_restore(model, row, used, part.ctypes.data, part.ctypes.data) == 0
    taken = resident() - before
    kernels.gpt2d_free(model)
    return taken, 2 * rows * part.nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="reads what is resident as Linux says it")
def test_a_cache_takes_memory_only_as_far_as_it_is_used() -> None:
    """Eight rows of 160 tokens of gpt2, on huge pages or without: at most a tenth more than their keys and values."""
    taken, needed = cache_memory(16, 8, 160)
    assert taken < 1.1 * needed


@pytest.mark.skipif(sys.platform != "linux", reason="reads what is resident as Linux says it")
@pytest.mark.parametrize("bits", [8, 16])
def test_short_texts_take_no_huge_pages(bits: int) -> None:
    """Sixteen sentences of 16 tokens of gpt2, as they are scored: at most a tenth more than their keys and values."""
    taken, needed = cache_memory(bits, 16, 16)
    assert taken < 1.1 * needed


@pytest.mark.skipif(sys.platform != "linux", reason="reads what is resident as Linux says it")
def test_a_cache_of_bytes_takes_half_the_memory() -> None:
    """Two full rows of gpt2, scales and what huge pages leave unused included: at most 0.55 of fp16."""
    assert cache_memory(8, 2, 1024)[0] <= 0.55 * cache_memory(16, 2, 1024)[0]


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    make(tmp_path, ODD, "int8").close()
    with pytest.raises(ValueError, match=r"native\.bin has \d+ bytes, and the kernels need \d+"):
        NativeEngine(ARCH, tmp_path / FILE, "int8", 1, 1)
