"""Kinds of LoRA adapters: what they train, how it is scaled, whose tokenizer they have, and what of it is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import GPT2TokenizerFast

from scripts.checkpoints.adapters import ADAPTERS, Adapter, write
from scripts.checkpoints.kind import TEXTS, Kind, Make
from scripts.checkpoints.small import CONFIG, VOCABULARY, byte_level, save

BASE = "adapter-base"
"""The folder beside an adapter's that has its base."""
STRENGTH = 0.3
"""Of the matrices; stronger ones make attention so sharp that the order of two additions shows."""
MORE = ("<|user|>", "<|bot|>")
"""Tokens that an adapter's own tokenizer has more."""
ACCEPTED = (
    "c_attn", "every matrix", "all-linear", "a regular expression", "rslora", "patterns", "one layer", "but one",
    "the table", "the head", "the head saved", "the table saved", "both saved", "a norm saved", "a part saved",
    "all biases", "its own biases", "biases of the product", "a larger vocabulary", "a larger vocabulary, trained",
)  # fmt: skip
REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "dora": ({"use_dora": True}, "use_dora=True, which is not supported: merge it with peft"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changes the base"),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    "ia3": ({"peft_type": "IA3"}, "only LORA is supported"),
    "path": ({"base_model_name_or_path": "/home/me/gpt2"}, "a path, and bases are found by name"),
    "no-base": ({"base_model_name_or_path": "poems"}, "there is no such model"),
    "rank": ({"r": 3}, "its rank of 3 asks for"),
    "elsewhere": ({"target_modules": ["c_fc"]}, "which adapter_config.json asks for"),
}


def kinds() -> Iterator[Kind]:
    for name in ACCEPTED:
        adapter = ADAPTERS[name]
        grown = adapter.vocabulary > min(a.vocabulary for a in ADAPTERS.values())
        adapter = replace(adapter, vocabulary=VOCABULARY + len(MORE) if grown else VOCABULARY)
        yield Kind(
            f"adapter-{name.replace(',', '').replace(' ', '-')}",
            made(adapter),
            judged=made(adapter, path=True),
            texts=(*TEXTS, f"{MORE[0]} Who is there? {MORE[1]}") if grown else TEXTS,
            notice="added to its base in float32",
        )
    for name, (settings, says) in REFUSED.items():
        plain = replace(ADAPTERS["c_attn"], vocabulary=VOCABULARY)
        yield Kind(f"adapter-{name}", made(plain, settings), refused=says)


def made(adapter: Adapter, settings: Mapping[str, object] = MappingProxyType({}), *, path: bool = False) -> Make:
    """Return what makes an adapter's folder, and its base's beside it; transformers finds that by its `path`."""

    def make(folder: Path) -> None:
        base = folder.parent / BASE
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir()
        save(base)
        named: dict[str, object] = {"base_model_name_or_path": str(base) if path else BASE}
        write(folder, adapter, {**named, **settings}, width=CONFIG["n_embd"], vocabulary=VOCABULARY, strength=STRENGTH)
        if adapter.vocabulary > VOCABULARY:
            byte_level(folder)
            whole: Any = GPT2TokenizerFast
            tokenizer = whole.from_pretrained(folder)
            tokenizer.add_tokens(list(MORE))
            tokenizer.save_pretrained(folder)

    return make
