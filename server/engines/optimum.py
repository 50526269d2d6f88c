"""The optimum engine: Hugging Face's road to ONNX Runtime, as a reference for the others. One row.

optimum-onnx exports the model once; `int8` is ONNX Runtime's dynamic quantisation with optimum's configuration for this
CPU. Every step passes the whole cache in and gets a longer one back.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import math
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from server.catalogue.engines import TRAITS
from server.engines.torch import Weights, transformers_model  # says what to install where torch is missing

try:
    import onnx
    import onnxruntime as ort
    import optimum.version
    import torch
    import transformers
    from optimum.exporters.onnx import export
    from optimum.exporters.onnx.model_configs import GPT2OnnxConfig
    from optimum.onnxruntime import ORTModelForCausalLM, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig, QuantizationConfig
    from transformers import GPT2Config
except ImportError as e:
    raise ImportError(TRAITS["optimum"].missing("optimum", e.name)) from None

from server.catalogue.architecture import Architecture
from server.catalogue.files import CONFIG_FILE
from server.engines.base import Hidden, Logits, Reference

MODEL_FILE, SHARE_FILE = "model.onnx", "quantised_share"
SINGLE_FILE_BYTES = 1_500_000_000
"""A protobuf has at most 2 GiB: above this, weights go to a file beside the graph."""
Cache: TypeAlias = "tuple[tuple[torch.Tensor, torch.Tensor], ...]"


class Export:
    """An export of a model; `write` makes it, in a folder."""

    def __init__(
        self, arch: Architecture, weights: Weights, precision: str, progress: Callable[[int, int], None]
    ) -> None:
        """As `transformers_model`; `progress(done, total)` counts steps."""
        self._arch = arch
        self._weights = weights
        self._precision = precision
        self._progress = progress

    def write(self, folder: Path) -> None:
        """Write MODEL_FILE and the config into a folder. Raises: OSError, RuntimeError."""
        steps = 2 if self._precision == "int8" else 1
        self._progress(0, steps)
        model = transformers_model(self._arch, self._weights, torch.float32)
        config = model.config
        with warnings.catch_warnings():
            # What tracing remarks on is the same for every GPT-2; the tests compare the logits.
            warnings.simplefilter("ignore")
            export(
                model,
                GPT2OnnxConfig(config, task="text-generation", use_past=True, use_past_in_inputs=True),
                folder / MODEL_FILE,
            )
        del model
        if self._precision == "int8":
            self._progress(1, steps)
            plain = folder / "fp32"
            plain.mkdir()
            for file in folder.glob(f"{MODEL_FILE}*"):
                file.rename(plain / file.name)
            ORTQuantizer(plain / MODEL_FILE, config).quantize(
                quantisation(),
                folder,
                file_suffix=None,
                use_external_data_format=4 * self._arch.parameters > SINGLE_FILE_BYTES,
            )
            shutil.rmtree(plain)
        config.to_json_file(folder / CONFIG_FILE)
        (folder / SHARE_FILE).write_text(f"{quantised_share(folder / MODEL_FILE)}\n")
        self._progress(steps, steps)
        _give_back()


class OptimumEngine(Reference):
    """One exported model in ORTModelForCausalLM."""

    def __init__(self, arch: Architecture, folder: Path, threads: int) -> None:
        """`folder` is what `Export.write` filled. Raises: OSError, and what the runtime raises."""
        self.context = arch.context
        self.vocabulary = arch.vocabulary
        self.width = arch.width
        self.threads = threads
        self.quantised_share = float((folder / SHARE_FILE).read_text())
        torch.set_num_threads(threads)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = ort.InferenceSession(folder / MODEL_FILE, options, providers=["CPUExecutionProvider"])
        self._model: ORTModelForCausalLM | None = ORTModelForCausalLM(
            config=GPT2Config.from_json_file(folder / CONFIG_FILE), session=session, model_save_dir=folder
        )
        self._cache: Cache | None = None

    def prefill(
        self,
        row: int,  # noqa: ARG002 - there is one
        ids: Sequence[int],
        past: int,
        wanted: Sequence[int],
        hidden: Hidden | None = None,
    ) -> Logits:
        """Hidden states are not among the outputs of the export: `hidden` must be None."""
        if self._model is None:
            raise RuntimeError("the engine is closed")
        if hidden is not None:
            raise NotImplementedError("the optimum engine has no hidden states")
        cache = None
        if past and self._cache is not None:
            cache = tuple((keys[:, :, :past], values[:, :, :past]) for keys, values in self._cache)
        with torch.inference_mode():
            done = self._model(
                torch.tensor([ids]),
                attention_mask=torch.ones((1, past + len(ids)), dtype=torch.long),
                past_key_values=cache,
                use_cache=True,
            )
        self._cache = done.past_key_values
        logits: Logits = done.logits[0, list(wanted)].numpy()
        return logits

    def decode(self, ids: Sequence[int], past: Sequence[int], hidden: Hidden | None = None) -> Logits:
        return self.prefill(0, ids, past[0], [0], hidden)

    def close(self) -> None:
        self._model = self._cache = None


def _give_back() -> None:
    """Give freed memory back to the system: the C library keeps what the export used, some three times the weights."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc's
        libc.malloc_trim(0)


def quantised_share(file: Path) -> float:
    """Return the share of the weights in matrix products that have 8 bits; a product of two activations has none."""
    graph = onnx.load(file, load_external_data=False).graph
    sizes: dict[str, int] = {weight.name: math.prod(weight.dims) for weight in graph.initializer}
    products = [
        (node.op_type, sizes.get(node.input[1], 0))
        for node in graph.node
        if node.op_type in {"MatMul", "Gemm", "MatMulInteger"}
    ]
    return sum(size for kind, size in products if kind == "MatMulInteger") / sum(size for _, size in products)


def variant(precision: str) -> str:
    """Return what an export depends on beside the model: the versions of its makers, and at int8 the processor."""
    made_by = [module.__version__ for module in (optimum.version, ort, transformers, torch)]
    return hashlib.sha256(f"{made_by} {quantisation() if precision == 'int8' else ''}".encode()).hexdigest()[:8]


def quantisation() -> QuantizationConfig:
    """The dynamic int8 configuration that optimum has for this CPU."""
    if platform.machine().lower() in {"arm64", "aarch64"}:
        return AutoQuantizationConfig.arm64(is_static=False)
    if torch.cpu._is_vnni_supported():
        return AutoQuantizationConfig.avx512_vnni(is_static=False)
    if torch.cpu._is_avx512_supported():
        return AutoQuantizationConfig.avx512(is_static=False)
    return AutoQuantizationConfig.avx2(is_static=False)
