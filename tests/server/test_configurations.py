"""Configurations as people have them: what transformers computes of them, or a sentence that says why not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import GPT2Config, GPT2LMHeadModel

from protocol.errors import BadModel
from server.catalogue.architecture import Architecture, read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.catalogue.engines import TRAITS
from server.engines.load import load_engine

SMALL = {
    "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
IDS = np.random.default_rng(2).integers(0, 64, 20).tolist()
FLAGS = {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}
KINDS: dict[str, dict[str, object]] = {
    "gelu": {"activation_function": "gelu"},
    "gelu_fast": {"activation_function": "gelu_fast"},
    "relu": {"activation_function": "relu", "n_inner": 50},
    "swish": {"activation_function": "swish"},
    "quick_gelu": {"activation_function": "quick_gelu"},
    "tanh": {"activation_function": "tanh", "n_inner": 128},
    "mish": {"activation_function": "mish"},
    "scores that are not scaled": {"scale_attn_weights": False},
    "scores scaled by layer": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "scores scaled by layer alone": FLAGS | {"layer_norm_epsilon": 0.01},
    "results without names": {"return_dict": False, "output_hidden_states": True},
}
Floats = NDArray[np.float32]


def save(folder: Path, **config: object) -> GPT2LMHeadModel:
    """Make a model that depends on each of its settings, and return it as transformers computes it."""
    torch.manual_seed(3)
    make: Any = GPT2LMHeadModel
    configure: Any = GPT2Config
    judge: Any = make(configure(**{"initializer_range": 0.25} | SMALL | config))
    for name, parameter in judge.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    judge.save_pretrained(folder)
    loaded: GPT2LMHeadModel = make.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    return loaded


def expected(judge: GPT2LMHeadModel) -> Floats:
    with torch.inference_mode():
        return np.asarray(judge(torch.tensor([IDS]), return_dict=True).logits[0].numpy())


def computed(folder: Path, engine: str, precision: str, arch: Architecture | None = None) -> Floats:
    """Return the logits of a prompt, of a chunk after it, and of two steps."""
    arch = arch or read_architecture(folder)
    cache = folder.parent / "cache"
    made = load_engine(folder, arch, engine, precision, 1, 1, cache, 1 << 30, lambda *_: None)
    parts = [made.engine.prefill(0, IDS[:11], 0, range(11)), made.engine.prefill(0, IDS[11:18], 11, range(7))]
    parts += [made.engine.decode([IDS[i]], [i]).copy() for i in (18, 19)]
    made.engine.close()
    return np.concatenate(parts)


def far(got: Floats, want: Floats) -> float:
    """Largest difference of two arrays of logits, relative to the largest logit."""
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("kind", KINDS)
def test_full_precision_is_that_of_transformers(tmp_path: Path, kind: str) -> None:
    want = expected(save(tmp_path / "own", **KINDS[kind]))
    assert np.ptp(want) > 1
    for engine in ("native", "onnx", "torch"):
        assert far(computed(tmp_path / "own", engine, "fp32"), want) < 5e-6, engine


def test_each_setting_changes_the_logits(tmp_path: Path) -> None:
    """Else the test before this one would pass whatever an engine made of it."""
    made = {kind: expected(save(tmp_path / kind, **KINDS[kind])) for kind in KINDS}
    plain = expected(save(tmp_path / "plain"))
    same = {kind for kind in KINDS if far(made[kind], plain) < 1e-5}
    assert same == {"gelu_fast", "results without names"}


@pytest.mark.parametrize("kind", ["mish", "scores scaled by layer alone"])
def test_an_export_is_that_of_transformers(tmp_path: Path, kind: str) -> None:
    """transformers 4.57's fused attention, which is its default, would always scale the scores in the same way."""
    want = expected(save(tmp_path / "own", **KINDS[kind]))
    assert far(computed(tmp_path / "own", "optimum", "fp32"), want) < 5e-6


@pytest.mark.parametrize(
    ("engine", "precision", "bound"),
    [("native", "int8", 2e-3), ("native", "int4", 0.2), ("onnx", "int8", 2e-3), ("onnx", "int4", 0.2),
     ("torch", "int8", 1e-2), ("torch", "bf16", 1e-3)],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["relu", "tanh", "mish", "scores scaled by layer alone"])
def test_other_precisions_stay_close(tmp_path: Path, engine: str, precision: str, bound: float, kind: str) -> None:
    want = torch.log_softmax(torch.tensor(expected(save(tmp_path / "own", **KINDS[kind]))), -1)
    got = torch.log_softmax(torch.tensor(computed(tmp_path / "own", engine, precision)), -1)
    divergence = float((want.exp() * (want - got)).sum(-1).mean())
    assert 0 < divergence < bound, "mean Kullback-Leibler divergence, nats"


@pytest.mark.parametrize(("width", "heads"), [(1, 1), (3, 3), (6, 2), (15, 3), (34, 2), (51, 3), (100, 1)])
def test_native_computes_any_width(tmp_path: Path, width: int, heads: int) -> None:
    want = expected(save(tmp_path / "own", n_embd=width, n_head=heads, n_inner=2 * width + 1))
    assert far(computed(tmp_path / "own", "native", "fp32"), want) < 5e-6
    for precision in ("int8", "int4"):
        assert np.isfinite(computed(tmp_path / "own", "native", precision)).all()


@pytest.mark.parametrize(("width", "heads"), [(8, 1), (16, 2), (24, 1), (120, 3)])
def test_onnx_computes_heads_of_multiples_of_8(tmp_path: Path, width: int, heads: int) -> None:
    want = expected(save(tmp_path / "own", n_embd=width, n_head=heads, n_inner=2 * width + 1))
    assert far(computed(tmp_path / "own", "onnx", "fp32"), want) < 5e-6


def test_heads_that_onnx_runtime_cannot_compute_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = expected(save(tmp_path / "own", n_embd=40))
    says = "its attention heads are 20 wide, and engine onnx computes multiples of 8; use native"
    with pytest.raises(BadModel, match=f"{says}$"):
        computed(tmp_path / "own", "onnx", "int8")
    for engine in ("native", "torch"):
        assert far(computed(tmp_path / "own", engine, "fp32"), want) < 5e-6
    monkeypatch.setitem(TRAITS, "native", replace(TRAITS["native"], problem=lambda: "the kernels are not built"))
    with pytest.raises(BadModel, match=rf"{says} \(the kernels are not built\)$"):
        computed(tmp_path / "own", "onnx", "int8")


@pytest.mark.parametrize("engine", ["native", "onnx"])
def test_what_was_built_for_one_activation_is_not_opened_for_another(tmp_path: Path, engine: str) -> None:
    """The weights are the same, and so is their digest; config.json alone differs."""
    save(tmp_path / "own", activation_function="relu")
    arch = read_architecture(tmp_path / "own")
    relu = computed(tmp_path / "own", engine, "fp32", arch)
    assert far(computed(tmp_path / "own", engine, "fp32", replace(arch, activation="tanh")), relu) > 0.01
    assert far(computed(tmp_path / "own", engine, "fp32", replace(arch, scale_attn_weights=False)), relu) > 0.01
    assert far(computed(tmp_path / "own", engine, "fp32", arch), relu) == 0


def configured(folder: Path, **config: object) -> Architecture:
    content = json.loads((DEMO_FOLDER / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | config))
    return read_architecture(folder)


@pytest.mark.parametrize(
    "config",
    [
        {}, SMALL,
        {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "max_position_embeddings": 77},
        {"n_embd": 64, "hidden_size": 48, "n_layer": 1, "num_hidden_layers": 3, "n_head": 2, "num_attention_heads": 6},
        {"n_positions": 64, "max_position_embeddings": 77, "n_ctx": 5},
        {"n_inner": None}, {"n_inner": 7}, {"intermediate_size": 99, "hidden_act": "relu", "layer_norm_eps": 0.5},
        {"layer_norm_epsilon": 0.0}, {"layer_norm_epsilon": 1.5}, {"scale_attn_weights": False},
    ],
)  # fmt: skip
def test_sizes_and_settings_are_read_as_transformers_reads_them(tmp_path: Path, config: dict[str, object]) -> None:
    """Defaults, and other names of a size: where both are there, transformers takes the other one."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"} | config))
    judge, arch = GPT2Config.from_pretrained(tmp_path), read_architecture(tmp_path)
    assert (arch.width, arch.layers, arch.heads) == (judge.n_embd, judge.n_layer, judge.n_head)
    assert (arch.context, arch.vocabulary) == (judge.n_positions, judge.vocab_size)
    assert arch.inner == (4 * judge.n_embd if judge.n_inner is None else judge.n_inner)
    assert (arch.activation, arch.epsilon) == (judge.activation_function, judge.layer_norm_epsilon)
    assert arch.scale_attn_weights == judge.scale_attn_weights
    assert arch.scale_attn_by_inverse_layer_idx == judge.scale_attn_by_inverse_layer_idx


@pytest.mark.parametrize("value", [0, 1, True, None, "1e-05", -1e-5, math.inf, math.nan])
def test_an_epsilon_is_a_float(tmp_path: Path, value: object) -> None:
    with pytest.raises(BadModel, match=r"layer_norm_epsilon=.*; expected a small number, such as 1e-05"):
        configured(tmp_path, layer_norm_epsilon=value)


@pytest.mark.parametrize(
    "name",
    ["gelu_10", "relu2", "relu6", "linear", "sigmoid", "leaky_relu", "laplace", "prelu", "GELU", "", None, ["gelu"]],
)
def test_an_activation_that_is_not_computed_is_named(tmp_path: Path, name: object) -> None:
    with pytest.raises(BadModel) as caught:
        configured(tmp_path, activation_function=name)
    assert str(caught.value).startswith(f"config.json has activation_function={name!r}, which no engine computes; what")
    assert "quick_gelu" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("pruned_heads", {"0": [1]}, "heads that were cut out"),
        ("add_cross_attention", True, "what an encoder made"), ("is_encoder_decoder", True, "what an encoder made"),
        ("per_layer_config", {"0": {"n_inner": 8}}, "layers that differ"),
        ("sliding_window", 128, "a part of what stands before"), ("attention_chunk_size", 8, "a part of what stands"),
        ("layer_types", ["sliding_attention"] * 6, "a part of what stands"), ("is_causal", False, "what follows"),
        ("num_kv_shared_layers", 2, "share their keys"), ("kv_sharing_modes", ["own", "reuse"], "share their keys"),
        ("text_config", {"n_layer": 2}, "a config.json of its own"), ("decoder", {}, "a config.json of its own"),
        ("attribute_map", {"n_ctx": "n_positions"}, "use those of GPT-2"),
        ("configuration_files", ["config.4.0.0.json"], "put the right one into config.json"),
        ("transformers_weights", "other.safetensors", "call them model.safetensors"),
        ("scale_attn_weights", "yes", "expected true or false"), ("scale_attn_weights", 0, "expected true or false"),
        ("scale_attn_by_inverse_layer_idx", None, "expected true or false"),
        ("tie_word_embeddings", None, "expected true or false"),
        ("num_attention_heads", 7, "7 heads do not divide"), ("hidden_size", None, "hidden_size=None; expected a size"),
        ("n_inner", 0, "expected a size"), ("n_embd", 256.0, "expected a size"),
    ],
)  # fmt: skip
def test_what_would_be_computed_otherwise_is_refused_by_name(
    tmp_path: Path, key: str, value: object, says: str
) -> None:
    with pytest.raises(BadModel, match=r"config\.json has ") as caught:
        configured(tmp_path, **{key: value})
    assert says in str(caught.value) and len(str(caught.value)) < 200


def test_what_changes_nothing_is_no_reason_to_refuse(tmp_path: Path) -> None:
    """Empty settings, what matters in training or for other heads alone, and keys that nobody knows."""
    nothing: dict[str, object] = {
        "pruned_heads": {},
        "sliding_window": None,
        "is_causal": True,
        "add_cross_attention": False,
    }
    nothing |= {"per_layer_config": None, "kv_sharing_modes": None, "layer_types": None, "text_config": None}
    others: dict[str, object] = {
        "n_ctx": 7,
        "attn_pdrop": 0.5,
        "summary_type": "mean",
        "gradient_checkpointing": True,
        "use_cache": False,
    }
    others |= {
        "reorder_and_upcast_attn": True,
        "auto_map": {"AutoConfig": "other.Config"},
        "head_dim": 5,
        "alibi": True,
    }
    assert configured(tmp_path, **nothing, **others) == configured(tmp_path)
