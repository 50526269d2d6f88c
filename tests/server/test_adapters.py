"""LoRA adapters: the logits are peft's (tests/data/adapters.json), or a sentence says why not and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from protocol.errors import BadModel
from scripts.checkpoints.adapters import ADAPTERS, BASE, EXPECTED, IDS, PREFIX, VOCABULARY, Adapter, base, values, write
from scripts.checkpoints.small import CONFIG
from server.catalogue.adapters import architecture_of, read_adapter, tokenizer_folder
from server.catalogue.catalogue import DEMO_FOLDER, Catalogue, Model
from server.catalogue.files import model_files
from server.catalogue.records import Records
from server.checkpoint.inspection import inspect
from server.checkpoint.lora import open_weights
from server.engines.load import Made, load_engine
from server.launch.spec import files_of
from tests.server.test_checkpoints import KINDS, POINTER

PLAIN = ADAPTERS["c_attn"]
TOKENIZER = "tokenizer.json"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with the bases: one whose head is its table, and one with a head of its own."""
    folder = tmp_path_factory.mktemp("models")
    for name in (BASE, "untied"):
        base(folder / name, tied=name == BASE)
        shutil.copy(DEMO_FOLDER / TOKENIZER, folder / name)
    return folder


@pytest.fixture
def models(bases: Path, tmp_path: Path) -> Path:
    """A folder of models of the test's own."""
    return Path(shutil.copytree(bases, tmp_path / "models"))


def made(folder: Path, of: Path, cache: Path, engine: str = "native") -> Made:
    arch = architecture_of(folder, of)
    return load_engine(folder, arch, engine, "fp32", 1, 1, cache, 1 << 30, lambda *_: None, base=of)


def logits(loaded: Made) -> NDArray[np.float32]:
    found: NDArray[np.float32] = loaded.engine.prefill(0, IDS, 0, [len(IDS) - 1])[0].copy()
    loaded.engine.close()
    return found


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_logits_are_those_of_peft(bases: Path, tmp_path: Path, kind: str) -> None:
    """That is PeftModel, before merge_and_unload, which would change the head with the table that it is."""
    adapter = ADAPTERS[kind]
    write(tmp_path / "adapter", adapter)
    loaded = made(tmp_path / "adapter", bases / adapter.base, tmp_path / "cache")
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))[kind]
    assert len(expected) == adapter.vocabulary and np.ptp(expected) > 2
    np.testing.assert_allclose(logits(loaded), expected, atol=3e-5, rtol=2e-5)
    # What is estimated before the load is what the load finds.
    assert architecture_of(tmp_path / "adapter", bases / adapter.base).tied != loaded.separate_head


@pytest.mark.parametrize("kind", ["every matrix", "the table", "a larger vocabulary"])
@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_every_engine_has_the_merged_tensors(bases: Path, tmp_path: Path, engine: str, kind: str) -> None:
    write(tmp_path / "adapter", ADAPTERS[kind])
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))[kind]
    found = logits(made(tmp_path / "adapter", bases / BASE, tmp_path / "cache", engine))
    np.testing.assert_allclose(found, expected, atol=3e-5, rtol=2e-5)


def test_a_delta_is_transposed_and_scaled(bases: Path, tmp_path: Path) -> None:
    """GPT-2's matrices are [inputs, outputs]."""
    write(tmp_path / "adapter", PLAIN)
    weights = open_weights(tmp_path / "adapter", architecture_of(bases / BASE, None), bases / BASE)
    before = open_weights(bases / BASE, architecture_of(bases / BASE, None), None)
    has = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    a, b = (has[f"{PREFIX}transformer.h.1.attn.c_attn.lora_{which}.weight"] for which in "AB")
    name = "h.1.attn.c_attn.weight"
    np.testing.assert_allclose(weights[name], before[name] + 5 / 2 * (b @ a).T, atol=1e-6)
    np.testing.assert_array_equal(weights["h.1.mlp.c_fc.weight"], before["h.1.mlp.c_fc.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_adapter_model_bin_and_every_type_are_read(bases: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    write(tmp_path / "adapter", PLAIN)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    has = {name: torch.from_numpy(tensor).to(dtype) for name, tensor in load_file(file).items()}
    arch = architecture_of(bases / BASE, None)
    save_file({name: tensor.float().numpy() for name, tensor in has.items()}, file)
    expected = dict(open_weights(tmp_path / "adapter", arch, bases / BASE))
    file.unlink()
    torch.save(has, file.with_suffix(".bin"))
    found = dict(open_weights(tmp_path / "adapter", arch, bases / BASE))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)


@pytest.mark.parametrize("kind", ["bf16", "bin of torch 1.5", "shards"])
def test_a_base_of_any_kind_is_merged_in_float32(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path / "of")
    write(tmp_path / "adapter", PLAIN)
    shapes = {"A": (2, CONFIG["n_embd"]), "B": (3 * CONFIG["n_embd"], 2)}
    names = {f"{PREFIX}{module}.lora_{which}.weight": which for module in PLAIN.modules for which in "AB"}
    fitting = {name: values(name, *shapes[which]) for name, which in names.items()}
    save_file(fitting, tmp_path / "adapter" / "adapter_model.safetensors")
    arch = architecture_of(tmp_path / "of", None)
    weights = open_weights(tmp_path / "adapter", arch, tmp_path / "of")
    before = open_weights(tmp_path / "of", arch, None)
    has = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    a, b = (has[f"{PREFIX}transformer.h.0.attn.c_attn.lora_{which}.weight"] for which in "AB")
    name = "h.0.attn.c_attn.weight"
    np.testing.assert_allclose(weights[name], before[name] + 5 / 2 * (b @ a).T, atol=1e-6)


def test_an_end_of_text_that_the_larger_vocabulary_has_is_one(models: Path) -> None:
    """Some name the first number that is no token yet."""
    config = json.loads((models / BASE / "config.json").read_text())
    (models / BASE / "config.json").write_text(json.dumps(config | {"eos_token_id": VOCABULARY}))
    write(models / "adapter", ADAPTERS["a larger vocabulary"])
    assert architecture_of(models / BASE, None).ends == ()
    assert architecture_of(models / "adapter", models / BASE).ends == (VOCABULARY,)


def test_masks_of_old_versions_are_passed_over(bases: Path, tmp_path: Path) -> None:
    """With bias="all", peft stored whatever ends in .bias."""
    adapter = ADAPTERS["all biases"]
    write(tmp_path / "adapter", adapter)
    change_tensors(
        tmp_path / "adapter",
        lambda has: has | {f"{PREFIX}transformer.h.0.attn.bias": np.ones((1, 1, 32, 32), np.uint8)},
    )
    assert open_weights(tmp_path / "adapter", architecture_of(bases / BASE, None), bases / BASE)


Has = dict[str, NDArray[np.generic]]


def change_tensors(folder: Path, change: Callable[[Has], Has]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


QKV = f"{PREFIX}transformer.h.0.attn.c_attn"


def without(name: str) -> Callable[[Has], Has]:
    return lambda has: {n: tensor for n, tensor in has.items() if n != name}


def more(name: str, *shape: int) -> Callable[[Has], Has]:
    return lambda has: has | {name: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without(f"{QKV}.lora_B.weight"), r"has no transformer\.h\.0\.attn\.c_attn\.lora_B\.weight, which adapter_con"),
        (more(f"{QKV}.lora_A.weight", 4, 16), r"lora_A.weight has shape \[4, 16\], its rank of 2 asks for \[2, 16\]"),
        (more(f"{QKV}.lora_B.bias", 48), "has transformer.h.0.attn.c_attn.lora_B.bias, which adapter_config.json does"),
        (more(f"{PREFIX}transformer.h.0.mlp.c_fc.lora_A.weight", 2, 16), "c_fc.lora_A.weight, which adapter_config"),
        (more(f"{QKV}.bias", 48), "has transformer.h.0.attn.c_attn.bias, which adapter_config.json does not ask for"),
        (more(f"{QKV}.lora_magnitude_vector", 48), "lora_magnitude_vector, which adapter_config.json does not ask for"),
        (more(f"{PREFIX}h.0.ln_1.weight", 16), "names must begin with base_model.model.transformer. or"),
        (more(f"{QKV}.lora_A.default.weight", 2, 16), "lora_A.default.weight, which adapter_config.json does not"),
        (more(f"{PREFIX}transformer.wte.weight", 40, 16), "has a vocabulary of 40 tokens, and its base one of 48"),
        (lambda has: has | {f"{QKV}.lora_A.weight": np.zeros((2, 16), np.int8)}, "lora_A.weight as I8: quantised"),
    ],
)  # fmt: skip
def test_each_tensor_is_used_or_named(bases: Path, tmp_path: Path, change: Callable[[Has], Has], says: str) -> None:
    write(tmp_path / "adapter", PLAIN)
    change_tensors(tmp_path / "adapter", change)
    with pytest.raises(BadModel, match=says):
        open_weights(tmp_path / "adapter", architecture_of(tmp_path / "adapter", bases / BASE), bases / BASE)


def test_modules_to_save_must_be_there(bases: Path, tmp_path: Path) -> None:
    write(tmp_path / "adapter", PLAIN, {"modules_to_save": ["ln_f"]})
    with pytest.raises(BadModel, match=r"has no transformer\.ln_f\.weight, which modules_to_save asks for"):
        open_weights(tmp_path / "adapter", architecture_of(bases / BASE, None), bases / BASE)


def test_a_larger_table_alone_is_named(bases: Path, tmp_path: Path) -> None:
    write(tmp_path / "adapter", Adapter({"modules_to_save": ["wte"]}, whole=("transformer.wte.weight",), vocabulary=50))
    arch = architecture_of(tmp_path / "adapter", bases / BASE)
    with pytest.raises(BadModel, match="must have both the token table and the head of 50 tokens"):
        open_weights(tmp_path / "adapter", arch, bases / BASE)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'; only LORA is supported: merge it with peft"),
        ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS': it was not made to write text"),
        ({"use_dora": True}, "use_dora=True, which is not supported: merge it with peft"),
        *(
            ({"init_lora_weights": name}, f"init_lora_weights='{name}', which changes the base")
            for name in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga")
        ),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices=\[1\], which is not supported"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying=True, which is not supported"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"use_qalora": True}, "use_qalora"),
        ({"target_parameters": ["wte.weight"]}, "target_parameters"),
        ({"enable_lora": [True]}, "enable_lora"),
        ({"of_a_later_version": 3}, "of_a_later_version=3, which is not supported: merge it with peft"),
        ({"revision": "v2"}, "revision='v2', and of a base on the hub only main is taken"),
        ({"bias": "some"}, "bias='some'; expected none, all or lora_only"),
        ({"r": 0}, "r=0; expected a rank above 0"),
        ({"lora_alpha": None}, "lora_alpha=None; expected a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan; expected a number"),
        ({"use_rslora": "yes"}, "use_rslora='yes'; expected true or false"),
        ({"rank_pattern": {"c_attn": "8"}}, "rank_pattern='8'; expected a rank"),
        ({"rank_pattern": {"(a+)+$": 3}}, "a repeated group: write the names of the modules"),
        ({"alpha_pattern": {f".*{i}": 3 for i in range(40)}}, "more than 32 regular expressions in alpha_pattern"),
        ({"rank_pattern": {f"h{i}": 3 for i in range(300)}}, "expected a map of at most 256 modules"),
        ({"target_modules": ".*.*.*.*.*c_attn"}, "more than 4 repetitions"),
        ({"target_modules": "("}, "no regular expression"),
        ({"target_modules": 5}, "target_modules=5; expected names of modules"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path=None; expected the name of the model"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(tmp_path: Path, settings: dict[str, object], says: str) -> None:
    write(tmp_path, PLAIN, settings)
    with pytest.raises(BadModel, match=says):
        read_adapter(tmp_path)


def test_what_a_later_version_leaves_out_is_no_hindrance(tmp_path: Path) -> None:
    left_out: dict[str, object] = {"of_a_later_version": None, "another": False, "a_third": {}}
    write(tmp_path, PLAIN, {**left_out, "peft_version": "1.0", "auto_mapping": {"a": 1}})
    assert read_adapter(tmp_path).base == BASE


def problem(models: Path, name: str = "adapter", *, allow_hub: bool = False) -> str:
    """What `models()` says of a folder, which is what a load says."""
    catalogue = Catalogue(models, models.parent / "hub", allow_hub=allow_hub)
    found = next(m.problem for m in catalogue.models() if m.name == name)
    if found:
        with pytest.raises(BadModel) as told:
            catalogue.find(name)
        assert str(told.value) == f"{name}: {found}"
    return found


def find(models: Path, name: str = "adapter", *, allow_hub: bool = False) -> Model:
    return Catalogue(models, models.parent / "hub", allow_hub=allow_hub).find(name)


def test_the_catalogue_finds_an_adapter_and_its_base(models: Path) -> None:
    write(models / "adapter", ADAPTERS["a larger vocabulary, trained"])
    found = find(models)
    assert found.on_disk and found.base and found.base.folder == models / BASE and not problem(models)
    assert found.architecture and found.architecture.vocabulary == VOCABULARY + 2 and not found.architecture.tied
    sizes = [
        file.stat().st_size
        for file in (*models.glob("*/adapter_model.safetensors"), models / BASE / "model.safetensors")
    ]
    assert found.file_bytes == sum(sizes) and len(sizes) == 2


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2", "distilbert/distilgpt2"])
def test_a_published_base_is_found_by_both_its_names(models: Path, name: str) -> None:
    """It is downloaded when the adapter is loaded; a folder of that name comes first."""
    write(models / "adapter", PLAIN, {"base_model_name_or_path": name})
    found = find(models)
    assert found.base and found.base.name == name.rpartition("/")[2] and found.folder and not found.on_disk
    assert found.file_bytes > 300_000_000 and found.architecture == found.base.architecture
    (models / BASE).rename(models / found.base.name)
    assert find(models).base_folder == models / found.base.name


def test_a_base_of_the_hub_is_found_where_it_is_allowed(models: Path) -> None:
    write(models / "adapter", PLAIN, {"base_model_name_or_path": "somebody/gpt2-poems"})
    found = find(models, allow_hub=True)
    assert found.base and found.base.name == "somebody/gpt2-poems" and found.architecture is None and not found.on_disk
    assert problem(models) == (
        "adapter_config.json has base_model_name_or_path='somebody/gpt2-poems', which this server has not: put its "
        "folder into the folder of --models-dir and write the folder's name instead, or start the server with "
        "--allow-hub"
    )


@pytest.mark.parametrize(
    "path",
    [
        "/home/me/gpt2", "../base", "./base", "C:\\models\\base", "C:/models/base", "~/base", "a/b/base", "base/",
        "\\\\host\\base",
    ],
)  # fmt: skip
@pytest.mark.parametrize("allow_hub", [False, True])
def test_a_base_is_never_a_path(models: Path, path: str, allow_hub: bool) -> None:
    write(models / "adapter", PLAIN, {"base_model_name_or_path": path})
    assert problem(models, allow_hub=allow_hub).startswith(
        f"adapter_config.json has base_model_name_or_path={path!r}, a path, and bases are found by name: write one of "
        "demo, gpt2, "
    )


def test_a_base_that_is_not_there_is_named(models: Path) -> None:
    write(models / "adapter", PLAIN, {"base_model_name_or_path": "poems"})
    assert "base_model_name_or_path='poems', and there is no such model; there are: demo, gpt2," in problem(models)


def test_a_base_is_a_whole_model(models: Path) -> None:
    write(models / "adapter", PLAIN)
    write(models / "second", PLAIN, {"base_model_name_or_path": "adapter"})
    write(models / "itself", PLAIN, {"base_model_name_or_path": "itself"})
    assert problem(models, "second").startswith("its base adapter is an adapter itself: merge it into its base")
    assert problem(models, "itself").startswith("its base itself is an adapter itself")
    (models / BASE / TOKENIZER).unlink()
    assert problem(models).startswith(f"its base {BASE}: tokenizer.json ")


def test_a_folder_is_a_model_or_an_adapter(models: Path) -> None:
    write(models / "adapter", PLAIN)
    shutil.copy(models / BASE / "model.safetensors", models / "adapter")
    assert problem(models).startswith("the folder has both adapter_config.json and model.safetensors: leave ")


def test_an_adapter_that_is_not_whole_is_named(models: Path) -> None:
    write(models / "adapter", PLAIN)
    (models / "adapter" / "adapter_model.safetensors").write_bytes(POINTER)
    assert problem(models).startswith("adapter_model.safetensors is a Git LFS pointer: run git lfs pull in its folder")
    (models / "adapter" / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    assert problem(models).startswith("adapter_model.safetensors has a header of ")
    (models / "adapter" / "adapter_model.safetensors").unlink()
    assert problem(models).startswith("adapter_model.safetensors (or adapter_model.bin) is missing")
    write(models / "out" / "checkpoint-20", PLAIN)
    assert problem(models, "out") == "config.json is missing; look one folder deeper: checkpoint-20"


def test_the_tokenizer_is_the_adapters_own_or_its_bases(models: Path) -> None:
    """Its own is what AutoTokenizer reads of the adapter's folder, which tokenizer_config.json makes a tokenizer's."""
    write(models / "adapter", PLAIN)
    folder, of = models / "adapter", models / BASE
    assert tokenizer_folder(folder, of) == of
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert not problem(models) and tokenizer_folder(folder, of) == of, "which peft writes beside it, too"
    (folder / "tokenizer_config.json").write_text("{}")
    assert problem(models).startswith("tokenizer_config.json is here without its vocabulary: put all files of ")
    shutil.copy(DEMO_FOLDER / TOKENIZER, folder)
    assert not problem(models) and tokenizer_folder(folder, of) == folder
    assert {TOKENIZER, "tokenizer_config.json"} <= {file.name for file in model_files(folder).all}
    (folder / "tokenizer_config.json").unlink()
    assert problem(models).startswith("tokenizer.json is here without tokenizer_config.json: put all files of ")


def test_a_digest_is_of_both_and_of_the_settings(models: Path, tmp_path: Path) -> None:
    """What was built of one is not used for another."""
    write(models / "adapter", PLAIN)
    cache = tmp_path / "cache"
    first = made(models / "adapter", models / BASE, cache)
    expected = logits(first)
    seen = {first.digest}
    for change in (
        lambda: write(models / "adapter", PLAIN, {"lora_alpha": 7}),
        lambda: change_tensors(models / "adapter", lambda has: {name: 2 * tensor for name, tensor in has.items()}),
        lambda: shutil.copy(models / "untied" / "model.safetensors", models / BASE),
    ):
        change()
        again = made(models / "adapter", models / BASE, cache)
        assert again.digest not in seen
        seen.add(again.digest)
        assert not np.allclose(logits(again), expected)


def test_what_was_measured_is_of_both(models: Path, tmp_path: Path) -> None:
    write(models / "adapter", PLAIN)
    arch = architecture_of(models / "adapter", models / BASE)
    stamp = Records(tmp_path, models / "adapter", arch, models / BASE)._stamp
    (models / BASE / "model.safetensors").write_bytes(b"x")
    assert Records(tmp_path, models / "adapter", arch, models / BASE)._stamp != stamp


def test_a_node_gets_both_folders(models: Path) -> None:
    write(models / "adapter", PLAIN)
    found = files_of({"folder": str(models / "adapter"), "base_folder": str(models / BASE)})
    assert set(found) == {
        "adapter_config.json", "adapter_model.safetensors", "base/config.json", "base/model.safetensors",
        "base/tokenizer.json",
    }  # fmt: skip
    assert found["base/config.json"] == models / BASE / "config.json"
    assert set(files_of({"folder": str(models / "adapter"), "base_folder": ""})) == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_a_look_into_the_files_finds_what_a_load_would(models: Path) -> None:
    write(models / "adapter", PLAIN)
    assert "an adapter, which is added to its base in float32" in inspect(models / "adapter", models / BASE).notices
    change_tensors(models / "adapter", without(f"{QKV}.lora_A.weight"))
    assert "has no transformer.h.0.attn.c_attn.lora_A.weight" in inspect(models / "adapter", models / BASE).problem
