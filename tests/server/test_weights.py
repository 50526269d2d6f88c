"""Models on disk: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from protocol.errors import BadModel, UnknownModel
from server.catalogue import files
from server.catalogue.architecture import PUBLISHED, read_architecture
from server.catalogue.catalogue import DEMO_FOLDER, HELD_OUT_FILE, Catalogue
from server.catalogue.engines import BLOCK, ENGINES, choose_engine
from server.catalogue.notes import digest, known_digest
from server.checkpoint.tensors import Weights
from server.convert.quantise import Blocks, block_sums, quantise
from server.engines.load import load_engine
from tests.dequantise import dequantise

ARCH = read_architecture(DEMO_FOLDER)


def copy_demo(folder: Path, **config: object) -> Path:
    """The embedded model with some of its config.json changed."""
    shutil.copytree(DEMO_FOLDER, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


def test_the_embedded_model_is_what_it_says() -> None:
    assert (ARCH.context, ARCH.vocabulary, ARCH.ends, ARCH.start) == (1024, 4096, (0,), 0)
    assert 5e6 < ARCH.parameters < 7e6
    assert sum(int(np.prod(s.shape)) for s in load_file(DEMO_FOLDER / "model.safetensors").values()) == ARCH.parameters
    assert (DEMO_FOLDER / "model.safetensors").stat().st_size < 15e6


def test_the_text_to_measure_with_comes_with_the_embedded_model() -> None:
    """Measurements that are kept were made on this text: another one would need another BUILD_FORMAT."""
    text = HELD_OUT_FILE.read_text(encoding="utf-8")
    assert text.startswith("ACT 1\nSCENE 1\n[On a ship at sea") and len(text) == 16_001
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "e30ec7c8910d825d0139c7602a16755dda45cb24ce1466cc171922effd3f527d"


def test_no_program_is_started_to_get_a_text() -> None:
    """Installing packages is for scripts and for who asks for `--build-kernels`: the server does not require pip."""
    needs = (DEMO_FOLDER.parent.parent / "requirements-server.txt").read_text()
    assert not re.search("^(setuptools|pip|wheel)\\b", needs, re.MULTILINE)
    sources = set(DEMO_FOLDER.parent.rglob("*.py")) - {DEMO_FOLDER.parent / "build.py"}
    assert not [f for f in sources if "-m pip" in (text := f.read_text()) or '"pip"' in text]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "llama"}, "architecture is 'llama'"), ({"activation_function": "relu6"}, "relu6"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"), ({"n_head": 7}, "7 heads"),
        ({"n_layer": "many"}, "n_layer"), ({"n_embd": -1}, "n_embd"), ({"n_positions": 1 << 40}, "n_positions"),
        ({"n_head": True}, "n_head"), ({"eos_token_id": 1.5}, "eos_token_id"),
        ({"eos_token_id": [True]}, "eos_token_id"), ({"bos_token_id": [0]}, "bos_token_id"),
        ({"layer_norm_epsilon": "small"}, "epsilon"),
    ],
)  # fmt: skip
def test_another_architecture_is_refused_by_name(tmp_path: Path, config: dict[str, object], says: str) -> None:
    copy_demo(tmp_path / "odd", **config)
    catalogue = Catalogue(tmp_path, tmp_path / ".hub")
    with pytest.raises(BadModel, match=says):
        catalogue.find("odd")
    assert says in next(m.problem for m in catalogue.models() if m.name == "odd")


def test_bad_neighbours_harm_nobody(tmp_path: Path) -> None:
    (copy_demo(tmp_path / "deep") / "config.json").write_text("[" * 200_000)
    (copy_demo(tmp_path / "huge") / "config.json").write_bytes(bytes(2 << 20))
    (tmp_path / "a file").touch()
    if hasattr(os, "mkfifo"):
        (copy_demo(tmp_path / "pipe") / "config.json").unlink()
        os.mkfifo(tmp_path / "pipe" / "config.json")
    if sys.platform == "linux":
        os.mkdir(bytes(tmp_path) + b"/\xff\xfe")  # noqa: PTH102 - a name that is no text
    found = {m.name: m.problem for m in Catalogue(tmp_path, tmp_path / ".hub").models()}
    assert all(found.pop(name) == "" for name in ("demo", *PUBLISHED))
    assert set(found) == {"deep", "huge"} | ({"pipe"} if hasattr(os, "mkfifo") else set())
    assert all(found.values())
    assert Catalogue(tmp_path / "nowhere", tmp_path / ".hub").find("demo").architecture
    for name in found:
        with pytest.raises(BadModel, match=r"config\.json"):
            Catalogue(tmp_path, tmp_path / ".hub").find(name)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    (copy_demo(tmp_path / "part") / missing).unlink()
    with pytest.raises(BadModel, match=missing):
        Catalogue(tmp_path, tmp_path / ".hub").find("part")


def test_names_are_looked_up_never_paths(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    copy_demo(tmp_path / "outside")
    for name in ("../outside", str(tmp_path / "outside"), "..", ".", "models", "nonsense"):
        with pytest.raises(UnknownModel, match="demo"):
            Catalogue(tmp_path / "models", tmp_path / ".hub").find(name)


def test_what_is_said_of_models_does_not_tell_where_they_are(tmp_path: Path) -> None:
    """Clients are sent it: a name that nobody has, a file that cannot be read, a base that is not there."""
    (tmp_path / "odd" / "config.json").mkdir(parents=True)
    (copy_demo(tmp_path / "pointer") / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    for folder, base in (("lost", "/home/a/base"), ("unknown", "basis"), ("hub", "some/base")):
        (tmp_path / folder).mkdir()
        adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"], "base_model_name_or_path": base}
        (tmp_path / folder / "adapter_config.json").write_text(json.dumps(adapter))
        (tmp_path / folder / "adapter_model.safetensors").write_bytes(bytes(8))
    catalogue = Catalogue(tmp_path, tmp_path / ".hub")
    with pytest.raises(UnknownModel) as caught:
        catalogue.find("nonsense")
    said = [str(caught.value), *(model.problem for model in catalogue.models() if model.problem)]
    assert len(said) == 6 and not [text for text in said if str(tmp_path) in text], said
    assert files.without_folder(FileNotFoundError(2, "No such file or directory", f"{tmp_path}/x")) == (
        "x: No such file or directory"
    )


def test_engines_and_precisions_are_named_when_asked_for_wrongly() -> None:
    assert choose_engine(None, None) == ("native", "int8")
    with pytest.raises(BadModel, match="onnx"):
        choose_engine("cuda", None)
    with pytest.raises(BadModel, match="int8, int4, fp32"):
        choose_engine("onnx", "int2")


def test_a_tensor_that_is_missing_or_misshapen_is_named(tmp_path: Path) -> None:
    tensors = load_file(DEMO_FOLDER / "model.safetensors")
    file = tmp_path / "model.safetensors"
    save_file({k: v for k, v in tensors.items() if k != "h.3.ln_1.bias"}, file)
    with pytest.raises(BadModel, match=r"no tensor h\.3\.ln_1\.bias"):
        Weights(tmp_path, ARCH)
    save_file(tensors | {"wpe.weight": tensors["wpe.weight"][:512].copy()}, file)
    with pytest.raises(BadModel, match=r"wpe\.weight has shape \[512, 256\].*\[1024, 256\]"):
        Weights(tmp_path, ARCH)
    file.write_bytes(b"not safetensors at all")
    with pytest.raises(BadModel, match="cannot be read"):
        Weights(tmp_path, ARCH)


def test_prefixed_and_half_precision_tensors_are_read(tmp_path: Path) -> None:
    tensors = load_file(DEMO_FOLDER / "model.safetensors")
    plain = Weights(DEMO_FOLDER, ARCH)
    for dtype in (np.float32, ml_dtypes.bfloat16):
        file = tmp_path / "model.safetensors"
        save_file(
            {f"transformer.{k}": v.astype(dtype) for k, v in tensors.items()}
            | {"lm_head.weight": tensors["wte.weight"].astype(dtype)},
            file,
        )
        weights = Weights(tmp_path, ARCH)
        assert "lm_head.weight" not in weights, "a tied head is no tensor of its own"
        assert weights["wte.weight"].dtype == np.float32
        np.testing.assert_allclose(weights["wte.weight"], plain["wte.weight"], rtol=2**-8)


def test_an_untied_head_is_used(tmp_path: Path, cache: Path) -> None:
    """The cache is everybody's, but for int4: `tied` would take demo's, calibrated, where that was built before."""
    tied, folder = copy_demo(tmp_path / "tied"), copy_demo(tmp_path / "untied")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": np.roll(tensors["wte.weight"], 1, axis=0).copy()}, folder / "model.safetensors"
    )
    for name, precision in ((name, precision) for name, traits in ENGINES.items() for precision in traits.precisions):
        built = tmp_path / "cache" if precision == "int4" else cache
        logits = []
        for place in (tied, folder):
            engine = load_engine(place, ARCH, name, precision, 1, 1, built, 1 << 30, lambda *_: None).engine
            logits.append(engine.prefill(0, [5, 6, 7], 0, [2])[0])
            engine.close()
        np.testing.assert_allclose(logits[1], np.roll(logits[0], 1), atol=0.1 if precision == "bf16" else 1e-3)


def test_the_digest_is_the_files_sha256() -> None:
    import hashlib

    file, seen = DEMO_FOLDER / "model.safetensors", []
    assert digest(file, lambda done, total: seen.append((done, total))) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert seen[-1] == (file.stat().st_size, file.stat().st_size)


matrices = arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 100)), elements=st.floats(-1000, 1000, width=32)
)


@given(matrices)
def test_int8_blocks_lose_at_most_half_a_step(matrix: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    blocks = quantise(matrix, 8)
    assert blocks.values.shape == (len(matrix), -(-matrix.shape[1] // BLOCK), BLOCK)
    steps = np.repeat(blocks.scales, BLOCK, axis=1)[:, : matrix.shape[1]]
    assert (np.abs(dequantise(blocks) - matrix) <= 0.501 * steps + 1e-30).all()


@given(matrices)
def test_int4_blocks_are_never_worse_than_plain_rounding(
    matrix: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> None:
    blocks = quantise(matrix, 4)
    assert blocks.values.shape == (len(matrix), -(-matrix.shape[1] // BLOCK), BLOCK // 2)
    padded = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % BLOCK))).reshape(-1, BLOCK).astype(np.float64)
    steps = np.abs(padded).max(axis=1, keepdims=True) / 7
    plain = np.rint(np.divide(padded, steps, out=np.zeros_like(padded), where=steps > 1e-37)) * steps
    ours = np.pad(dequantise(blocks), ((0, 0), (0, -matrix.shape[1] % BLOCK))).reshape(-1, BLOCK)
    lost, lost_plainly = (((m - padded) ** 2).sum(axis=1) for m in (ours, plain))
    rounding = 1e-5 * (padded**2).sum(axis=1) + 1e-30
    assert (lost <= lost_plainly + rounding).all()


def relative_error(matrix: NDArray[np.float32], blocks: Blocks) -> float:
    """Root mean square of what was lost over that of the matrix."""
    return float(np.linalg.norm(dequantise(blocks) - matrix) / np.linalg.norm(matrix))


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (8, "3f7ef4468b8e7cfafbcfcb6f7e07a8346489ff32e39a541710307b321bafd48a"),
        (4, "7c9ac63f2479125f05405278d7b2c0e0d29c6f93c5c8a2c0ad109f1cf48dbe8b"),
    ],
)
def test_blocks_are_the_same_bytes_on_every_processor(bits: int, expected: str) -> None:
    """NumPy's own sums depend on its version and on the processor: scales are made of sums in one order."""
    matrix = np.random.default_rng(1).integers(-(1 << 20), 1 << 20, (64, 96)).astype(np.float32) / np.float32(3 << 20)
    blocks = quantise(matrix, bits)
    digest = hashlib.sha256(blocks.values.tobytes() + blocks.scales.astype("<f4").tobytes()).hexdigest()
    assert digest == expected


def test_the_sums_of_a_block_are_a_tree() -> None:
    numbers = np.array([1e8, 1.0, -1e8, 1.0] * 8, np.float32)
    tree = list(numbers)
    while len(tree) > 1:
        tree = [a + b for a, b in zip(tree[: len(tree) // 2], tree[len(tree) // 2 :], strict=True)]
    assert block_sums(numbers.reshape(1, 1, 32)).tolist() == [[float(tree[0])]]


def test_int4_scales_are_better_on_real_weights() -> None:
    matrix = Weights(DEMO_FOLDER, ARCH)["h.0.mlp.c_fc.weight"].T
    blocks = matrix.reshape(len(matrix), -1, BLOCK)
    steps = np.abs(blocks).max(axis=2, keepdims=True) / 7
    plain = np.linalg.norm(np.rint(blocks / steps) * steps - blocks) / np.linalg.norm(blocks)
    assert relative_error(matrix, quantise(matrix, 4)) < 0.92 * plain


def test_what_int8_loses_on_the_embedded_model_is_small() -> None:
    matrix = Weights(DEMO_FOLDER, ARCH)["h.0.mlp.c_fc.weight"].T
    assert 0 < relative_error(matrix, quantise(matrix, 8)) < 0.01


def test_a_file_that_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    file, memory = tmp_path / "weights", tmp_path / "memory"
    file.write_bytes(b"one")
    reads: list[int] = []

    def ask() -> str:
        return known_digest(file, memory, lambda done, _: reads.append(done))

    first = ask()
    assert ask() == first and len(reads) == 2, "it is too young to be trusted"
    old = time.time() - 60
    os.utime(file, (old, old))
    assert [ask(), ask()] == [first, first] and len(reads) == 3
    file.write_bytes(b"two")
    os.utime(file, (old + 1, old + 1))
    assert ask() != first and len(reads) == 4
    for note in memory.iterdir():
        note.write_text("nonsense")
    assert ask() == digest(file, lambda *_: None) and len(reads) == 5
    assert [p.suffix for p in memory.iterdir()] == [".digest"]
