#!/usr/bin/env python3
"""Measure why a hand-made ONNX graph decodes faster than an exported one: piece by piece, in turns.

    python -m scripts.investigation.onnx_methods             all sizes; it says first how long that takes
    python -m scripts.investigation.onnx_methods --quick     the embedded model, a minute
    python -m scripts.investigation.onnx_methods --sizes gpt2 --only exported-int8 ours-int8

A row is a variant: 8 new tokens after a prompt of 32 random ones (greedy, end of text ignored), of which `prefill` is
the time to the first, tokens/s of the decode steps, how many times as fast it is as the first row in the same turns,
resident memory, the time to load, and for `demo` the change of perplexity and how often the likeliest token is that of
full precision.

  exported-fp32, -int8     optimum's export, int8 with ONNX Runtime's dynamic quantisation; each step passes the whole
                           cache in and gets a longer one back, as ORTModelForCausalLM does it on a CPU
  exported-*-blocks        the same export, its products replaced by those of our graph (MatMulNBits, blocks of 32, the
                           LM head at 8 bits): what is left of the distance to ours is not the products
  exported-*-bound         with I/O binding: results are written into torch's tensors, instead of copied there
  ours-*                   server/convert/onnx_graph.py: fused operators, a cache that stays in place, one
                           run_with_iobinding a step
  ours-*-fed               the same graph without I/O binding: session.run() gets the cache, and returns a copy of it
  *-no-cache               the whole text again for each token, as with a model that was exported without past (4
                           tokens; the exported graph is the one with past, which is left empty)

Below the table: of the plain variants, the share of the decode steps' time by operator type, from ONNX Runtime's own
profile. Results are kept (--json) and not measured again. The last line is one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scripts.investigation.method_child import (
    CACHE_BYTES,
    JustBuilt,
    Loaded,
    Order,
    Write,
    by_steps,
    check_memory,
    own_engine,
)
from scripts.investigation.methods import LENGTHS, Method, above, investigate
from scripts.investigation.texts import PROMPT_TOKENS
from server.catalogue.architecture import Architecture
from server.catalogue.files import CONFIG_FILE, model_files
from server.config import Config
from server.engines.base import Engine, Logits, Reference

TOKENS, NO_CACHE_TOKENS = LENGTHS[0], 4
MOST = 300e6
"""Parameters of a model that has all rows."""
INT8_COPIES, BLOCKS_COPIES = 6, 4
"""Times that the float32 weights are in memory while an export is quantised."""
PROFILED_TOKENS, OPERATORS = 25, 8


# Loaders: they run in the child


def exported(order: Order) -> Loaded:
    """Load an export; `option` is bound, no-cache, as-it-is or empty; with an empty one it has a profile."""
    from server.engines.optimum import OptimumEngine

    def load() -> OptimumEngine:
        engine = OptimumEngine(order.architecture, export_of(order, order.precision), order.threads)
        if engine._model is not None:
            engine._model.use_io_binding = order.option == "bound"
        return engine

    return variant(order, load(), load, lambda engine: engine._model.session)


def ours(order: Order) -> Loaded:
    """Load our graph; `option` is empty, fed or no-cache."""

    def load() -> Engine:
        return own_engine(order, "onnx")

    engine = load()
    if order.option == "fed":
        fed = Fed(order.architecture, engine)
        return Loaded(by_steps(fed), lambda: fed)
    return variant(order, engine, load, lambda engine: engine._session)


def variant(order: Order, engine: Engine, load: Callable[[], Engine], session_of: Callable[[Any], Any]) -> Loaded:
    write = without_cache(engine) if order.option == "no-cache" else by_steps(engine)
    vocabulary = engine.vocabulary

    def profile() -> dict[str, float]:
        engine.close()
        return profiled(load, session_of, vocabulary)

    return Loaded(write, lambda: engine, None if order.option else profile)


def without_cache(engine: Engine) -> Write:
    """Return what writes every token by a run over the whole text."""

    def write(prompt: list[int], count: int) -> list[float]:
        ids, began = list(prompt), time.perf_counter()
        stamps: list[float] = []
        for _ in range(count):
            ids.append(int(engine.prefill(0, ids, 0, [len(ids) - 1])[0].argmax()))
            stamps.append(time.perf_counter() - began)
        return stamps

    return write


class Fed(Reference):
    """Engine of our graph by session.run(): its cache goes in as arrays, and comes out as new ones."""

    quantised_share = 0.0

    def __init__(self, arch: Architecture, engine: Any) -> None:
        self._session, self.threads = engine._session, engine.threads
        self.context, self.vocabulary = arch.context, arch.vocabulary
        self.width = arch.width
        shape = (1, arch.heads, arch.context, arch.head)
        self._cache = {  # [1, heads, context, head] each
            f"past_{part}_{i}": np.zeros(shape, np.float32) for i in range(arch.layers) for part in ("key", "value")
        }

    def prefill(self, row: int, ids: Sequence[int], past: int, wanted: Sequence[int], hidden: object = None) -> Logits:  # noqa: ARG002 - there is one row
        end = past + len(ids)
        feeds = {
            "ids": np.array([ids], np.int64),  # [1, tokens]
            "positions": np.arange(past, end, dtype=np.int64)[None],  # [1, tokens]
            "seqlens": np.array([end - 1], np.int32),  # [1]
            "total": np.array(end, np.int32),
            "wanted": np.array(wanted, np.int64),  # [wanted]
        }
        logits, *cache = self._session.run(
            ["logits", *(name.replace("past", "present") for name in self._cache)], feeds | self._cache
        )
        self._cache = dict(zip(self._cache, cache, strict=True))
        found: Logits = logits  # [wanted, vocab]
        return found

    def decode(self, ids: Sequence[int], past: Sequence[int], hidden: object = None) -> Logits:
        return self.prefill(0, ids, past[0], [0], hidden)

    def close(self) -> None:
        self._session = None


def profiled(load: Callable[[], Engine], session_of: Callable[[Any], Any], vocabulary: int) -> dict[str, float]:
    """Return the share of the decode steps' time by operator type, the largest first."""
    import onnxruntime as ort

    plain = ort.SessionOptions
    with tempfile.TemporaryDirectory() as folder:

        class Profiled(plain):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                super().__init__()
                self.enable_profiling, self.profile_file_prefix = True, f"{folder}/profile"

        ort.SessionOptions = Profiled
        try:
            engine = load()
        finally:
            ort.SessionOptions = plain
        by_steps(engine)(np.random.default_rng(0).integers(0, vocabulary, PROMPT_TOKENS).tolist(), PROFILED_TOKENS)
        events = json.loads(Path(session_of(engine).end_profiling()).read_text())
    began = sorted(e["ts"] for e in events if e["name"] == "model_run")[1]  # after the prompt
    spent: Counter[str] = Counter()
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= began:
            spent[event["args"]["op_name"]] += event["dur"]
    return {name: round(us / spent.total(), 4) for name, us in spent.most_common(OPERATORS)}


# Forms of an export


def export_of(order: Order, precision: str) -> Path:
    """Return the folder of an export, where the daemon keeps it. Raises: JustBuilt, MemoryError, OSError."""
    from server.catalogue.notes import joined, known_digests
    from server.checkpoint.tensors import Weights
    from server.convert.cache import BuildCache, Built, Count
    from server.engines.optimum import Export, variant as of_this_processor

    folder, arch = Path(order.folder), order.architecture
    cache_dir, built = Config().cache_dir, False
    digest = joined([*known_digests(model_files(folder).weights, cache_dir, lambda *_: None).values()])
    content = hashlib.sha256(f"{digest} {arch}".encode()).hexdigest()[:32]

    def build(count: Count) -> Built:
        nonlocal built
        built = True
        if precision == "fp32":
            check_memory(arch.loading_bytes("optimum", precision, 1))
            return Export(arch, Weights(folder, arch), precision, count)
        plain = export_of(order, "fp32")
        check_memory((INT8_COPIES if precision == "int8" else BLOCKS_COPIES) * 4 * arch.parameters)
        return QuantisedExport(plain, arch, precision)

    place = BuildCache(cache_dir, CACHE_BYTES).get(
        f"{content}-optimum-{precision}-{of_this_processor(precision)}", build
    )
    if built:
        raise JustBuilt
    return place


@dataclass(frozen=True)
class QuantisedExport:
    """Form of an export at fp32: int8 as the daemon's optimum engine has it, or int8-blocks and int4-blocks.

    The latter two have our graph's products.
    """

    plain: Path
    arch: Architecture
    precision: str

    def write(self, folder: Path) -> None:
        from optimum.onnxruntime import ORTQuantizer
        from transformers import GPT2Config

        from server.engines.optimum import MODEL_FILE, SHARE_FILE, SINGLE_FILE_BYTES, quantisation, quantised_share

        config = GPT2Config.from_json_file(self.plain / CONFIG_FILE)
        config.to_json_file(folder / CONFIG_FILE)
        if self.precision == "int8":
            large = 4 * self.arch.parameters > SINGLE_FILE_BYTES
            ORTQuantizer(self.plain / MODEL_FILE, config).quantize(
                quantisation(), folder, file_suffix=None, use_external_data_format=large
            )
            (folder / SHARE_FILE).write_text(f"{quantised_share(folder / MODEL_FILE)}\n")
        else:
            in_blocks(self.plain / MODEL_FILE, folder / MODEL_FILE, int(self.precision[3]), self.arch.vocabulary)
            (folder / SHARE_FILE).write_text("1.0\n")


def in_blocks(plain: Path, target: Path, bits: int, vocabulary: int) -> None:
    """Replace each product with weights by MatMulNBits, as server/convert/onnx_graph.py has it."""
    import onnx
    from onnx import helper, numpy_helper

    from server.catalogue.engines import BLOCK, HEAD_BITS
    from server.convert.quantise import quantise

    model = onnx.load(plain)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes, made = [], {}
    gone = set()
    for node in graph.node:
        if node.op_type not in {"Gemm", "MatMul"} or node.input[1] not in weights:
            nodes.append(node)
            continue
        x, name = node.input[:2]
        bias = node.input[2:]
        matrix = numpy_helper.to_array(weights[name]).T  # [outputs, inputs]
        own_bits = HEAD_BITS if matrix.shape[0] == vocabulary else bits
        blocks = quantise(np.ascontiguousarray(matrix), own_bits)
        for array, suffix in ((blocks.values, "values"), (blocks.scales, "scales")):
            made[f"{name}.{suffix}"] = numpy_helper.from_array(array, f"{name}.{suffix}")
        inputs = [x, f"{name}.values", f"{name}.scales", *(["", "", *bias] if bias else [])]
        sizes = {"N": matrix.shape[0], "K": matrix.shape[1], "bits": own_bits, "block_size": BLOCK, "accuracy_level": 4}
        nodes.append(
            helper.make_node("MatMulNBits", inputs, list(node.output), node.name, domain="com.microsoft", **sizes)
        )
        gone.add(name)
    kept = [tensor for name, tensor in weights.items() if name not in gone]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *made.values()])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save_model(model, target, save_as_external_data=True, location="weights.bin")


# Methods


def methods_of(_size: str, _threads: int, _sizes: Sequence[str]) -> list[Method]:
    """Return the rows of a size; the first is what the others are compared with."""
    theirs = Method("exported-fp32", "onnx_methods.exported", lengths=(TOKENS,), tok_s=28, weight_bytes=7.5)
    theirs8 = replace(theirs, name="exported-int8", precision="int8", tok_s=54, weight_bytes=2)
    mine = Method("ours-fp32", "onnx_methods.ours", lengths=(TOKENS,), tok_s=43, weight_bytes=5, torch=False)
    mine8 = replace(mine, name="ours-int8", precision="int8", tok_s=250, weight_bytes=1.6)
    mine4 = replace(mine, name="ours-int4", precision="int4", tok_s=300, weight_bytes=1.3)

    def also(method: Method, option: str, **changes: Any) -> Method:
        skip = above(MOST) if method.precision == "fp32" else method.skip
        return replace(method, name=f"{method.name}-{option}", option=option, judged=False, skip=skip, **changes)

    def fed(method: Method) -> Method:
        return also(method, "fed", tok_s=min(30, method.tok_s / 2), weight_bytes=method.weight_bytes + 1.2)

    def no_cache(method: Method) -> Method:
        return also(method, "no-cache", lengths=(NO_CACHE_TOKENS,), tok_s=min(30, method.tok_s / 2))

    blocks8 = replace(theirs, name="exported-int8-blocks", precision="int8-blocks")
    blocks4 = replace(theirs, name="exported-int4-blocks", precision="int4-blocks")
    return [
        theirs,
        theirs8,
        replace(blocks8, skip=above(MOST), tok_s=80, weight_bytes=2.2),
        replace(blocks4, tok_s=90, weight_bytes=1.8),
        *(mine, mine8, mine4),
        *(also(method, "bound") for method in (theirs, theirs8)),
        *(fed(method) for method in (mine, mine8, mine4)),
        *(no_cache(method) for method in (theirs, theirs8, mine, mine8, mine4)),
    ]


def print_profiles(found: Sequence[dict[str, Any]]) -> None:
    for f in found:
        if f.get("profile"):
            shares = ", ".join(f"{name} {share:.1%}" for name, share in f["profile"].items())
            print(f"{f['model']} {f['method']}: {shares}")


def main() -> None:
    investigate(__doc__, "onnx_methods", methods_of, (TOKENS,), print_profiles)


if __name__ == "__main__":
    main()
