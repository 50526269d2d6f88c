"""A LoRA adapter of the package peft: what its configuration says, and the shape of the model that its base becomes.

Read as peft 0.21 does, whose fields of LoraConfig, with those of versions since 0.3, are all named here: a setting that
changes the mathematics is understood or refused. Loads no model library: the gateway imports it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from protocol.errors import BadModel
from server.catalogue.architecture import Architecture, read_architecture
from server.catalogue.files import (
    ADAPTER_CONFIG,
    CHAT_FILE,
    CONFIG_FILE,
    GENERATION_FILE,
    OTHER_FILES,
    has_tokenizer,
    is_adapter,
    model_files,
    read_map,
)
from server.catalogue.generation import read_bounds

MAX_HEADER_BYTES = 4 << 20
MAX_RANK = 1 << 16
PREFIX = "base_model.model."
"""What peft puts before the names of a model's tensors."""
TABLE, HEAD = "transformer.wte", "lm_head"
SETTINGS_FILE = "tokenizer_config.json"
LORA = re.compile(r"(.+)\.lora_(embedding_)?[AB](\..+)?")
IRRELEVANT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "fan_in_fan_out", "inference_mode",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "merge_weights", "peft_version",
    "qalora_group_size", "runtime_config",
}  # fmt: skip
"""Settings of the training, and of initialisations: what becomes of these is in the weights, or `INITIAL` refuses it.
Of fan_in_fan_out peft takes what is right for the layer."""
UNDERSTOOD = {
    "alpha_pattern", "bias", "exclude_modules", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "lora_alpha", "lora_bias", "modules_to_save", "peft_type", "r", "rank_pattern", "revision", "target_modules",
    "task_type", "use_rslora",
}  # fmt: skip
INITIAL = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the base as it is; pissa, olora, corda, loftq and lora_ga take something out of it."""
MERGE = "merge it with peft (merge_and_unload, then save_pretrained) and take that folder"
NAME = re.compile(r"[\w.-]+", re.ASCII)
REPEATS = re.compile(r"[*+?{]")
MAX_PATTERN, MAX_REPEATS = 1000, 4
MAX_PATTERNS, MAX_REPEATING = 256, 32
"""Most modules that a map names (gpt2-xl has 195), and of these patterns with repetitions: seconds at the worst."""
Pattern = tuple[str, ...] | str
"""Names of modules, or a regular expression for them."""


@dataclass(frozen=True)
class Adapter:
    """What an adapter's configuration says of the mathematics, by peft's names."""

    base: str
    r: int
    lora_alpha: float
    use_rslora: bool
    lora_bias: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: Pattern | None
    """None: every matrix of the blocks."""
    exclude_modules: Pattern
    modules_to_save: tuple[str, ...]
    layers_to_transform: tuple[int, ...]
    layers_pattern: tuple[str, ...]

    def saves(self, module: str) -> bool:
        """Return whether a module, by its whole name, is stored as a whole: peft puts a copy in its place."""
        parts = module.split(".")
        above = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
        return any(name.endswith(saved) for name in above for saved in self.modules_to_save)


def read_adapter(folder: Path) -> Adapter:
    """Read and check adapter_config.json. Raises: BadModel, which names what is not supported and says what to do."""
    config = read_map(folder / ADAPTER_CONFIG)
    if (kind := config.get("peft_type")) != "LORA":
        raise BadModel(f"{ADAPTER_CONFIG} has peft_type={kind!r}; only LORA is supported: {MERGE}")
    if (task := config.get("task_type")) not in (None, "CAUSAL_LM"):
        raise BadModel(f"{ADAPTER_CONFIG} has task_type={task!r}: it was not made to write text (CAUSAL_LM)")
    if (initial := config.get("init_lora_weights", True)) not in INITIAL:
        raise BadModel(
            f"{ADAPTER_CONFIG} has init_lora_weights={_short(initial)}, which changes the base, too: {MERGE}, or save "
            "the adapter with path_initial_model_for_weight_conversion"
        )
    for key, value in config.items():
        if key not in IRRELEVANT | UNDERSTOOD and value not in (None, False, [], {}):
            raise BadModel(f"{ADAPTER_CONFIG} has {key}={_short(value)}, which is not supported: {MERGE}")
    if (revision := config.get("revision")) not in (None, "", "main"):
        raise BadModel(
            f"{ADAPTER_CONFIG} has revision={_short(revision)}, and of a base on the hub only main is taken: put that "
            "revision into a folder, and write the folder's name as base_model_name_or_path, and revision=null"
        )
    if config.get("bias", "none") not in ("none", "all", "lora_only"):
        raise _wrong("bias", config["bias"], "none, all or lora_only")
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise _wrong("base_model_name_or_path", base, "the name of the model that it was trained on")
    return Adapter(
        base=base,
        r=_rank("r", config.get("r", 8)),
        lora_alpha=_alpha("lora_alpha", config.get("lora_alpha", 8)),
        use_rslora=_flag(config, "use_rslora"),
        lora_bias=_flag(config, "lora_bias"),
        rank_pattern={key: _rank("rank_pattern", value) for key, value in _patterns(config, "rank_pattern")},
        alpha_pattern={key: _alpha("alpha_pattern", value) for key, value in _patterns(config, "alpha_pattern")},
        target_modules=_targets(config.get("target_modules")),
        exclude_modules=_pattern("exclude_modules", config.get("exclude_modules") or ()),
        modules_to_save=_names("modules_to_save", config.get("modules_to_save") or ()),
        layers_to_transform=_layers(config.get("layers_to_transform")),
        layers_pattern=_names("layers_pattern", config.get("layers_pattern") or ()),
    )


def architecture_of(folder: Path, base: Path | None) -> Architecture:
    """Return the shape of the model in a folder, merged into its base where it is an adapter. Raises: BadModel."""
    if base is None:
        return read_architecture(folder)
    arch = read_architecture(base)
    made = adapted(arch, folder)
    if made.vocabulary == arch.vocabulary:
        return made
    bounds = read_bounds(base, read_map(base / CONFIG_FILE), made.vocabulary)  # an end may have been outside it before
    return replace(made, ends=bounds.ends, start=bounds.start, notices=bounds.notices)


def adapted(arch: Architecture, folder: Path) -> Architecture:
    """Return what a folder's adapter makes of the shape of its base: the vocabulary, and whether the head is its own.

    Of adapter_model.bin the tensors' names are not known here: it cannot change the vocabulary. Raises: BadModel,
    OSError.
    """
    adapter = read_adapter(folder)
    shapes = _shapes(model_files(folder).weights[0])
    tables = [shapes.get(f"{PREFIX}{of}{part}.weight") for of in (TABLE, HEAD) for part in ("", ".base_layer")]
    sizes = {shape[0] for shape in tables if shape}
    if sizes and not arch.vocabulary <= max(sizes) < 1 << 20:
        raise BadModel(f"the adapter has a vocabulary of {max(sizes)} tokens, and its base one of {arch.vocabulary}")
    trained = {found[1].removeprefix(PREFIX) for name in shapes if (found := LORA.fullmatch(name))}
    own = bool(trained & {TABLE, HEAD}) or adapter.saves(TABLE) or adapter.saves(HEAD)
    return replace(arch, vocabulary=max(sizes, default=arch.vocabulary), tied=arch.tied and not own)


def tokenizer_folder(folder: Path, base: Path | None) -> Path:
    """Return where the tokenizer is: an adapter has one of its own, whole, or that of its base. Raises: BadModel."""
    named = (folder / SETTINGS_FILE).is_file()
    if base is None or (named and has_tokenizer(folder)):
        return folder
    apart = {GENERATION_FILE, CHAT_FILE}
    if beside := [name for name in OTHER_FILES if name not in apart and (folder / name).is_file()]:
        missing = "its vocabulary" if named else SETTINGS_FILE
        raise BadModel(
            f"{beside[0]} is here without {missing}: put all files of the adapter's own tokenizer beside it, or take "
            "it away, and the base's tokenizer is used"
        )
    return base


def base_problem(folder: Path | None) -> str:
    """Return why the model in a folder can be no base; empty if it can."""
    return "is an adapter itself: merge it into its base with peft first" if folder and is_adapter(folder) else ""


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} from a safetensors file's header; nothing from another file. Raises: BadModel, OSError."""
    if file.suffix != ".safetensors":
        return {}
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > MAX_HEADER_BYTES:
                raise BadModel(f"{file.name} has a header of {size} bytes, more than any adapter's")
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        shapes = {name: tuple(tensor["shape"]) for name, tensor in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise BadModel(f"{file.name} cannot be read ({type(e).__name__}: {e})") from None
    if not all(type(size) is int for shape in shapes.values() for size in shape):
        raise BadModel(f"{file.name} cannot be read (a shape is not of numbers)")
    return shapes


def _targets(value: object) -> Pattern | None:
    if value is None:
        return ("c_attn",)  # what peft has for gpt2
    return None if isinstance(value, str) and value.lower() == "all-linear" else _pattern("target_modules", value)


def _pattern(key: str, value: object) -> Pattern:
    return _regular(key, value) if isinstance(value, str) else _names(key, value)


def _names(key: str, value: object) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) and NAME.fullmatch(v) for v in values):
        raise _wrong(key, value, "names of modules")
    return tuple(values)


def _patterns(config: Mapping[str, Any], key: str) -> Iterable[tuple[str, object]]:
    found = config.get(key) or {}
    if not isinstance(found, dict) or len(found) > MAX_PATTERNS:
        raise _wrong(key, found, f"a map of at most {MAX_PATTERNS} modules")
    for pattern in found:
        _regular(key, pattern)
    if sum(bool(REPEATS.search(pattern)) for pattern in found) > MAX_REPEATING:
        raise BadModel(f"{ADAPTER_CONFIG} has more than {MAX_REPEATING} regular expressions in {key}: write names")
    return found.items()


def _regular(key: str, pattern: str) -> str:
    """Check a regular expression that somebody else has written: one that could take for ever is refused."""
    repeats = len(REPEATS.findall(pattern))
    if len(pattern) > MAX_PATTERN or repeats > MAX_REPEATS or re.search(r"\)[*+{]", pattern):
        raise BadModel(
            f"{ADAPTER_CONFIG} has {key}={_short(pattern)}, a regular expression with more than {MAX_REPEATS} "
            f"repetitions or {MAX_PATTERN} characters, or a repeated group: write the names of the modules instead"
        )
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as e:
        raise BadModel(f"{ADAPTER_CONFIG} has {key}={_short(pattern)}, no regular expression: {e}") from None
    return pattern


def _layers(value: object) -> tuple[int, ...]:
    layers = [value] if isinstance(value, int) else value or []
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise _wrong("layers_to_transform", value, "numbers of layers")
    return tuple(layers)


def _rank(key: str, value: object) -> int:
    if type(value) is not int or not 0 < value < MAX_RANK:
        raise _wrong(key, value, "a rank above 0")
    return value


def _alpha(key: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
        raise _wrong(key, value, "a number")
    return float(value)


def _flag(config: Mapping[str, Any], key: str) -> bool:
    if (value := config.get(key) or False) is not True and value is not False:
        raise _wrong(key, value, "true or false")
    return value


def _wrong(key: str, value: object, wanted: str) -> BadModel:
    return BadModel(f"{ADAPTER_CONFIG} has {key}={_short(value)}; expected {wanted}")


def _short(value: object) -> str:
    return repr(value)[:80]
