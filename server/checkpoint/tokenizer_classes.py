"""What each of transformers' tokenizer classes makes of a vocabulary.

In transformers 5 a class takes the vocabulary, the merges and the template from tokenizer.json, and makes everything
else itself: the normalizer, the pre-tokenizer and the decoder of the file are not used. PreTrainedTokenizerFast alone
takes the file as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from protocol.errors import BadModel
from server.checkpoint.spiece import BPE, CONTROL, UNIGRAM, USER_DEFINED, Pieces
from server.checkpoint.tokenizer_settings import Token

END_OF_TEXT = "<|endoftext|>"
SPACE = "▁"
MAX_EXTRA_IDS, MAX_PIECE = 10_000, 1000
T5_UNKNOWN, ALBERT_UNKNOWN = 2, 1
ROBERTA_UNKNOWN = 3
"""Tokens that stand for what a vocabulary lacks: the class says which, whatever the vocabulary says."""
Names = dict[str, Token | None]


@dataclass(frozen=True)
class Source:
    """What a class makes a tokenizer of."""

    vocab: Any
    """token -> id, or tokens with their scores."""
    merges: list[tuple[str, str]]
    charsmap: bytes | None
    names: Names
    options: dict[str, Any]
    unknown: int | None = None
    """The vocabulary's own token for what it lacks."""

    def text(self, name: str) -> str:
        """Return the text of a named token. Raises: BadModel if it has none."""
        token = self.names.get(name)
        if token is None:
            raise BadModel(f"its tokenizer needs a {name}, and tokenizer_config.json sets none")
        return str(token)

    @property
    def scheme(self) -> str:
        return "always" if self.options.get("add_prefix_space", True) else "never"


@dataclass(frozen=True)
class Kind:
    """One class."""

    model: Any
    files: tuple[str, ...]
    """What it is read from where there is no tokenizer.json."""
    make: Callable[[Source], Tokenizer]
    names: Names
    """Special tokens that it has unless a file says otherwise."""
    template: tuple[str, ...] | None = None
    """What it puts around a text, whatever tokenizer.json says: names of tokens, and "$A" for the text."""
    pieces: Callable[[list[tuple[str, float]], Source], list[tuple[str, float]]] | None = None
    """How it orders the pieces of a sentencepiece model, where it does not take them as they are."""
    unknown: int | None = None
    """The token for what the vocabulary lacks, where the class has one of its own."""


def _gpt2(source: Source) -> Tokenizer:
    model = models.BPE(
        vocab=source.vocab, merges=source.merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=source.options.get("add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _bert(source: Source) -> Tokenizer:
    unknown = source.text("unk_token")
    if unknown not in source.vocab:
        raise BadModel(f"its tokenizer's vocabulary has no {unknown}, which stands for every word that it lacks")
    tokenizer = Tokenizer(models.WordPiece(source.vocab, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=source.options.get("tokenize_chinese_chars", True),
        strip_accents=source.options.get("strip_accents"),
        lowercase=source.options.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _unigram(source: Source, unknown: int, scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram(source.vocab, unk_id=unknown, byte_fallback=False))
    if source.charsmap:
        tokenizer.normalizer = normalizers.Precompiled(source.charsmap)
    space = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    return tokenizer


def _t5(source: Source) -> Tokenizer:
    return _unigram(source, T5_UNKNOWN, "always")


def _albert(source: Source) -> Tokenizer:
    tokenizer = _unigram(source, ALBERT_UNKNOWN, source.scheme)
    steps = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not source.options.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if source.options.get("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    if source.charsmap:
        steps.append(normalizers.Precompiled(source.charsmap))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        special_tokens=[
            ("[CLS]", tokenizer.token_to_id(source.text("cls_token"))),
            ("[SEP]", tokenizer.token_to_id(source.text("sep_token"))),
        ],
    )
    return tokenizer


def _xlm_roberta(source: Source) -> Tokenizer:
    return _unigram(source, ROBERTA_UNKNOWN, source.scheme)


def _camembert(source: Source) -> Tokenizer:
    unknown = str(source.names.get("unk_token"))
    found = (index for index, (piece, _) in enumerate(source.vocab) if piece == unknown)
    return _unigram(source, next(found, 0), source.scheme)


def _llama(source: Source) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=source.vocab, merges=source.merges, fuse_unk=True, byte_fallback=True))
    prefix = source.options.get("add_prefix_space")
    prefix = prefix if prefix is not None else True
    scheme = "always" if source.options.get("legacy", False) else "first"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=SPACE, prepend_scheme=scheme if prefix else "never", split=False
    )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _t5_pieces(pieces: list[tuple[str, float]], source: Source) -> list[tuple[str, float]]:
    return pieces + [(token, 0.0) for token in reversed(_extra_ids(source.options))]


def _xlm_roberta_pieces(pieces: list[tuple[str, float]], source: Source) -> list[tuple[str, float]]:
    first = [(source.text(name), 0.0) for name in ("bos_token", "pad_token", "eos_token", "unk_token")]
    return [*first, *pieces[3:], (source.text("mask_token"), 0.0)]


def _camembert_pieces(pieces: list[tuple[str, float]], source: Source) -> list[tuple[str, float]]:
    pad, unknown = source.text("pad_token"), source.text("unk_token")
    first = [("<s>NOTUSED", 0.0), (pad, 0.0), ("</s>NOTUSED", 0.0), (unknown, 0.0), ("<unk>NOTUSED", -100.0)]
    return [*first, *pieces[1:], (source.text("mask_token"), 0.0)]


def _extra_ids(options: dict[str, Any]) -> list[str]:
    number = options.get("extra_ids", 100)
    if not isinstance(number, int) or not 0 <= number <= MAX_EXTRA_IDS:
        raise BadModel(f"tokenizer_config.json has extra_ids {number!r:.40}; it must be 0 to {MAX_EXTRA_IDS}")
    return [f"<extra_id_{index}>" for index in range(number)]


_BERT: Names = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip
_ALBERT: Names = _BERT | {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "<unk>", "pad_token": "<pad>"}
_ROBERTA: Names = {
    "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>",
    "pad_token": "<pad>", "mask_token": "<mask>",
}  # fmt: skip
_AROUND = ("bos_token", "$A", "eos_token")
KINDS = {
    "GPT2Tokenizer": Kind(
        models.BPE, ("vocab.json", "merges.txt"), _gpt2,
        {"unk_token": END_OF_TEXT, "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": None},
    ),
    "BertTokenizer": Kind(models.WordPiece, ("vocab.txt",), _bert, _BERT, ("cls_token", "$A", "sep_token")),
    "T5Tokenizer": Kind(
        models.Unigram, ("spiece.model",), _t5, {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        ("$A", "eos_token"), _t5_pieces, T5_UNKNOWN,
    ),
    "LlamaTokenizer": Kind(
        models.BPE, ("tokenizer.model",), _llama, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    ),
    "AlbertTokenizer": Kind(models.Unigram, ("spiece.model",), _albert, _ALBERT, unknown=ALBERT_UNKNOWN),
    "XLMRobertaTokenizer": Kind(
        models.Unigram, ("sentencepiece.bpe.model",), _xlm_roberta, _ROBERTA, _AROUND, _xlm_roberta_pieces,
        ROBERTA_UNKNOWN,
    ),
    "CamembertTokenizer": Kind(
        models.Unigram, ("sentencepiece.bpe.model",), _camembert,
        _ROBERTA | {"mask_token": AddedToken("<mask>", lstrip=True, special=True)}, _AROUND, _camembert_pieces,
    ),
}  # fmt: skip
"""The classes by name, without the `Fast` that many have at the end."""


def source_of_pieces(kind: Kind, found: Pieces, names: Names, options: dict[str, Any]) -> Source:
    """Return what a class is made of where it reads a sentencepiece model. Raises: BadModel."""
    wanted = BPE if kind.model is models.BPE else UNIGRAM
    if found.algorithm != wanted:
        raise BadModel(
            f"{kind.files[0]} is not a model of {kind.model.__name__}, which its tokenizer_class reads; save it once "
            "as tokenizer.json with tokenizer_class PreTrainedTokenizerFast"
        )
    source = Source(found.pieces, [], found.charsmap, names, options, found.unknown)
    if kind.pieces:
        moved = kind.pieces(found.pieces, source)
        unknown = found.unknown if moved[: len(found.pieces)] == found.pieces else None
        return replace(source, vocab=moved, unknown=unknown)
    if wanted == UNIGRAM:
        return source
    vocab = {piece: index for index, (piece, _) in enumerate(found.pieces)}
    return replace(source, vocab=vocab, merges=_merges(vocab))


def unnamed(class_name: str, listed: list[Token] | None, options: dict[str, Any]) -> list[Token]:
    """Return the special tokens of a class that have no name, where no file lists any under extra_special_tokens."""
    if class_name == "T5Tokenizer":
        ids, tokens = _extra_ids(options), list(listed or [])
        have = [token for token in tokens if "<extra_id_" in str(token)]
        if have and ids and len(have) != len(ids):
            raise BadModel(f"tokenizer_config.json has extra_ids {len(ids)}, and {len(have)} such tokens")
        return tokens if have else [*tokens, *ids]
    if class_name == "CamembertTokenizer" and listed is None:
        return ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"]
    return list(listed or [])


def symbols(found: Pieces) -> list[Token]:
    """Return the control symbols and the user's own symbols of a sentencepiece model."""
    return [
        AddedToken(piece, normalized=False, special=kind == CONTROL)
        for (piece, _), kind in zip(found.pieces, found.kinds, strict=True)
        if kind in (CONTROL, USER_DEFINED)
    ]


def _merges(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Return every pair of pieces that is a piece, in the order of the pieces. Raises: BadModel for a huge piece."""
    if max(map(len, vocab), default=0) > MAX_PIECE:
        raise BadModel(f"its tokenizer has a piece of more than {MAX_PIECE} characters")
    ranked = [
        (rank, at, len(piece) - at, piece)
        for piece, rank in vocab.items()
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab
    ]
    return [(piece[:at], piece[at:]) for _, at, _, piece in sorted(ranked)]
