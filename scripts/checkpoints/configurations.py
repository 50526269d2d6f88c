"""Kinds of configurations: mathematics, shapes, what ends and begins a text, settings of generation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from scripts.checkpoints.kind import PROMPTS, Kind, Make
from scripts.checkpoints.small import END_ID, VOCABULARY, change, model, save

ACTIVATIONS = (
    "gelu", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh", "gelu_pytorch_tanh", "gelu_python", "relu",
    "silu", "swish", "quick_gelu", "tanh", "mish",
)  # fmt: skip
REFUSED_ACTIVATIONS = ("gelu_10", "relu2", "relu6", "linear", "sigmoid", "leaky_relu", "laplace", "prelu")
LONG = "The quality of mercy is not strained. It droppeth as the gentle rain from heaven. " * 3


def written(*, generation: dict[str, object] | None = None, remove: tuple[str, ...] = (), **keys: object) -> Make:
    """Return what makes a folder whose config.json has these keys, though GPT2Config might not write them.

    generation_config.json holds `generation`, or is missing; `remove` are keys that config.json loses.
    """

    def make(folder: Path) -> None:
        save(folder)
        change(folder, "config.json", **keys, **dict.fromkeys(remove))
        if None in keys.values():
            _set_null(folder, [key for key, value in keys.items() if value is None])
        (folder / "generation_config.json").unlink(missing_ok=True)
        if generation is not None:
            change(folder, "generation_config.json", **generation)

    return make


def _set_null(folder: Path, keys: list[str]) -> None:
    """Write null, which is another thing than no key."""
    file = folder / "config.json"
    text = "".join(f'"{key}": null,\n' for key in keys)
    file.write_text(file.read_text(encoding="utf-8").replace("{", "{" + text, 1), encoding="utf-8")


def ends_soon(shape: str) -> Make:
    """Return what makes a folder whose first prompt ends after some tokens.

    `shape`: where the token is told: as a number or in a list, in config.json or generation_config.json.
    """

    def make(folder: Path) -> None:
        save(folder)
        new = _greedy(folder)
        end = next(token for token in new[3:] if token not in new[:3])
        (folder / "generation_config.json").unlink()
        if shape == "list":
            change(folder, "config.json", eos_token_id=[7, end, END_ID])
        elif shape == "number":
            change(folder, "config.json", eos_token_id=end)
        else:
            change(folder, "generation_config.json", eos_token_id=[end, 7] if shape == "both" else end)
            change(folder, "config.json", eos_token_id=new[1])

    return make


def _greedy(folder: Path) -> list[int]:
    """Return what follows the first prompt, when nothing ends it."""
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(PROMPTS[0]).ids
    whole, count = model(), len(ids)
    with torch.inference_mode():
        for _ in range(10):
            ids.append(int(whole(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[count:]


def of_context(context: int) -> Make:
    return lambda folder: save(folder, n_positions=context)


def kinds() -> Iterator[Kind]:
    for name in ACTIVATIONS:
        blocks = name in {"gelu", "relu", "silu", "quick_gelu", "tanh", "mish"}
        make = written(activation_function=name)
        yield Kind(f"activation-{name}", make, blocks=blocks, gate=name in {"gelu", "quick_gelu"})
    for name in REFUSED_ACTIVATIONS:
        yield Kind(
            f"activation-{name}",
            written(activation_function=name),
            rf"activation_function.*{name}",
            gate=name == "relu6",
        )

    both: dict[str, Any] = {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}
    yield Kind("scale-by-layer", written(scale_attn_by_inverse_layer_idx=True), blocks=True, gate=True)
    yield Kind("scale-none", written(scale_attn_weights=False), blocks=True, gate=True)
    yield Kind("scale-none-but-by-layer", written(**both), blocks=True)
    yield Kind("scale-upcast", written(reorder_and_upcast_attn=True))
    yield Kind("scale-upcast-by-layer", written(reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True))
    yield Kind("shape-inner", lambda folder: save(folder, n_inner=48), blocks=True)
    yield Kind("shape-head-of-8", lambda folder: save(folder, n_head=4))
    yield Kind("shape-one-head", lambda folder: save(folder, n_head=1))
    yield Kind("shape-one-layer", lambda folder: save(folder, n_layer=1))
    names: dict[str, Any] = {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
    }
    yield Kind("shape-other-names", written(remove=("n_embd", "n_head", "n_layer", "n_positions"), **names))
    yield Kind("shape-n-ctx", written(n_ctx=32), texts=(LONG[:80],))
    yield Kind("shape-epsilon", written(layer_norm_epsilon=1e-3))
    yield Kind("shape-epsilon-of-0", written(layer_norm_epsilon=0), "layer_norm_epsilon")
    yield Kind("shape-pruned", written(pruned_heads={"0": [1]}), "pruned_heads", gate=True)
    yield Kind("shape-cross-attention", written(add_cross_attention=True), "add_cross_attention")
    old: dict[str, Any] = {"gradient_checkpointing": False, "_num_labels": 1, "output_past": True}
    old |= {"task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "our_own": {"a": 1}}
    yield Kind("shape-keys-of-2019", written(architectures=["GPT2DoubleHeadsModel"], torch_dtype="float16", **old))
    yield Kind("shape-keys-missing", written(remove=("n_inner", "activation_function", "layer_norm_epsilon", "n_ctx")))
    yield Kind("shape-smaller-vocabulary", written(vocab_size=300), "shape")
    yield Kind("shape-other-type", written(model_type="gpt_neo"), "gpt_neo")
    yield Kind("shape-no-type", written(remove=("model_type",)), "model_type")
    quantised = written(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    yield Kind("shape-quantised", quantised, r"quantization_config \(bitsandbytes\)")
    yield Kind("shape-vocabulary-padded", lambda folder: save(folder, vocab_size=384))

    short: dict[str, Any] = {"texts": ("To be", " or not"), "prompts": ("To be", "")}
    for context in (16, 17, 100, 600):
        yield Kind(f"context-{context}", of_context(context), gate=context == 17, **short)
    long = (LONG,)
    yield Kind("context-256-long-text", of_context(256), texts=long, prompts=(LONG[:200],))

    for shape in ("number", "list", "generation", "both"):
        yield Kind(f"end-{shape}", ends_soon(shape), prompts=PROMPTS[:2], gate=shape in {"list", "generation"})
    yield Kind("end-null", written(eos_token_id=None))
    yield Kind("end-absent", written(remove=("eos_token_id", "bos_token_id")), prompts=PROMPTS[:2])
    yield Kind("end-empty-list", written(eos_token_id=[]))
    yield Kind("end-is-the-vocabularys-size", written(eos_token_id=VOCABULARY), gate=True)
    yield Kind("end-null-in-generation", written(generation={"bos_token_id": 5, "transformers_version": "4.30.0"}))
    for name, end in {"text": "</s>", "boolean": True, "fraction": 1.5}.items():
        yield Kind(f"end-is-a-{name}", written(eos_token_id=end), "eos_token_id")
    yield Kind("end-negative", written(eos_token_id=-1))
    settings: dict[str, object] = {
        "eos_token_id": END_ID,
        "bos_token_id": END_ID,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 3,
    }
    settings |= {"repetition_penalty": 5.0, "max_length": 20, "no_repeat_ngram_size": 2}
    yield Kind("end-with-sampling-settings", written(generation=settings))
    yield Kind("begin-another", written(bos_token_id=5))
    yield Kind("begin-in-generation", written(generation={"eos_token_id": END_ID, "bos_token_id": 9}))
    yield Kind("begin-null", written(bos_token_id=None))
