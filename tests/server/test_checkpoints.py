"""Folders of weights as people have them: the same tensors as transformers reads, or a sentence that says why not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model

from protocol.errors import BadModel
from scripts.checkpoints.kind import Make
from scripts.checkpoints.small import model, save
from scripts.checkpoints.weights import (
    QKV,
    binary,
    binary_shards,
    both,
    changed,
    head_alone,
    of_class,
    rewrite,
    shards,
    stored,
    tensors,
    with_heads,
    without,
)
from server.catalogue.architecture import Architecture, read_architecture
from server.catalogue.catalogue import DEMO_FOLDER, Catalogue
from server.catalogue.files import model_files
from server.checkpoint.tensors import Weights
from server.engines.load import load_engine

IDS = [5, 6, 7, 40]
BARE = "config.json is missing: a model's folder has it"
PEFT = "is here without adapter_config.json, which peft writes beside it"
KINDS: dict[str, Make] = {
    "fp32": stored("fp32", "safetensors"),
    "fp16": stored("fp16", "safetensors"),
    "bf16": stored("bf16", "safetensors"),
    "fp64": stored("fp64", "safetensors"),
    "mixed": stored("mixed", "safetensors"),
    "shards": shards,
    "bin": binary,
    "bin of torch 1.5": lambda folder: binary(folder, old=True),
    "bin shards": binary_shards,
    "safetensors and bin": both,
    "no prefix": of_class(GPT2Model),
    "a classifier": of_class(GPT2ForSequenceClassification),
    "other heads": rewrite(with_heads),
    "head and table": rewrite(lambda has: has | {"lm_head.weight": has["transformer.wte.weight"].clone()}),
    "untied": lambda folder: save(folder, tie_word_embeddings=False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_tensors_are_those_that_transformers_reads(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path)
    same(tmp_path, GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager"))


def same(folder: Path, judge: GPT2LMHeadModel) -> None:
    weights = Weights(folder, read_architecture(folder))
    expected = {name.removeprefix("transformer."): p.detach().float() for name, p in judge.named_parameters()}
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert weights[name].dtype == np.float32
        np.testing.assert_array_equal(weights[name], tensor.numpy())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_a_wrappers_prefix_is_no_part_of_the_names(tmp_path: Path, prefix: str) -> None:
    """transformers would fill such a model at random: it is compared with the same one without the prefix."""
    binary(tmp_path, prefix=prefix)
    same(tmp_path, model())


def test_a_head_that_is_stored_alone_is_the_table_too(tmp_path: Path) -> None:
    """safetensors' save_model keeps one name of two that share a tensor; transformers 4.57 gets no table from that."""
    head_alone(tmp_path)
    assert "transformer.wte.weight" not in tensors(tmp_path)
    same(tmp_path, model())


def test_a_head_that_is_stored_with_other_values_is_used(tmp_path: Path) -> None:
    rewrite(lambda has: has | {"lm_head.weight": has["transformer.wte.weight"] + 1})(tmp_path)
    weights = Weights(tmp_path, read_architecture(tmp_path))
    assert weights.has_head
    np.testing.assert_array_equal(weights["lm_head.weight"], weights["wte.weight"] + 1)


def test_a_head_of_its_own_is_in_the_estimate() -> None:
    gpt2 = Architecture(12, 12, 768, 3072, 1024, 50257, 1e-5)
    more = replace(gpt2, tied=False).memory_bytes("native", "fp32", 1) - gpt2.memory_bytes("native", "fp32", 1)
    assert more == 4 * 768 * 50257


@pytest.mark.parametrize("engine", ["native", "onnx"])
@pytest.mark.parametrize("kind", ["mixed", "bin of torch 1.5", "shards", "untied"])
def test_the_logits_are_those_of_transformers(tmp_path: Path, engine: str, kind: str) -> None:
    KINDS[kind](tmp_path)
    made = load_engine(
        tmp_path, read_architecture(tmp_path), engine, "fp32", 1, 1, tmp_path / "cache", 1 << 30, lambda *_: None
    )
    judge = GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager", torch_dtype=torch.float32)
    with torch.inference_mode():
        expected = judge(torch.tensor([IDS])).logits[0, -1].numpy()
    np.testing.assert_allclose(made.engine.prefill(0, IDS, 0, [3])[0], expected, atol=2e-5, rtol=2e-5)
    assert made.separate_head == (kind == "untied") and np.ptp(expected) > 1
    made.engine.close()


def test_bfloat16_needs_no_other_library(tmp_path: Path) -> None:
    """In a fresh process: NumPy knows bfloat16 only where something else has taught it."""
    KINDS["bf16"](tmp_path)
    code = """if True:
        import sys
        from pathlib import Path
        from server.catalogue.architecture import read_architecture
        from server.engines.load import load_engine
        folder = Path(sys.argv[1])
        for engine in ("native", "onnx"):
            made = load_engine(folder, read_architecture(folder), engine, "fp32", 1, 1, folder / "cache", 1 << 30,
                               lambda *_: None)
            made.engine.prefill(0, [1, 2], 0, [1])
            assert not {"torch", "transformers"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (rewrite(changed(QKV, torch.zeros(32, 96, dtype=torch.int8))), "c_attn.weight is stored as I8: quantised"),
        (rewrite(changed(QKV, torch.zeros(32, 96).to(torch.float8_e4m3fn))), "stored as F8_E4M3: quantised"),
        (rewrite(changed(QKV, torch.zeros(96, 32))), r"shape \[96, 32\], config.json says \[32, 96\]"),
        (rewrite(without("transformer.wpe.weight")), "no tensor wpe.weight$"),
        (rewrite(lambda _: {"step": torch.zeros(1)}), "no tensor wte.weight, nor any other of a GPT-2: save the model"),
        (rewrite(lambda has: {f"model.{n}": t for n, t in has.items()}), "names begin with 'model.transformer.'"),
        (rewrite(lambda has: {n.removeprefix("transformer.h.0."): t for n, t in has.items()}), r"no tensor h\.0\.attn"),
    ],
)
def test_tensors_that_are_not_gpt2s_are_refused(tmp_path: Path, make: Make, says: str) -> None:
    make(tmp_path)
    with pytest.raises(BadModel, match=says):
        Weights(tmp_path, read_architecture(tmp_path))


def test_a_header_is_bounded(tmp_path: Path) -> None:
    """The library would take up to 100 MB, which are a GB once they are read."""
    rewrite(lambda has: has)(tmp_path)
    save_file(tensors(tmp_path), tmp_path / "model.safetensors", metadata={"long": "x" * (17 << 20)})
    with pytest.raises(BadModel, match=r"model\.safetensors has a header of 1782"):
        Weights(tmp_path, read_architecture(tmp_path))


@pytest.mark.parametrize("gone", ["lm_head.weight", "transformer.wte.weight"])
def test_an_untied_model_has_both(tmp_path: Path, gone: str) -> None:
    """transformers would fill the other one at random."""
    save(tmp_path, tie_word_embeddings=False)
    save_file(without(gone)(tensors(tmp_path)), tmp_path / "model.safetensors")
    with pytest.raises(
        BadModel, match=f"tie_word_embeddings=false, and .* no tensor {gone.removeprefix('transformer.')}"
    ):
        Weights(tmp_path, read_architecture(tmp_path))


def demo(folder: Path) -> Path:
    shutil.copytree(DEMO_FOLDER, folder / "own", ignore=shutil.ignore_patterns("*.md", "held_out.txt"))
    return folder / "own"


def problem(folder: Path) -> str:
    """What `models()` says of a folder, which is what a load says."""
    catalogue = Catalogue(folder.parent, folder.parent / ".hub")
    found = next(m.problem for m in catalogue.models() if m.name == folder.name)
    if found:
        with pytest.raises(BadModel):
            catalogue.find(folder.name)
    return found


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_named(tmp_path: Path, name: str) -> None:
    folder = demo(tmp_path)
    (folder / name).write_bytes(POINTER)
    assert problem(folder) == f"{name} is a Git LFS pointer: run git lfs pull in its folder"


def test_a_shard_that_is_a_pointer_or_missing_is_named(tmp_path: Path) -> None:
    folder = demo(tmp_path)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"wte.weight": "model-1.safetensors", "wpe.weight": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").write_bytes(POINTER)
    assert problem(folder) == "model.safetensors.index.json names model-2.safetensors, and it is missing"
    (folder / "model-2.safetensors").write_bytes(bytes(10))
    assert "model-1.safetensors is a Git LFS pointer" in problem(folder)


@pytest.mark.parametrize(
    "content",
    [
        "[]", "{", '{"weight_map": {}}', '{"weight_map": {"a": "../model.safetensors"}}', '{"weight_map": {"a": 5}}',
        '{"weight_map": {"a": "/etc/passwd"}}', '{"weight_map": {"a": ".safetensors"}}', "[" * 100_000,
        '{"weight_map": {"a": "other.bin"}}', '{"weight_map": ["model.safetensors"]}', " " * (5 << 20),
    ],
)  # fmt: skip
def test_an_index_names_files_of_its_folder(tmp_path: Path, content: str) -> None:
    folder = demo(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    assert problem(folder).startswith("model.safetensors.index.json ")


@pytest.mark.parametrize("other", ["tf_model.h5", "flax_model.msgpack", "gpt2.Q4_0.gguf", "ckpt.pt"])
def test_weights_in_another_format_are_named(tmp_path: Path, other: str) -> None:
    """Such a file is often alone."""
    folder = demo(tmp_path)
    (folder / "model.safetensors").rename(folder / other)
    for _ in range(2):
        assert problem(folder).startswith(f"the weights are in {other}, which is not read: ")
        (folder / "config.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("name", "says", "without_config"),
    [
        (
            "model.fp16.safetensors",
            "weights are looked for in model.safetensors, and here is model.fp16.safetensors: if",
            BARE,
        ),
        ("model-00001-of-00002.safetensors", "is here without model.safetensors.index.json, which names all", BARE),
        ("pytorch_model-00001-of-00002.bin", "is here without pytorch_model.bin.index.json, which names all", BARE),
        ("adapter_model.safetensors", PEFT, PEFT),
    ],
)
def test_what_is_beside_weights_of_that_name_is_said(tmp_path: Path, name: str, says: str, without_config: str) -> None:
    folder = demo(tmp_path)
    (folder / "model.safetensors").rename(folder / name)
    assert says in problem(folder)
    (folder / "config.json").unlink()
    assert without_config in problem(folder)


@pytest.mark.parametrize(
    ("name", "gone", "says"),
    [
        ("model.safetensors", "config.json", BARE),
        ("model-00001-of-00002.safetensors", "", "is here without model.safetensors.index.json, which names all"),
    ],
)
def test_other_formats_beside_what_is_read_are_nothing(tmp_path: Path, name: str, gone: str, says: str) -> None:
    """As in the folders of the hub's own GPT-2s."""
    folder = demo(tmp_path)
    (folder / "model.safetensors").rename(folder / name)
    for other in ("tf_model.h5", "flax_model.msgpack", "rust_model.ot"):
        (folder / other).write_bytes(b"other")
    if gone:
        (folder / gone).unlink()
    assert says in problem(folder)


def test_a_model_one_folder_deeper_is_named(tmp_path: Path) -> None:
    folder = demo(tmp_path)
    for step in (500, 1500, 1000):
        shutil.copytree(folder, tmp_path / "out" / f"checkpoint-{step}")
    assert problem(tmp_path / "out") == "config.json is missing; look one folder deeper: checkpoint-1500"
    shutil.copy(folder / "config.json", tmp_path / "out")
    assert problem(tmp_path / "out").endswith("is missing; look one folder deeper: checkpoint-1500")


def test_what_a_configuration_lacks_or_has_is_named(tmp_path: Path) -> None:
    folder = demo(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    assert problem(folder).startswith("config.json has quantization_config (bitsandbytes): quantised weights are not")
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))
    assert problem(folder) == 'config.json has no model_type; if it is a GPT-2, add "model_type": "gpt2"'


def test_one_list_has_every_file_of_a_model(tmp_path: Path) -> None:
    folder = demo(tmp_path)
    (folder / "model.safetensors").unlink()
    KINDS["shards"](folder)
    files = model_files(folder)
    assert {file.name for file in files.all} == {file.name for file in folder.iterdir()}
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2 and files.weights == tuple(shards)
    found = Catalogue(tmp_path, tmp_path / ".hub").find("own")
    assert found.file_bytes == sum(file.stat().st_size for file in shards)


def test_a_changed_shard_is_another_model(tmp_path: Path) -> None:
    """What was built of one is not used for the other."""
    KINDS["shards"](tmp_path)
    digests = []
    for _ in range(2):
        made = load_engine(
            tmp_path, read_architecture(tmp_path), "onnx", "fp32", 1, 1, tmp_path / "cache", 1 << 30, lambda *_: None
        )
        digests.append((made.digest, made.engine.prefill(0, IDS, 0, [3])[0].tolist()))
        made.engine.close()
        shard = max(tmp_path.glob("model-*.safetensors"))
        save_file({n: t * 2 for n, t in load_file(shard).items()}, shard)
    assert digests[0][0] != digests[1][0] and digests[0][1] != digests[1][1]


@pytest.mark.parametrize(("name", "precision"), [("h.1.mlp.c_fc.weight", "int4"), ("ln_f.bias", "int8")])
def test_weights_of_a_training_that_diverged_are_refused(tmp_path: Path, name: str, precision: str) -> None:
    """At 4 bits they became zeros, at 8 any number, without a word."""
    folder = demo(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights[name][-1:] = np.nan
    save_file(weights, folder / "model.safetensors")
    arch = read_architecture(folder)
    with pytest.raises(BadModel, match=rf"{name} is not all numbers \(NaN or infinite\), as after a training"):
        load_engine(folder, arch, "native", precision, 1, 1, tmp_path / "cache", 1 << 30, lambda *_: None)
