"""Kinds of byte-level BPE: which files tell it, what tokens were added, and what settings change it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

from scripts.checkpoints.kind import PROMPTS, TEXTS, Kind, Make
from scripts.checkpoints.small import END, END_ID, VOCABULARY, change, save, trained, vocabulary_and_merges

MORE = VOCABULARY + 8
"""Tokens of a model whose tokenizer has added some."""
ADDED_TEXTS = (*TEXTS, "Hello <speaker> there<|pad|>, you<speaker>: <|x|> go on<|pad|>")
ADDED_PROMPTS = (*PROMPTS, "Hello <speaker>", "Hello <|pad|> ")
ADDED: dict[str, dict[str, Any]] = {
    "": {},
    "-added": {"tokens": ["<speaker>", "<|x|>"]},
    "-special": {"tokens": ["<speaker>"], "special": ["<|pad|>", "<|x|>"]},
}
FLAGS: dict[str, dict[str, Any]] = {
    "": {},
    "-prefix-space": {"add_prefix_space": True},
    "-bos": {"add_bos_token": True},
}
KEPT = {
    "all": {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"},
    "json": {"tokenizer.json", "tokenizer_config.json"},
    "json-alone": {"tokenizer.json"},
    "vocab": {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"},
    "vocab-old": {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"},
    "vocab-alone": {"vocab.json", "merges.txt"},
}
"""Files that are kept of those that transformers writes; the old ones have no added_tokens_decoder."""
TOKENIZER = {name for names in KEPT.values() for name in names}


def gpt2(files: str, added: dict[str, Any], flags: dict[str, Any]) -> Make:
    """Return what makes a folder whose tokenizer is told by these files."""

    def tokenizer(folder: Path) -> None:
        vocabulary_and_merges(folder)
        fast: Any = GPT2TokenizerFast
        made = fast.from_pretrained(folder, **flags)
        made.add_tokens(added.get("tokens", []))
        if special := added.get("special"):
            made.add_special_tokens({"pad_token": special[0], "additional_special_tokens": special[1:]})
        made.save_pretrained(folder)
        if files == "vocab-old":
            change(folder, "added_tokens.json", **made.get_added_vocab())
            change(folder, "tokenizer_config.json", added_tokens_decoder=None)
        for name in TOKENIZER - KEPT[files]:
            (folder / name).unlink(missing_ok=True)

    return lambda folder: save(folder, tokenizer=tokenizer, vocab_size=MORE)


def of_object(tokenizer: Tokenizer, folder: Path, **settings: object) -> None:
    """Write a tokenizer as PreTrainedTokenizerFast does."""
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)


def byte_level_with(**parts: Any) -> Make:
    """Return what makes a folder of PreTrainedTokenizerFast with another normaliser, post-processor, ...

    `added`: tokens; `settings`: those of the class.
    """

    def tokenizer(folder: Path) -> None:
        made = Tokenizer.from_str(trained())
        made.add_special_tokens([END])
        made.add_tokens(parts.get("added", []))
        for name in ("normalizer", "post_processor", "pre_tokenizer", "decoder"):
            if name in parts:
                setattr(made, name, parts[name])
        of_object(made, folder, **parts.get("settings", {"eos_token": END}))

    return lambda folder: save(folder, tokenizer=tokenizer, vocab_size=MORE)


def template(before: str = "", after: str = "") -> Any:
    tokens = [(END, END_ID)]
    return processors.TemplateProcessing(single=f"{before} $A {after}".strip(), special_tokens=tokens)


def config_says(**keys: object) -> Make:
    """Return what makes a plain folder whose tokenizer_config.json has these keys."""

    def make(folder: Path) -> None:
        save(folder)
        change(folder, "tokenizer_config.json", **keys)

    return make


IN_THE_FILE: dict[str, dict[str, Any]] = {
    "truncation": {
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "!",
        },
    },
    "dropout": {"model": {"dropout": 0.5}},
    "ignores-merges": {"model": {"ignore_merges": True}},
    "old-merges": {"model": {"merges": None}},
    "post-processor-trims": {
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    },
}  # fmt: skip
"""What tokenizer.json may have, which is not in the one that transformers writes."""


def rewritten(parts: dict[str, Any]) -> Make:
    """Return what makes a plain folder whose tokenizer.json has these parts."""

    def make(folder: Path) -> None:
        save(folder)
        file = folder / "tokenizer.json"
        has = json.loads(file.read_text(encoding="utf-8"))
        pairs = has["model"]["merges"]
        for name, part in parts.items():
            has[name] = has[name] | part if name == "model" else part
        # As text, which tokenizers wrote before 0.20.
        has["model"]["merges"] = has["model"]["merges"] or [" ".join(pair) for pair in pairs]
        file.write_text(json.dumps(has), encoding="utf-8")

    return make


def larger(folder: Path) -> None:
    """Make a tokenizer that has more tokens than the model."""
    save(folder)
    fast: Any = GPT2TokenizerFast
    made = fast.from_pretrained(folder)
    made.add_tokens(["<one>", "<two>"])
    made.save_pretrained(folder)


def without_end(folder: Path) -> None:
    """Make a vocabulary that has no <|endoftext|>."""
    save(folder, tokenizer=lambda where: vocabulary_and_merges(where, "<end>"), vocab_size=MORE)


def none_at_all(folder: Path) -> None:
    save(folder)
    for name in TOKENIZER:
        (folder / name).unlink(missing_ok=True)


def kinds() -> Iterator[Kind]:
    asked: dict[str, Any] = {"texts": ADDED_TEXTS, "prompts": ADDED_PROMPTS}
    for files, added, flag in itertools.product(KEPT, ADDED, FLAGS):
        if files == "vocab-alone" and added + flag:
            continue  # nothing tells it
        make = gpt2(files, ADDED[added], FLAGS[flag])
        gate = f"{files}{added}{flag}" in {"vocab-bos", "vocab-old-special", "json-special"}
        yield Kind(f"gpt2-{files}{added}{flag}", make, gate=gate, **asked)

    strips = [AddedToken("<speaker>", lstrip=True), AddedToken("<|x|>", rstrip=True, single_word=True)]
    yield Kind("gpt2-added-strips", gpt2("all", {"tokens": strips}, {}), **asked)
    yield Kind("gpt2-added-strips-vocab", gpt2("vocab", {"tokens": strips}, {}), **asked)
    yield Kind("gpt2-clean-up", config_says(clean_up_tokenization_spaces=True), gate=True)
    yield Kind("gpt2-no-clean-up", config_says(clean_up_tokenization_spaces=False))
    yield Kind("gpt2-config-adds-bos", config_says(add_bos_token=True))
    yield Kind("gpt2-config-adds-prefix-space", config_says(add_prefix_space=True), gate=True)
    yield Kind("gpt2-config-max-length", config_says(model_max_length=8))
    yield Kind("gpt2-class-fast", config_says(tokenizer_class="GPT2TokenizerFast"))
    yield Kind("gpt2-class-pretrained", config_says(tokenizer_class="PreTrainedTokenizerFast"))
    yield Kind("gpt2-larger-than-model", larger, refused_texts=(("Hello <two>", "token"),))
    yield Kind("gpt2-without-end", without_end)
    yield Kind("gpt2-missing", none_at_all, "tokenizer.json")

    yield Kind("fast-plain", byte_level_with())
    yield Kind("fast-template-before", byte_level_with(post_processor=template(END)), gate=True)
    yield Kind("fast-template-after", byte_level_with(post_processor=template("", END)))
    yield Kind("fast-template-both", byte_level_with(post_processor=template(END, END)))
    yield Kind("fast-lower-case", byte_level_with(normalizer=normalizers.Lowercase()))
    nfkc = normalizers.Sequence([normalizers.NFKC(), normalizers.StripAccents(), normalizers.Strip()])
    odd = (*TEXTS, "\ufb01ne \u2460 \uff46\uff55ll  ", "  e\u0301té")
    yield Kind("fast-nfkc", byte_level_with(normalizer=nfkc), texts=odd, gate=True)
    yield Kind("fast-prepends", byte_level_with(normalizer=normalizers.Prepend(" ")), texts=odd)
    space: Any = pre_tokenizers.ByteLevel(add_prefix_space=True)
    yield Kind("fast-prefix-space", byte_level_with(pre_tokenizer=space))
    digits: Any = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    yield Kind("fast-digits", byte_level_with(pre_tokenizer=digits), texts=(*TEXTS, "in 1603 and 12"))
    words: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    yield Kind("fast-no-regex", byte_level_with(pre_tokenizer=words))
    trims = processors.ByteLevel(trim_offsets=True)
    yield Kind("fast-trims-offsets", byte_level_with(post_processor=trims))
    yield Kind("fast-bos-in-config", byte_level_with(settings={"bos_token": END, "add_bos_token": True}))
    cleans = {"eos_token": END, "clean_up_tokenization_spaces": True}
    yield Kind("fast-clean-up", byte_level_with(settings=cleans))

    for name, settings in IN_THE_FILE.items():
        yield Kind(f"file-{name}", rewritten(settings), refused="dropout" if name == "dropout" else "")
    yield Kind("gpt2-config-splits-special", config_says(split_special_tokens=True), "split_special_tokens")
    chat = "{% for message in messages %}{{ message.content }}{% endfor %}"
    yield Kind("gpt2-config-chat", config_says(chat_template=chat, padding_side="left", errors="strict"))

    slow = "tokenizer_class|tokenizer"
    for name in ("GPTSw3Tokenizer", "BertJapaneseTokenizer", "CpmTokenizer", "REMI", "MyOwnTokenizer"):
        yield Kind(f"refused-{name}", config_says(tokenizer_class=name), name, gate=name == "GPTSw3Tokenizer")
    code = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    yield Kind("refused-auto-map", config_says(auto_map=code), slow, gate=True)
