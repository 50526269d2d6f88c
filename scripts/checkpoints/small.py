"""Small GPT-2s and tokenizers that the kinds of folders consist of: the same ones at every run, on every machine."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from server.catalogue.catalogue import HELD_OUT_FILE

END = "<|endoftext|>"
VOCABULARY = 320
END_ID = VOCABULARY - 1
CONFIG = {
    "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64, "vocab_size": VOCABULARY,
    "bos_token_id": END_ID, "eos_token_id": END_ID,
}  # fmt: skip


def model(kind: Any = GPT2LMHeadModel, **config: object) -> Any:
    """Return a model of transformers whose logits are far from flat.

    Its values come from NumPy, since torch draws others on another processor.
    """
    made: Any = GPT2Config
    whole = kind(made(**CONFIG | config)).eval()
    draw = np.random.default_rng(1)
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            values = draw.standard_normal(parameter.shape, np.float32) * 0.3
            parameter.copy_(torch.from_numpy(values + (".ln_" in name and name.endswith("weight"))))
    return whole


def save(folder: Path, *, tokenizer: Callable[[Path], None] | None = None, **config: object) -> None:
    """Write a model with its configuration, and a tokenizer, GPT-2's own kind where no other is given."""
    model(**config).save_pretrained(folder)
    (tokenizer or byte_level)(folder)


@functools.cache
def trained(vocabulary: int = VOCABULARY - 1) -> str:
    """Return a byte-level BPE tokenizer of that many tokens, none of them special, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [text()], trainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    )
    made: str = tokenizer.to_str()
    return made


@functools.cache
def text() -> str:
    return HELD_OUT_FILE.read_text(encoding="utf-8")


def vocabulary_and_merges(folder: Path, *more: str, vocabulary: int = VOCABULARY - 1) -> None:
    """Write vocab.json and merges.txt; `more` tokens follow, the end of text where none is given."""
    bpe = json.loads(trained(vocabulary))["model"]
    table = bpe["vocab"] | {token: vocabulary + i for i, token in enumerate(more or (END,))}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    (folder / "vocab.json").write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def byte_level(folder: Path, **settings: object) -> None:
    """Write GPT-2's tokenizer with all the files that transformers writes."""
    vocabulary_and_merges(folder)
    made: Any = GPT2TokenizerFast
    made.from_pretrained(folder, **settings).save_pretrained(folder)


def change(folder: Path, name: str, **values: object) -> None:
    """Set keys of a file of JSON; None removes one."""
    file = folder / name
    has = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    has |= values
    kept = {key: value for key, value in has.items() if value is not None}
    file.write_text(json.dumps(kept, ensure_ascii=False, indent=2), encoding="utf-8")
