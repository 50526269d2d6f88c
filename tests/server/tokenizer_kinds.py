"""Folders with the tokenizers that people have, and what transformers 5 makes of them.

    python tests/server/tokenizer_kinds.py make FOLDER      a folder for each kind (in the project's environment)
    python tests/server/tokenizer_kinds.py ask FOLDER       what an environment with transformers 5 makes of these,
                                                            for tests/data/tokenizers.json

Nothing is trained, so that the folders are the same everywhere.
"""

from __future__ import annotations

import base64
import json
import shutil
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from server.checkpoint.spiece import _fields

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = ROOT / "server" / "demo_model" / "tokenizer.json"
END = "<|endoftext|>"
TEXTS = [
    "", " ", "  ", "\n", "Hello world", " Hello world", "Hello  world ", "Hello\n\nworld\t!", "HELLO World",
    "It's 10.5% of what they'd , n't 've", "naïve café — “quotes”", "e\u0301te\u0301", "Straße ÅÉ İ ß ﬁ Ⅳ １２",
    "你好，世界", "東京は日本です。", "안녕 하세요", "😀👩‍👩‍👧 \U0001f1e9\U0001f1ea", "a\u200bb\u00a0c\u3000d\u0000e",
    f"a{END}b {END} c", "a<s>b </s> c <pad><unk> <mask>", "x [CLS] y[SEP][UNK] [MASK] [PAD]z", "<user> hi <user>there",
    "<tag>a <tag> b<tag>", "WORD keyWORD WORD.", "one <extra_id_0> two <extra_id_99>", "▁a ▁▁b a▁b", "``quoted'' a&b",
    "e4 e5 Nf3 Nc6 Qxh7#", "MKTAYIAKQR\nQISFVKSHFSR", "\ufeffbom \ufffd x", "ﬀ ｶﾞ ㍿ ½", "C4_q D4_q REST",
]  # fmt: skip

Kind = Callable[[Path], None]


def write(folder: Path, name: str, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    (folder / name).write_text(text, encoding="utf-8")


def config(folder: Path, rows: int, **more: object) -> None:
    write(folder, "config.json", {"model_type": "gpt2", "vocab_size": rows, **more})


def demo() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DEMO.read_text(encoding="utf-8"))
    return found


def byte_level(folder: Path, *, whole: bool, without_end: bool = False, rows: int = 0, **files: object) -> None:
    """GPT-2's own kind, from tokenizer.json or from vocab.json and merges.txt."""
    content = demo()
    vocab = content["model"]["vocab"]
    if without_end:
        del vocab[END]
        vocab = {token: index for index, token in enumerate(vocab)}
        content["model"]["vocab"], content["added_tokens"] = vocab, []
    changes = files.pop("json", {})
    if isinstance(changes, dict):
        content["model"].update(changes.pop("model", {}))
        content.update(changes)
    if whole:
        write(folder, "tokenizer.json", content)
    else:
        write(folder, "vocab.json", vocab)
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
        write(folder, "merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    for name, value in files.items():
        write(folder, f"{name}.json", value)
    config(folder, rows or len(vocab))


def own_tokens(folder: Path) -> None:
    """As rugpt3: <s>, </s>, <pad>, <unk> and <mask> are at the beginning of the vocabulary."""
    own = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    content = demo()
    vocab = {token: index for index, token in enumerate([*own, *(t for t in content["model"]["vocab"] if t != END)])}
    write(folder, "vocab.json", vocab)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    write(folder, "merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    names = ["pad_token", "bos_token", "eos_token", "unk_token", "mask_token"]
    write(folder, "special_tokens_map.json", dict(zip(names, own, strict=True)))
    config(folder, len(vocab) + 7)


def template(start: str, index: int) -> dict[str, object]:
    sequence, special = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": start, "type_id": 0}}
    return {
        "type": "TemplateProcessing", "single": [special, sequence, special], "pair": [sequence, sequence],
        "special_tokens": {start: {"id": start, "ids": [index], "tokens": [start]}},
    }  # fmt: skip


def token(content: str, **flags: bool) -> dict[str, object]:
    usual = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": False}
    return {"content": content, **usual, **flags}


FLAGS = {
    "0": token(END, special=True),
    "4096": token("<user>", lstrip=True, special=True),
    "4097": token("<tag>", rstrip=True, normalized=True),
    "4098": token("WORD", single_word=True),
}
WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "he", "##llo", "##l", "wor", "##ld", "naive",
    "naïve", "cafe", "café", "Hello", "HELLO", "it", "'", "s", "10", ".", "5", "%", ",", "!", "a", "b", "c", "d", "e",
    "x", "y", "z", "##b", "hi", "there", "one", "two", "<", ">", "&", "你", "好", "世", "界", "你好", "##好",
    "東", "京", "は", "##は", "日", "本", "で", "##す", "。", "，", "ete", "é", "##t", "##é", "strasse", "stra", "##ß",
    "##e", "—", "“", "”", "quotes", "bom", "word", "WORD", "😀", "user", "tag", "-", "1", "/", "2", "q", "##q",
]  # fmt: skip


def wordpiece(folder: Path, *, whole: bool, words: list[str] = WORDS, **options: object) -> None:
    """The Chinese GPT-2s."""
    if whole:
        add = [token(word, special=True) | {"id": index} for index, word in enumerate(words[:5])]
        model = {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {word: index for index, word in enumerate(words)},
        }  # fmt: skip
        normalizer = {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": True,
        }  # fmt: skip
        content = {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": add, "normalizer": normalizer,
            "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": None,
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}, "model": model,
        }  # fmt: skip
        write(folder, "tokenizer.json", content)
    else:
        write(folder, "vocab.txt", "\n".join(words) + "\n")
    write(folder, "tokenizer_config.json", options)
    config(folder, len(words))


PIECES = [
    "▁", "▁hello", "▁world", "he", "llo", "l", "o", "▁a", "a", "b", "c", "d", "e", "x", "y", "z", "▁b", "▁c", "t", "te",
    "s", "i", "h", "▁It", "'", ".", ",", "!", "1", "2", "0", "5", "%", "你", "好", "你好", "世界",
    "東京", "は", "日本", "です", "。", "安", "안녕", "▁하세요", "H", "E", "L", "O", "W", "r", "w", "n", "v", "f",
    "Hello", "▁Hello", "W", "o", "é", "e\u0301", "u", "q", "\"", "ガ", "<", ">", "株式会社",
    "▁▁", "-", "▁user", "user", "ta", "g", "R", "D", "M", "K", "C4", "_", "&", "ll", "el",
    "or", "ld", "rl", "wo", "wor", "he", "hel",
]  # fmt: skip


def scored(first: list[str]) -> list[tuple[str, float]]:
    pieces = [*first, *(piece for piece in dict.fromkeys(PIECES) if piece not in first)]
    return [(piece, 0.0 if index < len(first) else -2.0 - index / 16) for index, piece in enumerate(pieces)]


def class_of_config(folder: Path) -> None:
    wordpiece(folder, whole=False)
    config(folder, len(WORDS), **BERT)


def charsmap() -> bytes:
    """NFKC's table of characters, as sentencepiece has it: field 2 of a normalizer, field 3 of a model."""
    import sentencepiece

    model = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc").serialized_model_proto()
    normalizer = next(value for number, value in _fields(model) if number == 3)
    assert isinstance(normalizer, bytes)
    found = next(value for number, value in _fields(normalizer) if number == 2)
    assert isinstance(found, bytes)
    return found


def field(number: int, value: bytes | float) -> bytes:
    def varint(rest: int) -> bytes:
        out = bytearray()
        while rest > 127:
            out.append(rest & 127 | 128)
            rest >>= 7
        return bytes([*out, rest])

    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


NORMAL, UNKNOWN = 1, 2
CONTROL, USER = 3, 4
BYTE = 6


def spiece(
    folder: Path,
    *,
    first: list[tuple[str, int]],
    name: str = "spiece.model",
    algorithm: int = 1,
    unknown: int = 0,
    table: bool = True,
    **options: object,
) -> None:
    """A sentencepiece model, as its package writes it."""
    kinds = dict(first)
    pieces = scored([piece for piece, _ in first])
    message = b""
    for piece, score in pieces:
        inner = field(1, piece.encode()) + field(2, float(score)) + field(3, kinds.get(piece, NORMAL))
        message += field(1, inner)
    trainer = (
        field(3, algorithm) + field(35, int(BYTE in kinds.values())) + field(40, unknown) + field(41, 1) + field(42, 2)
    )
    message += field(2, trainer)
    message += field(3, field(1, b"nmt_nfkc") + (field(2, charsmap()) if table else b"") + field(3, 1))
    (folder / name).write_bytes(message)
    write(folder, "tokenizer_config.json", options)
    config(folder, len(pieces))


SPM = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), ("[PAD]", CONTROL), ("<user>", USER)]
RINNA: dict[str, Any] = {
    "eos_token": "</s>", "unk_token": "[UNK]", "bos_token": "<s>", "pad_token": "[PAD]", "cls_token": "[CLS]",
    "sep_token": "[SEP]", "mask_token": "[MASK]", "extra_ids": 0, "additional_special_tokens": [],
    "sp_model_kwargs": {}, "tokenizer_class": "T5Tokenizer",
}  # fmt: skip


def unigram_json(folder: Path, *, pre: object, fallback: bool = False, first: list[str], **options: object) -> None:
    pieces = scored(first + ([f"<0x{byte:02X}>" for byte in range(256)] if fallback else []))
    table = base64.b64encode(charsmap()).decode()
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": table}]}
    decoder: object = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    if fallback:
        steps = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}]
        decoder = {"type": "Sequence", "decoders": [*steps, {"type": "Fuse"}]}
    add = [token(text, special=True) | {"id": index} for index, text in enumerate(first)]
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": add, "normalizer": normalizer,
        "pre_tokenizer": pre, "post_processor": None, "decoder": decoder,
        "model": {"type": "Unigram", "unk_id": first.index("<unk>"), "vocab": pieces, "byte_fallback": fallback},
    }  # fmt: skip
    write(folder, "tokenizer.json", content)
    write(folder, "tokenizer_config.json", options)
    config(folder, len(pieces))


META = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
OLD_META = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True, "str_rep": "▁"}


def metaspace_bpe(folder: Path, *, name: str, **options: object) -> None:
    """As kogpt2 and the Nordic ones: BPE of characters with byte fallback."""
    letters = ["▁", *"helowrdabcnits你好", "안", "é"]
    merges = [("▁", "h"), ("▁h", "e"), ("l", "l"), ("▁he", "ll"), ("▁hell", "o"), ("w", "o"), ("▁", "wo"), ("r", "l")]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {t: i for i, t in enumerate(dict.fromkeys([*first, *letters, *(a + b for a, b in merges)]))}
    model = {
        "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "fuse_unk": True,
        "end_of_word_suffix": None, "byte_fallback": True, "ignore_merges": False, "vocab": vocab,
        "merges": [" ".join(merge) for merge in merges],
    }  # fmt: skip
    add = [token(text, special=True) | {"id": index} for index, text in enumerate(first[:3])]
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": add, "normalizer": None,
        "pre_tokenizer": META | {"split": False}, "post_processor": template("<s>", 1),
        "decoder": {"type": "Sequence", "decoders": steps}, "model": model,
    }  # fmt: skip
    write(folder, "tokenizer.json", content)
    write(folder, "tokenizer_config.json", {"tokenizer_class": name, **options})
    config(folder, len(vocab))


def word_level(folder: Path, moves: list[str], **options: object) -> None:
    """Chess and music: a word is a move, or a note."""
    first = ["[UNK]", "[PAD]", "<s>"]
    vocab = {word: index for index, word in enumerate([*first, *moves])}
    content = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [token(text, special=True) | {"id": index} for index, text in enumerate(first)],
        "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    }  # fmt: skip
    write(folder, "tokenizer.json", content)
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **options})
    config(folder, len(vocab))


def protein(folder: Path) -> None:
    """ProtGPT2: byte-level BPE of amino acids."""
    merges = [("M", "K"), ("T", "A"), ("MK", "TA"), ("Q", "R"), ("S", "F"), ("I", "A")]
    vocab = [END, *"ACDEFGHIKLMNPQRSTVWYXĊ", *(a + b for a, b in merges)]
    write(folder, "vocab.json", {word: index for index, word in enumerate(vocab)})
    write(folder, "merges.txt", "#version: 0.2\n" + "\n".join(" ".join(merge) for merge in merges) + "\n")
    write(folder, "special_tokens_map.json", {"bos_token": END, "eos_token": END, "unk_token": END})
    config(folder, len(vocab))


def chess(folder: Path) -> None:
    """A tiny vocabulary that has no end of text."""
    write(folder, "vocab.json", {word: index for index, word in enumerate(["e", "4", "5", "N", "f", "3", "Ġ", "e4"])})
    write(folder, "merges.txt", "#version: 0.2\ne 4\n")
    config(folder, 8)


LLAMA = {"tokenizer_class": "LlamaTokenizer"}
GPT2: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer"}
FAST: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
PREFIX = {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}
LOWER = {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}}
SPLIT = {
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}|\\s+|\\S+"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]}
}  # fmt: skip
BERT: dict[str, Any] = {"tokenizer_class": "BertTokenizer"}
KINDS: dict[str, Kind] = {
    "json": partial(byte_level, whole=True),
    "vocab, merges": partial(byte_level, whole=False),
    "json, GPT2Fast": partial(byte_level, whole=True, tokenizer_config={"tokenizer_class": "GPT2TokenizerFast"}),
    "json, PreTrained": partial(byte_level, whole=True, tokenizer_config=FAST),
    "DialoGPT": partial(byte_level, whole=False, tokenizer_config={"model_max_length": 1024, "unknown": 1}),
    "prefix space": partial(byte_level, whole=False, tokenizer_config=GPT2 | {"add_prefix_space": True}),
    "prefix space, json": partial(byte_level, whole=True, tokenizer_config=GPT2 | {"add_prefix_space": True}),
    "json with prefix space": partial(byte_level, whole=True, json=PREFIX),
    "json with prefix space, PreTrained": partial(byte_level, whole=True, json=PREFIX, tokenizer_config=FAST),
    "bos": partial(byte_level, whole=False, tokenizer_config=GPT2 | {"add_bos_token": True}),
    "bos, json": partial(byte_level, whole=True, tokenizer_config=GPT2 | {"add_bos_token": True}),
    "bos and eos": partial(byte_level, whole=False, tokenizer_config={"add_bos_token": True, "add_eos_token": True}),
    "template": partial(byte_level, whole=True, json={"post_processor": template(END, 0)}),
    "template, PreTrained": partial(
        byte_level, whole=True, json={"post_processor": template(END, 0)}, tokenizer_config=FAST
    ),
    "rugpt3": own_tokens,
    "german-gpt2": partial(byte_level, whole=False, without_end=True, rows=4096),
    "german-gpt2, json": partial(
        byte_level, whole=True, without_end=True, rows=4096,
        special_tokens_map={"bos_token": END, "eos_token": END, "unk_token": END},
    ),
    "added": partial(
        byte_level, whole=False, rows=4098, added_tokens={"<tag>": 4096, "<user>": 4097},
        special_tokens_map={"additional_special_tokens": ["<user>"], "pad_token": "<user>"},
    ),
    "added, PreTrained": partial(
        byte_level, whole=True, rows=4098, tokenizer_config=FAST,
        special_tokens_map={"additional_special_tokens": ["<user>"], "pad_token": "<user>"},
    ),
    "flags": partial(byte_level, whole=False, tokenizer_config=GPT2 | {"added_tokens_decoder": FLAGS}),
    "flags, json": partial(byte_level, whole=True, tokenizer_config=GPT2 | {"added_tokens_decoder": FLAGS}),
    "flags, PreTrained": partial(byte_level, whole=True, tokenizer_config=FAST | {"added_tokens_decoder": FLAGS}),
    "map with flags": partial(
        byte_level, whole=False, special_tokens_map={
            "bos_token": token("<s>", lstrip=True, normalized=True), "pad_token": "<pad>", "mask_token": "<mask>",
        },
    ),
    "named in tokenizer.json": partial(
        byte_level, whole=True, tokenizer_config=FAST, special_tokens_map={"pad_token": "<user>", "eos_token": END},
        json={"added_tokens": [token(END) | {"id": 0}, token("<user>", rstrip=True) | {"id": 4096}]},
    ),
    "special no more": partial(
        byte_level, whole=True, tokenizer_config=FAST | {"added_tokens_decoder": {"0": token(END, lstrip=True)}},
    ),
    "named twice": partial(
        byte_level, whole=False, tokenizer_config=GPT2 | {
            "unk_token": {"__type": "AddedToken"} | token("a", lstrip=True, normalized=True), "cls_token": "a",
            "added_tokens_decoder": {"4096": token("<user>"), "5": token("<tag>", lstrip=True, normalized=True)},
        },
    ),
    "one number twice": partial(
        byte_level, whole=True, added_tokens={"<user>": 0}, special_tokens_map={"pad_token": "<user>"},
        tokenizer_config=FAST | {"bos_token": {"__type": "AddedToken"} | token("<user>", lstrip=True)},
    ),
    "extra names in the map": partial(
        byte_level, whole=False, special_tokens_map={"extra_special_tokens": {"own_token": "<tag>"}},
        tokenizer_config=GPT2 | {"extra_special_tokens": ["<user>", "<tag>"]},
    ),
    "old objects": partial(
        byte_level, whole=False,
        tokenizer_config={"unk_token": {"__type": "AddedToken"} | token("<unk>"), "errors": "replace"},
    ),
    "extra": partial(byte_level, whole=True, tokenizer_config=GPT2 | {"extra_special_tokens": ["<user>", "<tag>"]}),
    "names of its own": partial(
        byte_level, whole=True, tokenizer_config=FAST | {"user_token": "<user>", "extra_special_tokens": {"t": "<tag>"}}
    ),
    "no bos": partial(byte_level, whole=False, tokenizer_config=GPT2 | {"bos_token": None, "add_bos_token": True}),
    "lower case": partial(byte_level, whole=True, json=LOWER),
    "lower case, PreTrained": partial(byte_level, whole=True, json=LOWER, tokenizer_config=FAST),
    "split": partial(byte_level, whole=True, json=SPLIT),
    "split, PreTrained": partial(byte_level, whole=True, json=SPLIT, tokenizer_config=FAST),
    "Llama of bytes": partial(byte_level, whole=True, json=SPLIT, tokenizer_config=LLAMA),
    "padding": partial(
        byte_level, whole=True, tokenizer_config=FAST, json={
            "padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 5,
                        "pad_type_id": 0, "pad_token": "<pad>"},
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        },
    ),
    "clean up": partial(byte_level, whole=True, tokenizer_config=GPT2 | {"clean_up_tokenization_spaces": True}),
    "clean up, BPE too": partial(
        byte_level, whole=True, tokenizer_config=GPT2 | {
            "clean_up_tokenization_spaces": True,
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
        },
    ),
    "class of config.json": class_of_config,
    "ProtGPT2": protein,
    "chess of words": partial(word_level, moves=["e4", "e5", "Nf3", "Nc6", "Qxh7#", "a", "b"]),
    "music of words": partial(
        word_level, moves=["C4_q", "D4_q", "REST"], eos_token="<s>", clean_up_tokenization_spaces=True
    ),
    "uer": partial(wordpiece, whole=False, **BERT),
    "uer, cased": partial(wordpiece, whole=False, tokenizer_class="BertTokenizerFast", do_lower_case=False),
    "uer, accents": partial(wordpiece, whole=False, strip_accents=False, **BERT),
    "uer, Chinese in words": partial(wordpiece, whole=False, tokenize_chinese_chars=False, **BERT),
    "uer, json": partial(wordpiece, whole=True, **BERT),
    "uer, json, cased": partial(wordpiece, whole=True, do_lower_case=False, **BERT),
    "uer, PreTrained": partial(wordpiece, whole=True, clean_up_tokenization_spaces=True, **FAST),
    "uer without [MASK]": partial(wordpiece, whole=False, words=[w for w in WORDS if w != "[MASK]"], **BERT),
    "rinna": partial(spiece, first=SPM, **RINNA),
    "T5": partial(
        spiece, first=[("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN), ("<user>", USER)], unknown=2,
        tokenizer_class="T5Tokenizer",
    ),
    "T5, extra ids": partial(spiece, first=SPM, tokenizer_class="T5TokenizerFast", extra_ids=3),
    "T5, no table": partial(spiece, first=SPM, table=False, tokenizer_class="T5Tokenizer", extra_ids=0),
    "T5, json": partial(unigram_json, pre=META, first=["<pad>", "</s>", "<unk>"], tokenizer_class="T5Tokenizer"),
    "Unigram": partial(unigram_json, pre=META, first=["<unk>", "<s>", "</s>"], **FAST),
    "Unigram, old": partial(unigram_json, pre=OLD_META, first=["<unk>", "<s>", "</s>"], bos_token="<s>", **FAST),
    "Unigram, bytes": partial(unigram_json, pre=META, fallback=True, first=["<unk>", "<s>", "</s>"], **FAST),
    "Albert": partial(
        spiece, unknown=1, tokenizer_class="AlbertTokenizer",
        first=[("<pad>", CONTROL), ("<unk>", UNKNOWN), ("[CLS]", CONTROL), ("[SEP]", CONTROL), ("[MASK]", CONTROL)],
    ),
    "Albert, flags": partial(
        spiece, unknown=1, tokenizer_class="AlbertTokenizer",
        mask_token={"__type": "AddedToken"} | token("[SEP]", lstrip=True, single_word=True),
        first=[("<pad>", CONTROL), ("<unk>", UNKNOWN), ("[CLS]", CONTROL), ("[SEP]", CONTROL), ("[MASK]", CONTROL)],
    ),
    "Albert, json": partial(
        unigram_json, pre=META, first=["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], keep_accents=True,
        tokenizer_class="AlbertTokenizerFast", do_lower_case=False,
    ),
    "XLMRoberta": partial(
        spiece, first=SPM[:3], name="sentencepiece.bpe.model", tokenizer_class="XLMRobertaTokenizer"
    ),
    "XLMRoberta, json": partial(
        unigram_json, pre=META, first=["<s>", "<pad>", "</s>", "<unk>"], tokenizer_class="XLMRobertaTokenizerFast"
    ),
    "Camembert": partial(spiece, first=SPM[:3], name="sentencepiece.bpe.model", tokenizer_class="CamembertTokenizer"),
    "Camembert, json": partial(
        unigram_json, pre=META, first=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        tokenizer_class="CamembertTokenizerFast",
    ),
    "Metaspace BPE": partial(metaspace_bpe, name="PreTrainedTokenizerFast"),
    "Llama, json": partial(metaspace_bpe, name="LlamaTokenizerFast"),
    "Llama, json, legacy": partial(metaspace_bpe, name="LlamaTokenizer", legacy=True),
    "Llama, json, no prefix": partial(metaspace_bpe, name="LlamaTokenizer", add_prefix_space=False),
    "Llama": partial(
        spiece, first=[*SPM, *((f"<0x{byte:02X}>", BYTE) for byte in range(256))], name="tokenizer.model", algorithm=2,
        tokenizer_class="LlamaTokenizer", add_bos_token=True,
    ),
}  # fmt: skip
"""Kinds that load; each is made in an empty folder."""


def ask(folder: Path) -> dict[str, object]:
    """Return what transformers makes of a folder: the tokens of each text, those around it, and the tokens' text."""
    import transformers

    auto: Any = transformers.AutoTokenizer
    tokenizer = auto.from_pretrained(folder)
    full = [tokenizer(text).input_ids for text in TEXTS]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    around = [
        one for one in range(len(full[0]) + 1) if all(f[one:][: len(i)] == i for f, i in zip(full, ids, strict=True))
    ]
    told = [tokenizer.decode(i, skip_special_tokens=True, clean_up_tokenization_spaces=False) for i in ids]
    cleaned = tokenizer.decode(tokenizer("a , b .", add_special_tokens=False).input_ids)
    return {"before": full[0][: around[0]], "ids": ids, "text": told, "cleaned": cleaned}


def main() -> None:
    command, folder = sys.argv[1], Path(sys.argv[2])
    if command == "make":
        for name, make in KINDS.items():
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir(parents=True)
            make(folder / name)
        return
    found = (json.dumps({name: ask(folder / name)}, ensure_ascii=False, separators=(",", ":")) for name in KINDS)
    print("[" + ",\n".join(found) + "]")


if __name__ == "__main__":
    main()
