"""The shape of a model, which config.json gives, with the memory that it takes when it is loaded.

Loads no model library: the gateway imports it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import BadModel
from server.catalogue.config_keys import activation, epsilon, flag, refuse_what_is_not_computed, size
from server.catalogue.engines import CACHE_BITS, CACHE_SCALE_BYTES, TRAITS, choose_cache
from server.catalogue.files import CONFIG_FILE, read_map, without_config
from server.catalogue.generation import read_bounds

OVERHEAD_BYTES = 80 << 20
"""Memory of a worker's interpreter, libraries and activations."""
ROWS_BYTES = 640 << 20
"""Memory of the KV cache of USUAL_ROWS, at most, by default."""
USUAL_ROWS = 16
"""Rows of the KV cache, by default, on a machine with little memory."""
MAX_ROWS = 64
"""Rows of the KV cache, by default, on one with much. From 16 to 32 rows gpt2 gains a tenth of its speed, from there to
64 less than that; what they are for is that a client need not wait for a row (docs/architecture.md).
"""
MIN_CONTEXT = 2
CALIBRATION_TOKENS = 18 << 10
"""Number of tokens that a model is calibrated with."""
CALIBRATION_TEXT = 1024
"""Number of tokens of each text that it writes for that, at most."""
CALIBRATION_CACHE = "fp16"
"""What their KV cache is made of: another one would have other texts written."""
CALIBRATION_BYTES = 720 << 20
"""Memory of the KV cache of the texts that it writes together, at most, where more than 4 fit."""


@dataclass(frozen=True)
class Architecture:
    """The shape of a GPT-2, from its config.json."""

    layers: int
    heads: int
    width: int
    inner: int
    context: int
    vocabulary: int
    epsilon: float
    tied: bool = True
    """Whether the LM head is the token table, by config.json."""
    activation: str = "gelu_new"
    """Between the two matrices of the MLP: gelu, gelu_new, relu, silu, quick_gelu, tanh or mish."""
    scale_attn_weights: bool = True
    """Whether attention's scores are divided by the square root of a head's width."""
    scale_attn_by_inverse_layer_idx: bool = False
    """Whether they are divided by the layer's number too, counted from 1."""
    ends: tuple[int, ...] = field(default=(), repr=False)
    """Tokens that end a text, in ascending order; none is possible. Like what follows, it is not part of the name of a
    built file (engines/load.py), which is the repr.
    """
    start: int | None = field(default=None, repr=False)
    """Token that an empty prompt begins with; None where there is none."""
    notices: tuple[str, ...] = field(default=(), repr=False)
    """What a user should know of how the configuration was read."""

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    def score_factor(self, layer: int) -> float:
        """Return what attention multiplies a query's products with the keys by, in a layer that is counted from 0."""
        by_width = self.head**-0.5 if self.scale_attn_weights else 1.0
        return by_width / (layer + 1) if self.scale_attn_by_inverse_layer_idx else by_width

    def check_engine(self, engine: str) -> None:
        """Raise BadModel where the engine cannot compute such a model, naming one that can."""
        if self.head % TRAITS[engine].head_multiple:
            problem = TRAITS["native"].problem()
            raise BadModel(
                f"its attention heads are {self.head} wide, and engine {engine} computes multiples of "
                f"{TRAITS[engine].head_multiple}; use native{f' ({problem})' if problem else ''}"
            )

    @property
    def parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        block = 4 * self.width * self.width + 2 * self.width * self.inner + 9 * self.width + self.inner
        return (self.vocabulary + self.context) * self.width + self.layers * block + 2 * self.width

    @property
    def published_bytes(self) -> int:
        """Size of model.safetensors on the hub: float32, with each layer's attention mask beside its parameters."""
        return 4 * (self.parameters + self.layers * self.context**2)

    def row_bytes(self, engine: str, precision: str, cache: str | None = None) -> int:
        """Bytes of one sequence's KV cache: two vectors for each position and layer, with a scale a head at 8 bits.

        Here and below, where `cache` is left out, it is the default.
        """
        bits = CACHE_BITS[choose_cache(engine, precision, cache)]
        position = self.width * bits // 8 + (self.heads * CACHE_SCALE_BYTES if bits == 8 else 0)
        return 2 * self.layers * self.context * position

    def default_rows(self, engine: str, precision: str, share: int, cache: str | None = None) -> int:
        """Return the number of sequences that run together: rows of at most ROWS_BYTES, or of `share` bytes.

        There are 1 to USUAL_ROWS of the former, and up to MAX_ROWS of the latter.
        """
        row = self.row_bytes(engine, precision, cache)
        rows = max(1, min(USUAL_ROWS, ROWS_BYTES // row), min(MAX_ROWS, share // row))
        return min(rows, TRAITS[engine].most_rows or rows)

    def fitting_rows(self, engine: str, precision: str, room: int, share: int, cache: str | None = None) -> int:
        """Return default_rows, or fewer where they do not fit into `room` bytes; at least 1, whether it fits or not."""
        rows = self.default_rows(engine, precision, share, cache)
        while rows > 1 and self.memory_bytes(engine, precision, rows, cache) > room:
            rows -= 1
        return rows

    def prefix_cache_bytes(self, engine: str, precision: str, cache: str | None = None) -> int:
        """Bytes of the prefix cache: as much as one row, a whole context."""
        return self.row_bytes(engine, precision, cache) if TRAITS[engine].prefix_cache else 0

    def calibration_rows(self) -> int:
        """Return the number of texts that the model writes together when it is calibrated; they do not depend on it."""
        texts = -(-CALIBRATION_TOKENS // min(self.context, CALIBRATION_TEXT))
        fitting = max(4, CALIBRATION_BYTES // self.row_bytes("native", "int8", CALIBRATION_CACHE))
        rounds = -(-texts // min(texts, MAX_ROWS, fitting))
        return -(-texts // rounds)

    def calibration_bytes(self) -> int:
        """About what calibrating takes: the model at int8, what a layer's matrices are given, and their products."""
        widest = max(self.width, self.inner)
        inputs = CALIBRATION_TOKENS * (9 * (3 * self.width + self.inner) // 8 + 4 * self.width)
        matrix = 32 * self.width * max(self.inner, 3 * self.width)
        model = self.memory_bytes("native", "int8", self.calibration_rows(), CALIBRATION_CACHE)
        return model + inputs + 24 * widest**2 + matrix

    def calibration_seconds(self, threads: int, pace: float = 1.0) -> int:
        """About how long calibrating takes, by what it computes and reads: `pace` is that of `engines.pace`.

        Rates are those of two threads of Zen 4, measured at widths of 768 to 6400. For each matrix of a layer the
        products of its inputs, their factors and inverse, and the rounding of its weights. Where the last two, which
        `pace` tries, are faster, the rest, NumPy's products and reading memory, is taken to be as fast as there.
        """
        tokens = CALIBRATION_TOKENS
        width, inner = self.width, self.inner
        matrices = ((width, 3 * width), (width, width), (width, inner), (inner, width))
        products = sum(tokens * (n * n / 8e10 + 8e-9 * n) for n, _ in matrices)
        rounding = sum(4.7e-11 * n**3 + 5e-11 * outputs * n * n for n, outputs in matrices)
        rows = self.calibration_rows()
        step = max(rows * self.parameters / 2e11, self.parameters / 3.5e10)  # arithmetic, or the weights' bytes
        attention = rows * self.row_bytes("native", "int8", CALIBRATION_CACHE) / 2 / 3e10
        writing = tokens / rows * (step + attention)
        built = 6e-8 * self.parameters  # at int8 and at int4
        rest = (self.layers * products + writing + built) * max(1.0, pace)
        return math.ceil(2 + (self.layers * rounding * pace + rest) * 2 / threads)

    def loading_bytes(self, engine: str, precision: str, rows: int, cache: str | None = None) -> int:
        """About what a worker needs until it is ready: an export holds the weights several times over."""
        traits = TRAITS[engine]
        weights = traits.precisions[precision].loading_copies * 4 * self.parameters
        return max(self.memory_bytes(engine, precision, rows, cache), weights + OVERHEAD_BYTES + traits.libraries_bytes)

    def memory_bytes(self, engine: str, precision: str, rows: int, cache: str | None = None) -> int:
        """About what a worker needs when it is full: weights, `rows` rows of KV cache, the prefix cache, overhead.

        A row has its logits beside its cache, twice: as the engine computes them, and as they are chosen from.
        """
        traits = TRAITS[engine]
        stored = traits.precisions[precision]
        blocks = self.layers * (4 * self.width * self.width + 2 * self.width * self.inner)
        head = self.vocabulary * self.width
        rest = self.parameters - blocks - head
        heads = head if self.tied else 2 * head
        weights = int(stored.blocks * blocks + stored.head * heads + stored.coarse * head + stored.rest * rest)
        kept = min(rows, traits.most_rows or rows) * (self.row_bytes(engine, precision, cache) + 8 * self.vocabulary)
        kept += self.prefix_cache_bytes(engine, precision, cache)
        return weights + kept + OVERHEAD_BYTES + traits.libraries_bytes


def _published(layers: int, heads: int, width: int) -> Architecture:
    return Architecture(
        layers, heads, width, 4 * width, context=1024, vocabulary=50257, epsilon=1e-5, ends=(50256,), start=50256
    )


PUBLISHED = {
    "gpt2": _published(12, 12, 768),
    "gpt2-medium": _published(24, 16, 1024),
    "gpt2-large": _published(36, 20, 1280),
    "gpt2-xl": _published(48, 25, 1600),
    "distilgpt2": _published(6, 12, 768),
}
"""The hub's GPT-2s by name; their shapes are known before anything is downloaded."""


def read_architecture(folder: Path) -> Architecture:
    """Read and check config.json and generation_config.json.

    Raises: BadModel, naming what is not GPT-2 about them.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise BadModel(without_config(folder))
    config = read_map(file)
    kind = config.get("model_type")
    if kind is None:
        raise BadModel('config.json has no model_type; if it is a GPT-2, add "model_type": "gpt2"')
    if kind != "gpt2":
        raise BadModel(f"its architecture is {kind!r}; only gpt2 is supported")
    if quantised := config.get("quantization_config"):
        how = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise BadModel(
            f"config.json has quantization_config ({str(how)[:80]}): quantised weights are not read; take the model "
            "that they were made of, and choose a precision when it is loaded"
        )
    refuse_what_is_not_computed(config)
    width, vocabulary = size(config, "n_embd", 768), size(config, "vocab_size", 50257)
    bounds = read_bounds(folder, config, vocabulary)
    arch = Architecture(
        layers=size(config, "n_layer", 12),
        heads=size(config, "n_head", 12),
        width=width,
        inner=size(config, "n_inner", 4 * width) if config.get("n_inner") is not None else 4 * width,
        context=size(config, "n_positions", 1024),
        vocabulary=vocabulary,
        epsilon=epsilon(config),
        tied=flag(config, "tie_word_embeddings", True),
        activation=activation(config),
        scale_attn_weights=flag(config, "scale_attn_weights", True),
        scale_attn_by_inverse_layer_idx=flag(config, "scale_attn_by_inverse_layer_idx", False),
        ends=bounds.ends,
        start=bounds.start,
        notices=bounds.notices,
    )
    if arch.context < MIN_CONTEXT:
        raise BadModel(
            f"config.json has n_positions={arch.context}; a context must have {MIN_CONTEXT} tokens or more, one of the "
            "prompt and one that is written"
        )
    if arch.width % arch.heads:
        raise BadModel(f"config.json has n_embd={arch.width}, which {arch.heads} heads do not divide")
    return arch
