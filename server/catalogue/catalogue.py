"""Which models, engines and precisions there are, and what they need. Loads no model library: the gateway imports it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import BadModel, UnknownModel

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent.parent / "demo_model"
KERNELS_VERSION = 3
"""Of the package gpt2d-kernels that the native engine works with."""


def native_problem() -> str:
    """Why the native engine cannot be used; empty if it can."""
    try:
        import gpt2d_kernels
    except ImportError:
        return "gpt2d-kernels is not installed; `pip install ./server/kernels` builds it"
    if gpt2d_kernels.library() is None:
        return "gpt2d-kernels was installed without a C++ compiler; install one (Debian: g++), then `pip install ./server/kernels`"
    if gpt2d_kernels.VERSION != KERNELS_VERSION:
        return "gpt2d-kernels is of another version; `pip install ./server/kernels` builds this one"
    return ""


PRECISIONS = ("int8", "int4", "fp32")
ENGINES: dict[str, tuple[str, ...]] = {
    **{name: PRECISIONS for name in ("native", "onnx") if name != "native" or not native_problem()},
    "torch": ("fp32", "bf16", "int8"),
    "optimum": ("fp32", "int8"),
}
"""Engine -> its precisions; the first of each is the default."""
COMPILED = {"torch": ("fp32", "bf16")}
"""Engine -> the precisions at which it can be compiled."""
REFERENCE = ("native" if "native" in ENGINES else "onnx", "fp32")
"""What the others are measured against."""
REFERENCES = frozenset({"torch", "optimum"})
"""Engines that are there to compare with: one row, no prefix cache."""
REFERENCE_BYTES = 420 << 20
"""What their libraries take beside OVERHEAD_BYTES."""
SUMS_FILE, COMPILED_FOLDER = "SHA256SUMS", "torch"
"""In the cache of built models: what makes a folder one of them, and where torch's compiler keeps its own."""
BUILD_FORMAT = 4
"""Raised whenever graph.py, layout.py, quantise.py or the export build something else from the same weights."""
EXPORT_COPIES = {"fp32": 6, "int8": 8}
"""How many times the float32 weights are in memory when optimum's export is at its largest."""
OVERHEAD_BYTES = 80 << 20
"""A worker's interpreter, libraries and activations."""
ROWS_BYTES = 640 << 20
MAX_ROWS = 16
MAX_REPLICAS = 64
"""As protocol.messages has it, which engines must not see."""
MAX_CONFIG_BYTES = 1 << 20
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
"""owner/name on the hub."""
COMMIT = re.compile("[0-9a-f]{40}")


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
    end_of_text: int

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        block = 4 * self.width * self.width + 2 * self.width * self.inner + 9 * self.width + self.inner
        return (self.vocabulary + self.context) * self.width + self.layers * block + 2 * self.width

    def row_bytes(self, engine: str, precision: str) -> int:
        """Bytes of one sequence's KV cache: two vectors a position and layer, of fp16 where the native engine is quantised."""
        return 2 * (2 if _is_half(engine, precision) else 4) * self.layers * self.context * self.width

    def default_rows(self, engine: str, precision: str) -> int:
        """How many sequences run together: as many rows as fit into ROWS_BYTES, 1 to MAX_ROWS."""
        if engine in REFERENCES:
            return 1
        return max(1, min(MAX_ROWS, ROWS_BYTES // self.row_bytes(engine, precision)))

    def prefix_cache_bytes(self, engine: str, precision: str) -> int:
        """The prefix cache holds as much as one row: a whole context."""
        return 0 if engine in REFERENCES else self.row_bytes(engine, precision)

    @property
    def published_bytes(self) -> int:
        """The size of model.safetensors as the hub has it: float32, and each layer's attention mask beside its parameters."""
        return 4 * (self.parameters + self.layers * self.context**2)

    def fitting_rows(self, engine: str, precision: str, room: int) -> int:
        """default_rows, or fewer where they do not fit into `room` bytes; at least 1, whether it fits or not."""
        rows = self.default_rows(engine, precision)
        while rows > 1 and self.memory_bytes(engine, precision, rows) > room:
            rows -= 1
        return rows

    def loading_bytes(self, engine: str, precision: str, rows: int) -> int:
        """About what a worker needs until it is ready: an export holds the weights several times over."""
        settled = self.memory_bytes(engine, precision, rows)
        if engine != "optimum":
            return settled
        return max(settled, EXPORT_COPIES[precision] * 4 * self.parameters + OVERHEAD_BYTES + REFERENCE_BYTES)

    def memory_bytes(self, engine: str, precision: str, rows: int) -> int:
        """About what a worker needs when it is full: weights, `rows` rows of KV cache, the prefix cache, overhead."""
        blocks = self.layers * (4 * self.width * self.width + 2 * self.width * self.inner)
        head = self.vocabulary * self.width
        rest = self.parameters - blocks - head
        if engine == "optimum":  # the head is stored apart from the token table; the runtime copies what it rearranges
            weights = (4 if precision == "fp32" else 1) * (self.parameters + head) * 3 // 2
            return weights + self.row_bytes(engine, precision) + OVERHEAD_BYTES + REFERENCE_BYTES
        if (
            engine in REFERENCES
        ):  # int8 is made of fp32, whose memory is not given back, and parts the head from the token table
            size = {
                "fp32": 4 * self.parameters,
                "bf16": 2 * self.parameters,
                "int8": 4 * self.parameters + blocks + 5 * head,
            }[precision]
            return size + self.row_bytes(engine, precision) + OVERHEAD_BYTES + REFERENCE_BYTES
        if precision == "fp32":
            weights = 4 * (blocks + head + rest)
        else:  # a scale for 32 weights; embedding and head have 8 bits, and the ONNX runtime keeps a packed copy of the head
            scale, copies = (2 / 32, 1) if engine == "native" else (4 / 32, 2)
            weights = (
                int(({"int8": 1, "int4": 0.5}[precision] + scale) * blocks + (1 + scale) * copies * head) + 4 * rest
            )
        kept = rows * self.row_bytes(engine, precision) + self.prefix_cache_bytes(engine, precision)
        return weights + kept + OVERHEAD_BYTES


def rows_of(engine: str, asked: int | None) -> int | None:
    """How many rows an engine gets where so many are asked for; None: as many as fit."""
    return 1 if engine in REFERENCES else asked


def _is_half(engine: str, precision: str) -> bool:
    """Keys and values have 16 bits."""
    return engine == "native" and precision != "fp32"


def _published(layers: int, heads: int, width: int) -> Architecture:
    return Architecture(
        layers, heads, width, 4 * width, context=1024, vocabulary=50257, epsilon=1e-5, end_of_text=50256
    )


PUBLISHED = {
    "gpt2": _published(12, 12, 768),
    "gpt2-medium": _published(24, 16, 1024),
    "gpt2-large": _published(36, 20, 1280),
    "gpt2-xl": _published(48, 25, 1600),
    "distilgpt2": _published(6, 12, 768),
}
"""The hub's GPT-2s by name; their shapes are known before anything is downloaded."""
OWNERS = dict.fromkeys(PUBLISHED, "openai-community") | {"distilgpt2": "distilbert"}
"""The hub redirects the short names to these owners'; a cache may have a model under either."""


@dataclass(frozen=True)
class Model:
    """A model that can be had: in `folder`, or where that is None from the hub, whose repository is `name`.

    `architecture` is None where it is not known yet, and where a `problem` says why the model cannot be loaded.
    """

    name: str
    folder: Path | None
    architecture: Architecture | None
    file_bytes: int = 0
    problem: str = ""


class Catalogue:
    """The embedded model, the hub's GPT-2s and every folder of `models_dir`, which comes before a name of the hub.

    Read afresh at each question, so that new folders show. `allow_hub` admits every other repository of the hub, too.
    """

    def __init__(self, models_dir: Path, hub_cache: Path, *, allow_hub: bool = False) -> None:
        self._models_dir, self._hub_cache, self._allow_hub = models_dir, hub_cache, allow_hub

    def models(self) -> list[Model]:
        return [self._get(name) for name in self._names()]

    def find(self, name: str) -> Model:
        """Raises: UnknownModel, BadModel."""
        if name not in self._names():
            if not REPOSITORY.fullmatch(name):
                raise UnknownModel(
                    f"no model {name!r} here; there are: {', '.join(self._names())} (folders of {self._models_dir} are looked at)"
                )
            if not self._allow_hub:
                raise UnknownModel(
                    f"{name} would come from the HuggingFace hub, which this server allows only with --allow-hub"
                )
        model = self._get(name)
        if model.problem:
            raise BadModel(f"{name}: {model.problem}")
        return model

    def parse(self, name: str) -> tuple[Model, str, str, int]:
        """Read model[/engine[/precision]][:replicas], where model may be owner/name. Raises: UnknownModel, BadModel."""
        way, _, replicas = name.rpartition(":")
        if not (way and replicas.isdecimal() and len(replicas) < 3):
            way, replicas = name, "1"
        if not 1 <= int(replicas) <= MAX_REPLICAS:
            raise BadModel(f"{name}: replicas are 1 to {MAX_REPLICAS}")
        model, *rest = way.split("/")
        if rest and rest[0] not in ENGINES and model not in self._names():
            model = f"{model}/{rest.pop(0)}"
        if len(rest) > 2:
            raise BadModel(f"{name}: expected model, model/engine or model/engine/precision")
        engine, precision = [*rest, "", ""][:2]
        return (self.find(model), *choose_engine(engine or None, precision or None), int(replicas))

    def _names(self) -> list[str]:
        return list(dict.fromkeys([DEMO, *PUBLISHED, *self._folders(), *self._cached()]))

    def _get(self, name: str) -> Model:
        folder = DEMO_FOLDER if name == DEMO else self._folders().get(name) or self._snapshot(name)
        if folder:
            return _inspect(name, folder)
        architecture = PUBLISHED.get(name)
        return Model(name, None, architecture, architecture.published_bytes if architecture else 0)

    def _folders(self) -> dict[str, Path]:
        """Names and folders; those whose names are no text are left out, and so is a folder that cannot be read."""
        return {
            p.name: p
            for p in _entries(self._models_dir)
            if not p.name.startswith(".") and p.name.isprintable() and p.is_dir()
        }

    def _cached(self) -> Iterator[str]:
        """Other GPT-2s that the hub's cache holds, where they are allowed."""
        for path in _entries(self._hub_cache) if self._allow_hub else []:
            name = path.name.removeprefix("models--").replace("--", "/")
            published = any(name == f"{owner}/{short}" for short, owner in OWNERS.items())
            if path.name.startswith("models--") and REPOSITORY.fullmatch(name) and not published:
                snapshot = self._snapshot(name)
                if snapshot and not _inspect(name, snapshot).problem:
                    yield name

    def _snapshot(self, name: str) -> Path | None:
        """The folder in the hub's cache that has all of a model's files, if there is one.

        The layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
        """
        for repository in (name, f"{OWNERS.get(name, '')}/{name}"):
            folder = self._hub_cache / f"models--{repository.replace('/', '--')}"
            try:
                commit = (folder / "refs" / "main").read_text(encoding="ascii").strip()
                snapshot = folder / "snapshots" / commit
                if (
                    COMMIT.fullmatch(commit)
                    and all((snapshot / file).is_file() for file in (CONFIG_FILE, WEIGHTS_FILE))
                    and has_tokenizer(snapshot)
                ):
                    return snapshot
            except (OSError, ValueError):
                continue
        return None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def has_tokenizer(folder: Path) -> bool:
    return any(all((folder / file).is_file() for file in files) for files in TOKENIZER_FILES)


def choose_engine(engine: str | None, precision: str | None) -> tuple[str, str]:
    """Fill in what a load request left out.

    Raises: BadModel, naming what there is.
    """
    engine = engine or next(iter(ENGINES))
    if engine not in ENGINES:
        raise BadModel(f"no engine {engine!r}; there are: {', '.join(ENGINES)}")
    precision = precision or ENGINES[engine][0]
    if precision not in ENGINES[engine]:
        raise BadModel(f"engine {engine} has no precision {precision!r}; it has: {', '.join(ENGINES[engine])}")
    return engine, precision


def check_compiled(engine: str, precision: str) -> None:
    """Raises: BadModel where there is nothing to compile."""
    if precision not in COMPILED.get(engine, ()):
        there = ", ".join(f"{name} at {' and '.join(precisions)}" for name, precisions in COMPILED.items())
        raise BadModel(f"{engine} at {precision} cannot be compiled; what can: {there}")


def read_architecture(folder: Path) -> Architecture:
    """Read and check config.json.

    Raises: BadModel, naming what is not GPT-2 about it.
    """
    file = folder / CONFIG_FILE
    try:
        if not file.is_file():
            raise BadModel("config.json is missing")
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise BadModel(f"config.json is over {MAX_CONFIG_BYTES} bytes")
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise BadModel(f"config.json cannot be read: {e}") from None
    if not isinstance(config, dict):
        raise BadModel("config.json is not a map")
    kind = config.get("model_type")
    if kind != "gpt2":
        raise BadModel(f"its architecture is {kind!r}; only gpt2 is supported")
    wanted = {
        "activation_function": ("gelu_new", ("gelu_new", "gelu_pytorch_tanh")),
        "scale_attn_weights": (True, (True,)),
        "scale_attn_by_inverse_layer_idx": (False, (False,)),
        "add_cross_attention": (False, (False,)),
    }
    for key, (default, accepted) in wanted.items():
        if config.get(key, default) not in accepted:
            raise BadModel(f"config.json has {key}={config[key]!r}; supported: {', '.join(map(str, accepted))}")
    width, vocabulary = _size(config, "n_embd", 768), _size(config, "vocab_size", 50257)
    epsilon, end = config.get("layer_norm_epsilon", 1e-5), config.get("eos_token_id", 50256)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise BadModel(f"config.json has layer_norm_epsilon={epsilon!r}; expected a small number")
    if isinstance(end, list):
        end = end[0] if end else None
    if end is None:
        end = vocabulary - 1
    if type(end) is not int or not 0 <= end < vocabulary:
        raise BadModel(f"config.json has eos_token_id={end!r}; expected a token of the vocabulary of {vocabulary}")
    arch = Architecture(
        layers=_size(config, "n_layer", 12),
        heads=_size(config, "n_head", 12),
        width=width,
        inner=_size(config, "n_inner", 4 * width) if config.get("n_inner") is not None else 4 * width,
        context=_size(config, "n_positions", 1024),
        vocabulary=vocabulary,
        epsilon=epsilon,
        end_of_text=end,
    )
    if arch.width % arch.heads:
        raise BadModel(f"config.json has n_embd={arch.width}, which {arch.heads} heads do not divide")
    return arch


def _size(config: dict[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if type(value) is not int or not 0 < value < 1 << 20:  # not a bool either
        raise BadModel(f"config.json has {key}={value!r}; expected a size")
    return value


def _inspect(name: str, folder: Path) -> Model:
    try:
        arch = read_architecture(folder)
        weights = folder / WEIGHTS_FILE
        if not weights.is_file():
            raise BadModel(f"{WEIGHTS_FILE} is missing")
        if not has_tokenizer(folder):
            raise BadModel("tokenizer.json (or vocab.json and merges.txt) is missing")
        return Model(name, folder, arch, weights.stat().st_size)
    except (BadModel, OSError) as e:
        return Model(name, folder, None, problem=str(e))
