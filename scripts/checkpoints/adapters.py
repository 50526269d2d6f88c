"""LoRA adapters as the package peft writes them, one of each kind, and what peft makes of them.

Where peft is installed, `PYTHONPATH=. python -m scripts.checkpoints.adapters` asks it: it makes every kind, loads it as
PeftModel does, and writes the logits that it gives to tests/data/adapters.json, with which the tests compare.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

EXPECTED = Path(__file__).resolve().parents[2] / "tests" / "data" / "adapters.json"
LAYERS, WIDTH = 2, 16
CONTEXT, VOCABULARY = 32, 48
CONFIG = {
    "model_type": "gpt2", "n_layer": LAYERS, "n_head": 2, "n_embd": WIDTH, "n_positions": CONTEXT,
    "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
IDS = [5, 6, 7, 40]
BASE = "base"
PREFIX = "base_model.model."
SIZES = {
    "attn.c_attn": (WIDTH, 3 * WIDTH),
    "attn.c_proj": (WIDTH, WIDTH),
    "mlp.c_fc": (WIDTH, 4 * WIDTH),
    "mlp.c_proj": (4 * WIDTH, WIDTH),
}
"""Of a block's matrices: inputs and outputs."""
PEFT: dict[str, object] = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None, "bias": "none",
    "base_model_name_or_path": BASE, "corda_config": None, "ensure_weight_tying": False, "eva_config": None,
    "exclude_modules": None, "fan_in_fan_out": True, "inference_mode": True, "init_lora_weights": True,
    "kasa_config": None, "layer_replication": None, "layers_pattern": None, "layers_to_transform": None,
    "loftq_config": {}, "lora_alpha": 5, "lora_bias": False, "lora_dropout": 0.1, "lora_ga_config": None,
    "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None, "monteclora_config": None,
    "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 2, "rank_pattern": {},
    "revision": None, "target_modules": ["c_attn"], "target_parameters": None, "task_type": "CAUSAL_LM",
    "trainable_token_indices": None, "use_bdlora": None, "use_dora": False, "use_qalora": False, "use_rslora": False,
    "velora_config": None,
}  # fmt: skip
"""adapter_config.json as peft 0.21.2 writes it."""


def blocks(*names: str, layers: tuple[int, ...] = tuple(range(LAYERS))) -> tuple[str, ...]:
    return tuple(f"transformer.h.{layer}.{name}" for layer in layers for name in names)


ATTENTION = blocks("attn.c_attn")
EVERY = blocks(*SIZES)


@dataclass(frozen=True)
class Adapter:
    """A kind of adapter: its settings, the modules that it has matrices for, and other tensors that it has."""

    settings: dict[str, object] = field(default_factory=dict)
    modules: tuple[str, ...] = ATTENTION
    ranks: dict[str, int] = field(default_factory=dict)
    """Ranks of modules, where they are not `r`."""
    whole: tuple[str, ...] = ()
    """Names of tensors that stand for the base's."""
    base: str = BASE
    vocabulary: int = VOCABULARY


ADAPTERS: dict[str, Adapter] = {
    "c_attn": Adapter(),
    "every matrix": Adapter({"target_modules": ["c_attn", "c_proj", "c_fc"]}, EVERY),
    "all-linear": Adapter({"target_modules": "all-linear"}, EVERY),
    "a regular expression": Adapter(
        {"target_modules": r".*\.attn\.c_(attn|proj)"}, blocks("attn.c_attn", "attn.c_proj")
    ),
    "rslora": Adapter({"use_rslora": True, "r": 4, "lora_alpha": 3}),
    "patterns": Adapter(
        {
            "target_modules": ["c_attn", "c_proj"],
            "rank_pattern": {"c_attn": 3, "h.1.mlp.c_proj": 5},
            "alpha_pattern": {".*h.0.*": 2, "attn.c_proj": 9},
        },
        blocks("attn.c_attn", "attn.c_proj", "mlp.c_proj"),
        dict.fromkeys(ATTENTION, 3) | {"transformer.h.1.mlp.c_proj": 5},
    ),
    "one layer": Adapter({"layers_to_transform": [1]}, blocks("attn.c_attn", layers=(1,))),
    "one layer by its list": Adapter(
        {"layers_to_transform": 0, "layers_pattern": "h"}, blocks("attn.c_attn", layers=(0,))
    ),
    "but one": Adapter(
        {"target_modules": ["c_attn", "c_proj"], "exclude_modules": ["h.0.mlp.c_proj"]},
        (*blocks("attn.c_attn", "attn.c_proj"), "transformer.h.1.mlp.c_proj"),
    ),
    "gpt2's own targets": Adapter({"target_modules": None}),
    "another start": Adapter({"init_lora_weights": "gaussian"}),
    "the table": Adapter({"target_modules": ["wte", "c_attn"]}, (*ATTENTION, "transformer.wte")),
    "the positions": Adapter({"target_modules": ["wpe"]}, ("transformer.wpe",)),
    "the head": Adapter(
        {"target_modules": ["lm_head", "c_attn"]}, (*ATTENTION, "lm_head"), whole=("lm_head.base_layer.weight",)
    ),
    "the head saved": Adapter({"modules_to_save": ["lm_head"]}, whole=("lm_head.weight",)),
    "the table saved": Adapter({"modules_to_save": ["wte"]}, whole=("transformer.wte.weight",)),
    "both saved": Adapter({"modules_to_save": ["wte", "lm_head"]}, whole=("transformer.wte.weight", "lm_head.weight")),
    "a norm saved": Adapter({"modules_to_save": ["ln_f"]}, whole=("transformer.ln_f.weight", "transformer.ln_f.bias")),
    "a part saved": Adapter(
        {"target_modules": ["c_attn", "c_proj"], "modules_to_save": ["mlp"]},
        blocks("attn.c_attn", "attn.c_proj"),
        whole=blocks("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
    ),
    "all biases": Adapter(
        {"bias": "all"},
        whole=(
            *blocks("attn.c_attn.base_layer.bias", "attn.c_proj.bias", "mlp.c_fc.bias", "mlp.c_proj.bias"),
            *blocks("ln_1.bias", "ln_2.bias"),
            "transformer.ln_f.bias",
        ),
    ),
    "its own biases": Adapter({"bias": "lora_only"}, whole=blocks("attn.c_attn.base_layer.bias")),
    "biases of the product": Adapter({"lora_bias": True}),
    "a larger vocabulary": Adapter(whole=("transformer.wte.weight", "lm_head.weight"), vocabulary=VOCABULARY + 2),
    "a larger vocabulary, trained": Adapter(
        {"target_modules": ["c_attn", "wte"]},
        (*ATTENTION, "transformer.wte"),
        whole=("transformer.wte.base_layer.weight", "lm_head.weight"),
        vocabulary=VOCABULARY + 2,
    ),
    "a head of its own, saved": Adapter({"modules_to_save": ["wte"]}, whole=("transformer.wte.weight",), base="untied"),
    "a head of its own, trained": Adapter(
        {"target_modules": ["wte", "c_attn"]}, (*ATTENTION, "transformer.wte"), base="untied"
    ),
}


def values(name: str, *shape: int) -> NDArray[np.float32]:
    """Return numbers that depend on the name alone; NumPy's RandomState gives the same ones for ever."""
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return (0.3 * drawn).astype(np.float32)


def base(folder: Path, *, tied: bool = True) -> None:
    """Write the model that the adapters are for."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": tied}))
    tensors: dict[str, tuple[int, ...]] = {
        f"transformer.{name}.weight": shape for name, shape in (("wte", (VOCABULARY, WIDTH)), ("wpe", (CONTEXT, WIDTH)))
    }
    for name in blocks(*SIZES):
        inputs, outputs = SIZES[name.split(".", 3)[3]]
        tensors |= {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}
    for name in (*blocks("ln_1", "ln_2"), "transformer.ln_f"):
        tensors |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    tensors |= {} if tied else {"lm_head.weight": (VOCABULARY, WIDTH)}
    made = {name: values(name, *shape) for name, shape in tensors.items()}
    for name in made:
        if ".ln_" in name and name.endswith("weight"):
            made[name] += 1
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})


def tensors_of(adapter: Adapter, width: int, vocabulary: int, strength: np.float32) -> dict[str, NDArray[np.float32]]:
    """Return an adapter's tensors by their names in the file; the base has that width and vocabulary."""
    made = {}
    for module in adapter.modules:
        rank = adapter.ranks.get(module, int(str(adapter.settings.get("r", PEFT["r"]))))
        inputs, outputs = _sizes(module, width, adapter.vocabulary)
        a, b = "lora_A.weight", "lora_B.weight"
        if module.endswith(("wte", "wpe")):
            a, b = "lora_embedding_A", "lora_embedding_B"
        made[f"{module}.{a}"] = values(f"{module} A", rank, inputs)
        made[f"{module}.{b}"] = strength * values(f"{module} B", outputs, rank)
        if adapter.settings.get("lora_bias"):
            made[f"{module}.lora_B.bias"] = values(f"{module} bias", outputs)
    for name in adapter.whole:
        inputs, outputs = _sizes(name.replace(".base_layer", "").rpartition(".")[0], width, adapter.vocabulary)
        shape: tuple[int, ...] = (inputs, outputs) if name.endswith("weight") else (outputs,)
        if ".ln_" in name:
            shape = (outputs,)
        # Where a vocabulary grew, the table and the head are one tensor, and are both stored.
        same = adapter.vocabulary != vocabulary
        made[name] = values(
            "grown" if same else f"{name} whole", *(shape[::-1] if name.startswith("lm_head") else shape)
        )
    return {PREFIX + name: tensor for name, tensor in made.items()}


def _sizes(module: str, width: int, vocabulary: int) -> tuple[int, int]:
    """Return a module's inputs and outputs; of a table, its rows and their width."""
    if module == "lm_head":
        return width, vocabulary
    part = module.removeprefix("transformer.")
    if part in {"wte", "wpe"}:
        return vocabulary if part == "wte" else CONTEXT, width
    inputs, outputs = SIZES.get(part.split(".", 2)[-1], (WIDTH, WIDTH))
    return inputs * width // WIDTH, outputs * width // WIDTH


def write(
    folder: Path, adapter: Adapter, settings: Mapping[str, object] = MappingProxyType({}), *, width: int = WIDTH,
    vocabulary: int = VOCABULARY, strength: float = 1.0,
) -> None:  # fmt: skip
    """Write an adapter's folder, as peft's save_pretrained; its base has that width and vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    config = PEFT | adapter.settings | {"base_model_name_or_path": adapter.base, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    tensors = tensors_of(adapter, width, vocabulary, np.float32(strength))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def ask(folder: Path, base: Path, vocabulary: int) -> list[float]:
    """Return the logits that peft gives after IDS."""
    import torch
    from transformers import GPT2LMHeadModel

    whole: Any = GPT2LMHeadModel
    model = whole.from_pretrained(base, attn_implementation="eager")
    if vocabulary != VOCABULARY:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    peft: Any = importlib.import_module("peft")  # which an environment of transformers 5 has beside it
    made = peft.PeftModel.from_pretrained(model, folder).eval()
    with torch.inference_mode():
        logits: list[float] = made(torch.tensor([IDS])).logits[0, -1].tolist()
    return logits


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if importlib.util.find_spec("peft") is None:
        sys.exit("peft is not installed here: pip install peft, in the environment of transformers 5")
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        bases = {name: Path(scratch) / name for name in (BASE, "untied")}
        for name, folder in bases.items():
            base(folder, tied=name == BASE)
        for name, adapter in ADAPTERS.items():
            folder = Path(scratch) / "adapter"
            write(folder, adapter)
            found[name] = [round(logit, 5) for logit in ask(folder, bases[adapter.base], adapter.vocabulary)]
            print(name, file=sys.stderr)
    EXPECTED.parent.mkdir(exist_ok=True)
    EXPECTED.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
