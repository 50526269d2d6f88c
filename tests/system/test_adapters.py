"""LoRA adapters, as a client sees them: beside their base, with one that is downloaded, and from the hub themselves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import GPT2LMHeadModel

from protocol import Client, messages as m
from protocol.errors import BadModel
from scripts.checkpoints.adapters import PEFT, PREFIX, values
from scripts.daemon import Daemon
from server.catalogue.catalogue import DEMO_FOLDER
from tests.hub import Hub

TEXT = "Shall I compare thee to a summer's day?"
NOTICE = "an adapter, which is added to its base in float32"


def adapter(folder: Path, base: str, more: dict[str, tuple[int, ...]] | None = None) -> None:
    """Write an adapter of the embedded model's shapes."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(PEFT | {"base_model_name_or_path": base}))
    shapes = dict(more or {})
    for layer in range(6):
        name = f"transformer.h.{layer}.attn.c_attn"
        shapes |= {f"{name}.lora_A.weight": (2, 256), f"{name}.lora_B.weight": (768, 2)}
    tensors = {PREFIX + name: values(name, *shape) / 3 for name, shape in shapes.items()}
    save_file(tensors, folder / "adapter_model.safetensors")


def load(client: Client, name: str) -> m.Loaded:
    return client.load(name, engine="native", precision="fp32")


def same(client: Client, folder: Path, scratch: Path) -> None:
    """Compare what is loaded with weights that are merged beforehand, in transformers."""
    scored = client.score(TEXT, bos="never")
    assert scored.logprobs[0] is None
    found = np.array(scored.logprobs[1:], float)
    np.testing.assert_allclose(found, expected(folder, scratch, client.tokenize(TEXT).ids), atol=2e-4)


def expected(folder: Path, scratch: Path, ids: list[int]) -> list[float]:
    shutil.copytree(DEMO_FOLDER, scratch)
    weights, has = load_file(DEMO_FOLDER / "model.safetensors"), load_file(folder / "adapter_model.safetensors")
    prefix = "transformer." if any(name.startswith("transformer.") for name in weights) else ""
    for layer in range(6):
        a, b = (has[f"{PREFIX}transformer.h.{layer}.attn.c_attn.lora_{which}.weight"] for which in "AB")
        weights[f"{prefix}h.{layer}.attn.c_attn.weight"] = (
            weights[f"{prefix}h.{layer}.attn.c_attn.weight"].astype(np.float32) + 5 / 2 * (b @ a).T
        )
    save_file(weights, scratch / "model.safetensors", metadata={"format": "pt"})
    model = GPT2LMHeadModel.from_pretrained(scratch, attn_implementation="eager", dtype=torch.float32)
    with torch.inference_mode():
        found = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1], -1)
    chosen: list[float] = found.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    return chosen


def test_an_adapter_is_a_model_of_its_own(tmp_path: Path) -> None:
    adapter(tmp_path / "models" / "poems", "demo")
    adapter(tmp_path / "models" / "path", "/home/me/gpt2")
    with Daemon(tmp_path) as daemon, Client(daemon.endpoint) as client:
        offered = {model.name: model for model in client.models()}
        assert offered["poems"].on_disk and offered["poems"].parameters == offered["demo"].parameters
        assert "a path, and bases are found by name" in offered["path"].problem
        loaded = load(client, "poems")
        assert NOTICE in loaded.notices
        same(client, tmp_path / "models" / "poems", tmp_path / "merged")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


def test_what_is_not_here_is_downloaded(tmp_path: Path, hub: Hub) -> None:
    """The adapter comes first and is looked through, then its base; afterwards both are on this disk."""
    made = tmp_path / "made"
    adapter(made / "good", "somebody/gpt2-verse")
    adapter(made / "again", "me/good")
    adapter(tmp_path / "models" / "wrong", "openai-community/gpt2", {"transformer.wte.lora_A.weight": (2, 256)})
    for name in ("gpt2", "somebody/gpt2-verse"):
        hub.add(name, DEMO_FOLDER)
    for name in ("good", "again"):
        hub.add(f"me/{name}", made / name)
    with (
        Daemon(tmp_path, "--allow-hub", HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(tmp_path / "hub")) as daemon,
        Client(daemon.endpoint) as client,
    ):
        assert not {model.name: model for model in client.models()}["wrong"].on_disk
        with pytest.raises(BadModel, match=r"wte\.lora_A\.weight, which adapter_config\.json does not ask for"):
            load(client, "wrong")
        with pytest.raises(BadModel, match="its base me/good is an adapter itself"):
            load(client, "me/again")
        assert hub.served("gpt2/config.json") and not hub.served("/model.safetensors")
        assert NOTICE in load(client, "me/good").notices
        same(client, made / "good", tmp_path / "merged")
        offered = {model.name: model for model in client.models()}["me/good"]
        assert offered.on_disk and offered.precisions and offered.file_bytes > 12_000_000
