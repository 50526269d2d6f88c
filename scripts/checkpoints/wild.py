"""Kinds that models of the hub have, with all that is peculiar to each at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from scripts.checkpoints.kind import TEXTS, Kind, Make
from scripts.checkpoints.small import CONFIG, VOCABULARY, byte_level, change, model, vocabulary_and_merges
from scripts.checkpoints.vocabularies import PROMPTS, TEXTS as OTHER_TEXTS, pieces, words

ALONE = ("vocab.json", "merges.txt")
"""What GPT-2s of 2019 and 2020 have."""


def old(
    tokenizer: Callable[[Path], None], *, masks: bool = True, dtype: torch.dtype = torch.float32, **config: object
) -> Make:
    """Return what makes a folder with a pytorch_model.bin, masks and the tied head in it."""

    def make(folder: Path) -> None:
        whole = model(**config).to(dtype)
        whole.config.save_pretrained(folder)
        state = dict(whole.state_dict())
        context = whole.config.n_positions
        for i in range(CONFIG["n_layer"]) if masks else ():
            state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, context, context, dtype=torch.uint8).tril()
            state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        torch.save(state, folder / "pytorch_model.bin")
        tokenizer(folder)

    return make


def rugpt3(folder: Path) -> None:
    """Its own <s> and </s> in the vocabulary, and no file that says so."""
    vocabulary_and_merges(folder, "<s>", "</s>", "<unk>", "<mask>")


def rugpt3_told(folder: Path) -> None:
    rugpt3(folder)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    change(folder, "special_tokens_map.json", **names)
    change(folder, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", model_max_length=2048, **names)


def uer(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(words()) + "\n", encoding="utf-8")
    change(folder, "tokenizer_config.json", tokenizer_class="BertTokenizer", model_max_length=1024, do_lower_case=False)


def rinna(folder: Path) -> None:
    (folder / "spiece.model").write_bytes(pieces("unigram", pads=True))
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]", "bos_token": "<s>"}
    names |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    settings: dict[str, Any] = {"extra_ids": 0, "additional_special_tokens": [], "do_lower_case": True}
    change(folder, "tokenizer_config.json", tokenizer_class="T5Tokenizer", **names, **settings)
    change(folder, "special_tokens_map.json", **names)


def protein(folder: Path) -> None:
    vocabulary_and_merges(folder)
    change(folder, "special_tokens_map.json", eos_token="<|endoftext|>")  # noqa: S106 - a token of text
    change(folder, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")


def exported(folder: Path) -> None:
    """As llm.c writes it: bf16, the vocabulary padded, the head beside its table."""
    whole = model(vocab_size=384).to(torch.bfloat16)
    whole.config.save_pretrained(folder)
    state = dict(whole.state_dict())
    state["lm_head.weight"] = state["lm_head.weight"].clone()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    byte_level(folder)


def nanogpt(folder: Path) -> None:
    """As nanoGPT's weights are converted: context 256, no biases that are not zero, a padded vocabulary."""
    whole = model(vocab_size=384, n_positions=256, n_ctx=256, eos_token_id=None, bos_token_id=None)
    for name, parameter in whole.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    whole.save_pretrained(folder)
    vocabulary_and_merges(folder)


def tiny(folder: Path) -> None:
    """Less than the bytes' 256 tokens: what is not in it is left out."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = [*"abcdefgh12345678KQRBNx+#.=", "Ġ", "Ċ", "<|endoftext|>"]
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(folder / "tokenizer.json"))
    change(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def saved(tokenizer: Callable[[Path], None], **config: object) -> Make:
    def make(folder: Path) -> None:
        model(**config).save_pretrained(folder)
        tokenizer(folder)

    return make


def kinds() -> Iterator[Kind]:
    own: dict[str, Any] = {"vocab_size": VOCABULARY + 8, "bos_token_id": 319, "eos_token_id": 320}
    marked = (*TEXTS, "<s>To be</s>, or not")
    yield Kind("wild-rugpt3", old(rugpt3, **own), texts=marked, gate=True)
    yield Kind("wild-rugpt3-told", old(rugpt3_told, **own), texts=marked)
    yield Kind(
        "wild-german-gpt2", old(byte_level, eos_token_id=VOCABULARY, bos_token_id=VOCABULARY), prompts=("To be",)
    )
    yield Kind("wild-dialogpt", old(vocabulary_and_merges), texts=(*TEXTS, "Hi!<|endoftext|>Hello.<|endoftext|>"))
    crfm: dict[str, Any] = {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}
    yield Kind("wild-crfm", old(byte_level, **crfm), gate=True)
    yield Kind(
        "wild-cerebras",
        old(vocabulary_and_merges, masks=False, activation_function="gelu", n_inner=128),
    )
    chinese: dict[str, Any] = {"vocab_size": len(words()), "bos_token_id": None, "eos_token_id": None}
    asked: dict[str, Any] = {"texts": OTHER_TEXTS, "prompts": PROMPTS}
    yield Kind("wild-uer-chinese", old(uer, tokenizer_class="BertTokenizer", **chinese), **asked)
    japanese: dict[str, Any] = {"vocab_size": 408, "bos_token_id": 1, "eos_token_id": 2}
    yield Kind("wild-rinna-japanese", old(rinna, **japanese), gate=True, **asked)
    yield Kind("wild-llm-c", exported)
    yield Kind("wild-nanogpt", nanogpt, prompts=("To be",), gate=True)
    proteins = ("<|endoftext|>\nMKTAYIAKQR\nQISFVKSHFS\n", "MSEQ")
    yield Kind("wild-protgpt2", saved(protein), texts=proteins, prompts=("<|endoftext|>", "MSEQ"))
    games = ("e4 e5. Nf3\nBb5", "1. a4 Qx#")
    yield Kind(
        "wild-chess-bytes", saved(tiny, vocab_size=29, bos_token_id=28, eos_token_id=28), texts=games, prompts=games
    )
