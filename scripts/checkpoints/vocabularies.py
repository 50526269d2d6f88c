"""Kinds of other tokenizers: WordPiece, WordLevel, Unigram and BPE with Metaspace, from their several files."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BertTokenizerFast

from scripts.checkpoints.byte_pairs import of_object
from scripts.checkpoints.kind import Kind, Make
from scripts.checkpoints.small import change, save, text

SIZE = 400
JAPANESE = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で"
    "ニャーニャー泣いていた事だけは記憶している。吾輩はここで始めて人間というものを見た。"
)
CHINESE = "这是很久之前的事情了。天地玄黄。宇宙洪荒。日月盈昃。辰宿列张。"
TEXTS = (
    "To be, or not to be: that is the question.",
    "  Two spaces,  a tab\tand\n a line. ",
    "Naïve CAFÉ, 東京!",
    JAPANESE[:24],
    "这是很久 2023 之前的事情了",
    "<s>Once [MASK] upon</s> a <unk> time",
)
PROMPTS = ("To be, or not to be", "这是很久", "吾輩は ", "")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def words() -> list[str]:
    """Return the pieces of a WordPiece vocabulary: characters, whole and as rests, and some words."""
    characters = sorted(set(text()[:4000] + text()[:4000].lower() + CHINESE + "吾輩は猫東京")) + list("0123456789")
    letters = [c for c in dict.fromkeys(characters) if not c.isspace()]
    rests = [f"##{c}" for c in letters if c.isascii() and c.isalpha()]
    return [*SPECIAL, *letters, *rests, "to", "be", "not", "that", "is", "the", "question", "##tion", "##ing", "naive"]


def bert(*, files: str, **settings: object) -> Make:
    """Return what makes a folder like the Chinese GPT-2s. `files`: vocab, json or all."""

    def tokenizer(folder: Path) -> None:
        (folder / "vocab.txt").write_text("\n".join(words()) + "\n", encoding="utf-8")
        if files != "vocab":
            fast: Any = BertTokenizerFast
            fast(str(folder / "vocab.txt"), **settings).save_pretrained(folder)
        if files == "json":
            (folder / "vocab.txt").unlink()
        change(folder, "tokenizer_config.json", tokenizer_class="BertTokenizer", **settings)

    def make(folder: Path) -> None:
        save(folder, tokenizer=tokenizer, vocab_size=len(words()), bos_token_id=2, eos_token_id=3)

    return make


@functools.cache
def pieces(kind: str, *, fallback: bool = False, pads: bool = False) -> bytes:
    """Return a sentencepiece model, trained on a little of several languages."""
    written = io.BytesIO()
    sentences = [*text()[:12_000].splitlines(), *[JAPANESE, CHINESE] * 5]
    trainer: Any = sentencepiece.SentencePieceTrainer
    trainer.train(
        sentence_iterator=iter(sentences), model_writer=written, vocab_size=SIZE, model_type=kind, minloglevel=2,
        character_coverage=0.9995 if fallback else 1.0, byte_fallback=fallback, num_threads=1,
        hard_vocab_limit=False, **({"pad_id": 3} if pads else {}),
    )  # fmt: skip
    return written.getvalue()


def spiece(name: str, model: bytes, vocabulary: int = 0, **settings: object) -> Make:
    """Return what makes a folder whose tokenizer is a sentencepiece model of that name."""

    def tokenizer(folder: Path) -> None:
        (folder / name).write_bytes(model)
        change(folder, "tokenizer_config.json", **settings)

    def make(folder: Path) -> None:
        processor: Any = sentencepiece.SentencePieceProcessor
        size = vocabulary or processor(model_proto=model).vocab_size() + 8
        save(folder, tokenizer=tokenizer, vocab_size=size, bos_token_id=1, eos_token_id=2)

    return make


def metaspace(kind: str, scheme: str, **settings: object) -> Make:
    """Return what makes a folder of PreTrainedTokenizerFast with Metaspace, BPE or Unigram."""

    def tokenizer(folder: Path) -> None:
        specials = ["<s>", "</s>", "<unk>", "<pad>"]
        part: Any = pre_tokenizers.Metaspace
        if kind == "bpe":
            made = Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106 - a token of text
            how: Any = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=specials, show_progress=False)
        else:
            processor: Any = sentencepiece.SentencePieceProcessor
            told = processor(model_proto=pieces("unigram"))
            rest = [(told.id_to_piece(i), told.get_score(i)) for i in range(3, told.vocab_size())]
            made = Tokenizer(models.Unigram([*((s, 0.0) for s in specials), *rest], unk_id=2))
            how = None
        made.pre_tokenizer = part(prepend_scheme=scheme)
        made.decoder = decoders.Metaspace(prepend_scheme=scheme)
        if how:
            made.train_from_iterator([text()[:12_000], JAPANESE, CHINESE], how)
        else:
            made.add_special_tokens(specials)
        of_object(made, folder, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **settings)  # noqa: S106

    return lambda folder: save(folder, tokenizer=tokenizer, vocab_size=SIZE + 8, bos_token_id=0, eos_token_id=1)


def word_level(names: list[str], *, cut: Any, glue: Any = None, **settings: object) -> Make:
    """Return what makes a folder whose tokens are whole words, as models of music and chess have them."""

    def tokenizer(folder: Path) -> None:
        specials = ["[UNK]", "[PAD]", "[BOS]", "[EOS]"]
        table = {name: i for i, name in enumerate([*specials, *names])}
        made = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))  # noqa: S106
        made.pre_tokenizer = cut
        if glue is not None:
            made.decoder = glue
        made.add_special_tokens(specials)
        named = dict(zip(("unk_token", "pad_token", "bos_token", "eos_token"), specials, strict=True))
        of_object(made, folder, **named, **settings)

    size = len(names) + 4
    return lambda folder: save(folder, tokenizer=tokenizer, vocab_size=size, bos_token_id=2, eos_token_id=3)


def of_class(make: Make, name: str, **keys: object) -> Make:
    """Return what makes the same folder, whose configuration names another class."""

    def changed(folder: Path) -> None:
        make(folder)
        change(folder, "tokenizer_config.json", tokenizer_class=name, **keys)

    return changed


def kinds() -> Iterator[Kind]:
    asked: dict[str, Any] = {"texts": TEXTS, "prompts": PROMPTS}
    for files in ("vocab", "json", "all"):
        for lower in (True, False):
            make = bert(files=files, do_lower_case=lower)
            yield Kind(f"bert-{files}{'-lower' * lower}", make, gate=files != "all" and not lower, **asked)
    yield Kind("bert-no-chinese", bert(files="vocab", tokenize_chinese_chars=False), **asked)
    yield Kind("bert-keeps-accents", bert(files="vocab", strip_accents=False), **asked)
    yield Kind(
        "bert-json-other-case",
        of_class(bert(files="json", do_lower_case=True), "BertTokenizer", do_lower_case=False),
        **asked,
    )

    for scheme in ("always", "first", "never"):
        yield Kind(f"metaspace-bpe-{scheme}", metaspace("bpe", scheme), gate=scheme == "always", **asked)
        yield Kind(f"metaspace-unigram-{scheme}", metaspace("unigram", scheme), gate=scheme == "first", **asked)
    yield Kind("metaspace-bpe-clean-up", metaspace("bpe", "always", clean_up_tokenization_spaces=True), **asked)

    yield Kind("t5-spiece", spiece("spiece.model", pieces("unigram"), tokenizer_class="T5Tokenizer"), **asked)
    extra = spiece("spiece.model", pieces("unigram"), SIZE + 108, tokenizer_class="T5Tokenizer", extra_ids=100)
    yield Kind("t5-spiece-extra-ids", extra, **asked)
    yield Kind("t5-json", of_class(metaspace("unigram", "always"), "T5Tokenizer", extra_ids=0), **asked)
    for name in ("XLMRobertaTokenizer", "CamembertTokenizer"):
        make = spiece("sentencepiece.bpe.model", pieces("unigram"), tokenizer_class=name)
        yield Kind(f"class-{name}", make, **asked)
    llama = spiece("tokenizer.model", pieces("bpe", fallback=True), tokenizer_class="LlamaTokenizer")
    yield Kind("class-LlamaTokenizer", llama, **asked)
    yield Kind("class-LlamaTokenizer-json", of_class(metaspace("bpe", "first"), "LlamaTokenizer"), **asked)
    bare = of_class(metaspace("bpe", "first"), "LlamaTokenizer", add_bos_token=False)
    yield Kind("class-LlamaTokenizer-json-no-bos", bare, **asked)

    space: Any = pre_tokenizers.WhitespaceSplit()
    music = [
        "PIECE_START",
        "TRACK_START",
        "TRACK_END",
        "BAR_START",
        "BAR_END",
        *[f"NOTE_ON={i}" for i in range(60, 72)],
    ]
    music += [f"TIME_DELTA={i}" for i in (1, 2, 4, 8)]
    notes = ("PIECE_START TRACK_START NOTE_ON=60 TIME_DELTA=4", " NOTE_ON=61  NOTE_ON=99\nBAR_END ")
    yield Kind("words-music", word_level(music, cut=space), texts=notes, prompts=(*notes, ""))
    chess = [f"{a}{b}{c}{d}" for a in "aceg" for b in "24" for c in "bd" for d in "35"]
    moves = ("a2b3 c4d5", "e2d3 x9x9 g4b5 ")
    yield Kind("words-chess", word_level(chess, cut=space), texts=moves, prompts=(*moves, ""))
    letters = [*"abcdefgh12345678KQRBNx+#.= "]
    apart: Any = pre_tokenizers.Split("", "isolated")
    game = ("e4 e5. Nf3", "Bb5 a6 z")
    fused = word_level(letters, cut=apart, glue=decoders.Fuse())
    yield Kind("words-characters", fused, texts=game, prompts=(*game, ""), gate=True)
