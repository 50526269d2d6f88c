"""The keys of config.json that change what a GPT-2 computes, read as transformers reads them.

A key that is in no list here is harmless: transformers keeps it, and nothing asks for it (n_ctx is one of these).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from protocol.errors import BadModel

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
    "tanh": "tanh",
    "mish": "mish",
}
"""The activations that are computed here, by each of their names. Those of one function differ in rounding alone."""
ALIASES = {
    "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
}
"""The other name of a size. Where both are there, transformers takes this one."""
NOTHING: tuple[object, ...] = (None, False, [], {})
REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "add_cross_attention": (NOTHING, "a decoder that reads what an encoder made is not supported"),
    "is_encoder_decoder": (NOTHING, "a decoder that reads what an encoder made is not supported"),
    "pruned_heads": (NOTHING, "attention heads that were cut out are not supported"),
    "per_layer_config": (NOTHING, "layers that differ from each other are not supported"),
    "layer_types": ((None,), "attention to a part of what stands before a token is not supported"),
    "sliding_window": ((None,), "attention to a part of what stands before a token is not supported"),
    "attention_chunk_size": ((None,), "attention to a part of what stands before a token is not supported"),
    "num_kv_shared_layers": ((None,), "layers that share their keys and values are not supported"),
    "kv_sharing_modes": (NOTHING, "layers that share their keys and values are not supported"),
    "is_causal": ((None, True), "attention to what follows a token is not supported"),
    "decoder": ((None,), "a model inside another one is not supported; give it a config.json of its own"),
    "generator": ((None,), "a model inside another one is not supported; give it a config.json of its own"),
    "text_config": ((None,), "a model inside another one is not supported; give it a config.json of its own"),
    "text_encoder": ((None,), "a model inside another one is not supported; give it a config.json of its own"),
    "attribute_map": (NOTHING, "other names for its settings are not supported; use those of GPT-2"),
    "configuration_files": (NOTHING, "configurations in other files are not read; put the right one into config.json"),
    "transformers_weights": (NOTHING, "weights under a name of their own are not read; call them model.safetensors"),
}
"""What transformers' classes ask a GPT-2's configuration for and no engine here has: harmless values, the reason."""


def refuse_what_is_not_computed(config: Mapping[str, Any]) -> None:
    """Raise BadModel, naming the key, where transformers would compute something else than the engines do."""
    for key, (harmless, reason) in REFUSED.items():
        value = config.get(key)
        if not any(value is one or (type(value) is type(one) and value == one) for one in harmless):
            raise BadModel(f"config.json has {key}={str(value)[:80]}: {reason}")


def size(config: Mapping[str, Any], key: str, default: int) -> int:
    """Return a size, by whichever of its names it has. Raises: BadModel."""
    if ALIASES.get(key) in config:
        key = ALIASES[key]
    value = config.get(key, default)
    if type(value) is not int or not 0 < value < 1 << 20:  # not a bool either
        raise BadModel(f"config.json has {key}={value!r}; expected a size")
    return value


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return a setting that is on or off. Raises: BadModel."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise BadModel(f"config.json has {key}={value!r}; expected true or false")
    return value


def activation(config: Mapping[str, Any]) -> str:
    """Return the activation by the name that the engines know it by. Raises: BadModel."""
    name = config.get("activation_function", "gelu_new")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        there = ", ".join(ACTIVATIONS)
        raise BadModel(f"config.json has activation_function={name!r}, which no engine computes; what they do: {there}")
    return ACTIVATIONS[name]


def epsilon(config: Mapping[str, Any]) -> float:
    """Return what the norms add to a variance. Raises: BadModel: an integer, too, which transformers 5 refuses."""
    value = config.get("layer_norm_epsilon", 1e-5)
    if not isinstance(value, float) or not 0 <= value < math.inf:
        raise BadModel(f"config.json has layer_norm_epsilon={value!r}; expected a small number, such as 1e-05")
    return value
