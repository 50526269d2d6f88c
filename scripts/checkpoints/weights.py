"""Kinds of weights: types, files, shards, names, heads, and what beside them is no parameter."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file, save_model
from transformers import GPT2ForSequenceClassification, GPT2Model

from scripts.checkpoints.kind import Kind, Make
from scripts.checkpoints.small import CONFIG, byte_level, change, model, save

Tensors = dict[str, torch.Tensor]
SHARD = "40KB"
QKV = "transformer.h.0.attn.c_attn.weight"
DTYPES = {
    "fp32": [torch.float32],
    "fp16": [torch.float16],
    "bf16": [torch.bfloat16],
    "fp64": [torch.float64],
    "mixed": [torch.float32, torch.float16, torch.bfloat16, torch.float64],
}
FILES = ("safetensors", "bin", "old-bin")
"""The last one is what torch wrote before 1.6: no zip."""
PREFIXES = {"": "transformer.", "-bare": ""}


def tensors(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def rewrite(changed: Callable[[Tensors], Tensors]) -> Make:
    """Return what makes a folder whose tensors were changed."""

    def make(folder: Path) -> None:
        save(folder)
        save_file(changed(tensors(folder)), folder / "model.safetensors", metadata={"format": "pt"})

    return make


def cast(has: Tensors, dtype: str) -> Tensors:
    kinds = itertools.cycle(DTYPES[dtype])
    return {name: tensor.to(kind) for (name, tensor), kind in zip(has.items(), kinds, strict=False)}


def parts(has: Tensors, name: str) -> dict[str, Tensors]:
    """Return three shards by their files' names."""
    stem, ending = Path(name).stem, Path(name).suffix
    files: dict[str, Tensors] = {}
    for i, (key, tensor) in enumerate(has.items()):
        files.setdefault(f"{stem}-{i % 3 + 1:05}-of-00003{ending}", {})[key] = tensor
    return files


def stored(dtype: str, file: str, *, sharded: bool = False, prefix: str = "transformer.") -> Make:
    """Return what makes a folder of these types, files and names."""

    def make(folder: Path) -> None:
        whole = model()
        whole.config.save_pretrained(folder)
        byte_level(folder)
        state = {n: t for n, t in whole.state_dict().items() if n != "lm_head.weight"}
        has = cast({prefix + n.removeprefix("transformer."): t for n, t in state.items()}, dtype)
        name = "model.safetensors" if file == "safetensors" else "pytorch_model.bin"
        files = parts(has, name) if sharded else {name: has}
        for path, held in files.items():
            if file == "safetensors":
                save_file(held, folder / path, metadata={"format": "pt"})
            else:
                torch.save(held, folder / path, _use_new_zipfile_serialization=file == "bin")
        if sharded:
            placed = {key: path for path, held in files.items() for key in held}
            size = sum(tensor.nbytes for tensor in has.values())
            change(folder, f"{name}.index.json", metadata={"total_size": size}, weight_map=placed)

    return make


def binary(folder: Path, *, old: bool = False, prefix: str = "") -> None:
    """All of the state dict, tied head and buffers too, as before safetensors."""
    whole = model()
    whole.config.save_pretrained(folder)
    byte_level(folder)
    context = CONFIG["n_positions"]
    state = {prefix + name: tensor for name, tensor in whole.state_dict().items()}
    for i in range(CONFIG["n_layer"]):
        mask = torch.ones(1, 1, context, context, dtype=torch.uint8)
        state[f"{prefix}transformer.h.{i}.attn.bias"] = mask
        state[f"{prefix}transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not old)


def shards(folder: Path) -> None:
    model().save_pretrained(folder, max_shard_size=SHARD)
    byte_level(folder)


def binary_shards(folder: Path) -> None:
    model().save_pretrained(folder, safe_serialization=False, max_shard_size=SHARD)
    byte_level(folder)


def both(folder: Path) -> None:
    """safetensors and a pytorch_model.bin with other values: the first is read."""
    save(folder)
    torch.save({n: t + 1 for n, t in tensors(folder).items()}, folder / "pytorch_model.bin")


def of_class(kind: object) -> Make:
    def make(folder: Path) -> None:
        model(kind, pad_token_id=0).save_pretrained(folder)
        byte_level(folder)

    return make


def with_heads(has: Tensors) -> Tensors:
    """What is no parameter has any shape and type."""
    beside = {"v_head.summary.weight": torch.zeros(1, 32), "score.weight": torch.zeros(3, 32, dtype=torch.int8)}
    beside |= {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool)}
    return has | beside | {"transformer.h.1.attn.masked_bias": torch.zeros((), dtype=torch.uint8)}


def head_alone(folder: Path) -> None:
    """safetensors' save_model keeps one name of two that share a tensor."""
    whole = model()
    whole.config.save_pretrained(folder)
    byte_level(folder)
    save_model(whole, str(folder / "model.safetensors"), metadata={"format": "pt"})


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda has: {n: t for n, t in has.items() if n != name}


def changed(name: str, tensor: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda has: has | {name: tensor}


def other_head(has: Tensors) -> Tensors:
    return has | {"lm_head.weight": has["transformer.wte.weight"].flip(0).clone()}


def kinds() -> Iterator[Kind]:
    for dtype, file, sharded, bare in itertools.product(DTYPES, FILES, (False, True), PREFIXES):
        make = stored(dtype, file, sharded=sharded, prefix=PREFIXES[bare])
        gate = (dtype, file, sharded, bare) == ("bf16", "safetensors", False, "")
        name = f"weights-{dtype}-{file}{'-shards' if sharded else ''}{bare}"
        # Both engines get the same arrays: of the product's halves one is asked about the second engine.
        yield Kind(name, make, engines=("native",) if bare else ("native", "onnx"), gate=gate)
    yield Kind("weights-bin-all", binary, gate=True)
    yield Kind("weights-old-bin-all", lambda folder: binary(folder, old=True))
    yield Kind("weights-shards", shards)
    yield Kind("weights-bin-shards", binary_shards)
    yield Kind("weights-both-files", both)
    for prefix in ("module.", "_orig_mod.", "_orig_mod.module."):
        wrapped = lambda folder, prefix=prefix: binary(folder, prefix=prefix)  # noqa: E731
        yield Kind(f"weights-prefix-{prefix.replace('.', '-')}", wrapped, judged=binary, gate=prefix == "module.")
    yield Kind("weights-prefix-foreign", rewrite(lambda has: {f"model.{n}": t for n, t in has.items()}), "names begin")
    yield Kind("head-no-head-class", of_class(GPT2Model))
    yield Kind("head-classifier", of_class(GPT2ForSequenceClassification))
    yield Kind("head-others-beside", rewrite(with_heads))
    yield Kind("head-and-table", rewrite(lambda has: has | {"lm_head.weight": has["transformer.wte.weight"].clone()}))
    yield Kind("head-untied", lambda folder: save(folder, tie_word_embeddings=False), blocks=True, gate=True)
    yield Kind("head-alone", head_alone, judged=save, gate=True)
    yield Kind("head-other-values", rewrite(other_head), notice="head", gate=True)
    for gone in ("lm_head.weight", "transformer.wte.weight"):
        says = f"tie_word_embeddings=false, and .* no tensor {gone.removeprefix('transformer.')}"
        untied = rewrite(lambda has: has | {"lm_head.weight": has["transformer.wte.weight"].clone()})

        def lacking(folder: Path, gone: str = gone, make: Make = untied) -> None:
            make(folder)
            save_file(without(gone)(tensors(folder)), folder / "model.safetensors", metadata={"format": "pt"})
            change(folder, "config.json", tie_word_embeddings=False)

        yield Kind(f"head-untied-without-{gone.split('.')[-2].replace('_', '-')}", lacking, says)
    yield Kind("weights-int8", rewrite(changed(QKV, torch.zeros(32, 96, dtype=torch.int8))), "I8: quantised")
    eight = torch.zeros(32, 96).to(torch.float8_e4m3fn)
    yield Kind("weights-float8", rewrite(changed(QKV, eight)), "F8_E4M3: quantised", gate=True)
    yield Kind("weights-wrong-shape", rewrite(changed(QKV, torch.zeros(96, 32))), r"shape \[96, 32\]")
    yield Kind("weights-one-missing", rewrite(without("transformer.wpe.weight")), "no tensor wpe.weight")
