"""A model's tokenizer from its folder: what transformers 5's AutoTokenizer makes of it, without transformers.

It runs no code of the folder and writes nothing. What is not understood is refused, since other tokens than a model
was trained with are the one fault that nobody sees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from protocol.errors import BadModel
from server.catalogue.files import NO_TOKENIZER, has_tokenizer
from server.checkpoint.decoder import read_stages
from server.checkpoint.spiece import read_pieces
from server.checkpoint.tokenizer_classes import (
    END_OF_TEXT,
    KINDS,
    Kind,
    Names,
    Source,
    source_of_pieces,
    symbols,
    unnamed,
)
from server.checkpoint.tokenizer_json import Written, before_text, charsmaps, read_whole
from server.checkpoint.tokenizer_settings import (
    MAX_TOKENIZER_BYTES,
    NAMES,
    TOKENIZER_JSON,
    Settings,
    Token,
    read_chat_template,
    read_settings,
)

CACHED_WORDS = 1024
"""Number of words that the tokenizer remembers. With its default of 10,000 it grows for hours, and is no faster."""
AS_IT_IS = "PreTrainedTokenizerFast"
WHOLE = {AS_IT_IS, "TokenizersBackend"}
"""Classes that take tokenizer.json as it is."""
ELSEWHERE = ("tokenizer.model", "tekken.json", "tiktoken.model")
"""Where there is no tokenizer.json, transformers reads these before the files that the class has."""


@dataclass(frozen=True)
class ModelTokenizer:
    """A tokenizer that is ready to use, and what else its files say about texts."""

    tokenizer: Tokenizer
    """Cuts nothing off and pads nothing; its cache is bounded."""
    before: tuple[int, ...]
    """Tokens that it puts before a text: [CLS], or bos. What it puts after one is left out."""
    special: frozenset[int]
    """Tokens whose text is left out when tokens are decoded."""
    byte_level: bool
    """Whether its tokens are bytes, as those of byte-level BPE are."""
    clean_up: bool
    """Whether spaces before punctuation go when tokens are decoded, as transformers' clean_up_tokenization_spaces."""
    notices: tuple[str, ...]
    """What the loader's user should know."""
    chat_template: str = ""
    """What makes a prompt of a conversation, in Jinja."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Special tokens as that may ask for them: {"bos_token": "<s>"}, without those that there are not."""

    def check_vocabulary(self, size: int) -> None:
        """Check that a model of `size` tokens has those that stand before every text. Raises: BadModel."""
        if lacking := [token for token in self.before if token >= size]:
            raise BadModel(
                f"its tokenizer puts {self.tokenizer.id_to_token(lacking[0])!r} before every text, token {lacking[0]}, "
                f"and the model has only the tokens 0 to {size - 1}: take the tokenizer that it was trained with"
            )


@dataclass(frozen=True)
class Made:
    """A tokenizer with everything that is added to its vocabulary."""

    tokenizer: Tokenizer
    special: set[str]
    """Texts of the tokens that are listed as special somewhere, whatever else lists them."""
    names: dict[str, str]
    """Those that have a name, by that."""
    notices: list[str]


def read_tokenizer(folder: Path) -> ModelTokenizer:
    """Return the tokenizer of a model's folder.

    Raises: BadModel, which says what is missing or not understood and what to do.
    """
    try:
        return _read(folder)
    except (BadModel, OSError):
        raise
    except BaseException as e:
        if not is_fault(e):
            raise
        raise BadModel(f"the tokenizer cannot be read: {e}") from None


def is_fault(error: BaseException) -> bool:
    """Return whether the library may have raised this for what it was given: its Rust panics are not Exceptions."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def bound_cache(tokenizer: Tokenizer) -> None:
    """Bound the cache of those kinds of tokenizer that have one."""
    if hasattr(tokenizer.model, "_resize_cache"):
        tokenizer.model._resize_cache(CACHED_WORDS)


def _read(folder: Path) -> ModelTokenizer:
    if not has_tokenizer(folder):
        raise BadModel(NO_TOKENIZER)
    settings = read_settings(folder)
    name = _class_name(settings)
    whole = read_whole(folder / TOKENIZER_JSON, settings.whole) if settings.whole is not None else None
    written = Written(whole) if whole is not None else None
    if name in WHOLE:
        if whole is None:
            raise BadModel(f"tokenizer_class {name} reads {TOKENIZER_JSON}, which is missing; {_instead(folder)}")
        listed = settings.options.get("additional_special_tokens") or []
        extra = settings.extra if settings.extra is not None else listed
        made = _finish(whole, settings, settings.named, extra, None)
    else:
        made = _rebuild(folder, name, settings, whole)
    tokenizer, notices = made.tokenizer, made.notices
    tokenizer.no_truncation()
    tokenizer.no_padding()
    bound_cache(tokenizer)
    bpe = isinstance(tokenizer.model, models.BPE)
    forced = settings.options.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
    if not byte_level:
        read_stages(tokenizer.decoder)  # so that one that is not known is refused before any weights come
    notices += _normalized(tokenizer)
    if written is not None:
        prefix = settings.options.get("add_prefix_space", False)
        notices += written.differences(tokenizer, name, AS_IT_IS, prefix=prefix, as_it_is=name in WHOLE)
    return ModelTokenizer(
        tokenizer,
        before_text(tokenizer.post_processor),
        frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.content in made.special),
        byte_level,
        clean_up=bool(settings.options.get("clean_up_tokenization_spaces", False)) and (not bpe or bool(forced)),
        notices=tuple(notices),
        chat_template=read_chat_template(folder, settings),
        names=made.names,
    )


def _class_name(settings: Settings) -> str:
    """Return the class without `Fast`, as AutoTokenizer chooses it for a GPT-2. Raises: BadModel for all others."""
    given = settings.class_name or "GPT2Tokenizer"
    if not isinstance(given, str):
        raise BadModel("tokenizer_class must be a text")
    name = given if given in WHOLE else given.removesuffix("Fast")
    if name == "LlamaTokenizer" and '"ByteLevel"' in json.dumps(settings.whole):
        return AS_IT_IS
    if name not in KINDS and name not in WHOLE:
        raise BadModel(
            f"tokenizer_class {given} is not read; these are: {', '.join([AS_IT_IS, *KINDS])}. Where a "
            f"{TOKENIZER_JSON} holds the same tokenizer, set tokenizer_class to {AS_IT_IS} in tokenizer_config.json"
        )
    return name


def _rebuild(folder: Path, name: str, settings: Settings, whole: Tokenizer | None) -> Made:
    """Return what a class makes of a vocabulary."""
    kind = KINDS[name]
    names = kind.names | settings.named
    listed = settings.options.get("additional_special_tokens")
    if whole is not None:
        source = _source_of_json(name, kind, settings, whole, names)
    else:
        missing = [file for file in kind.files if not (folder / file).is_file()]
        if missing:
            raise BadModel(f"{name} reads {' and '.join(kind.files)}, and {missing[0]} is missing; {_instead(folder)}")
        if found := [file for file in ELSEWHERE if file not in kind.files and (folder / file).is_file()]:
            raise BadModel(f"transformers reads {found[0]} before {kind.files[0]}: remove one of them")
        if kind.files[0].endswith(".model"):
            pieces = read_pieces(folder / kind.files[0])
            listed = symbols(pieces)
            source = source_of_pieces(kind, pieces, names, settings.options)
        else:
            source = _source_of_files(folder, kind, names, settings.options)
    tokenizer = kind.make(source)
    if whole is not None and whole.post_processor is not None:
        tokenizer.post_processor = whole.post_processor
    extra = settings.extra if settings.extra is not None else unnamed(name, listed, settings.options)
    made = _finish(tokenizer, settings, names, extra, kind)
    made.notices.extend(_unknown(kind, source))
    return made


def _source_of_json(name: str, kind: Kind, settings: Settings, whole: Tokenizer, names: Names) -> Source:
    """Return what a class takes from tokenizer.json. Raises: BadModel where it would make something else of it."""
    own = type(whole.model).__name__
    byte_level = '"ByteLevel"' in json.dumps((settings.whole or {}).get("pre_tokenizer"))
    if not isinstance(whole.model, kind.model) or (name == "GPT2Tokenizer" and not byte_level):
        raise BadModel(
            f"{TOKENIZER_JSON} holds a tokenizer ({own}) that {name} would read as another one: set tokenizer_class "
            f"to {AS_IT_IS} in tokenizer_config.json"
        )
    model = (settings.whole or {})["model"]
    vocab = [tuple(item) for item in model["vocab"]] if isinstance(model["vocab"], list) else model["vocab"]
    merges: Any = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", [])]
    merges = [tuple(merge) for merge in merges]
    charsmap = next(iter(charsmaps((settings.whole or {}).get("normalizer"))), None)
    return Source(vocab, merges, charsmap, names, settings.options, model.get("unk_id"))


def _source_of_files(folder: Path, kind: Kind, names: Names, options: dict[str, Any]) -> Source:
    for file in kind.files:
        if (folder / file).stat().st_size > MAX_TOKENIZER_BYTES:
            raise BadModel(f"{file} is over {MAX_TOKENIZER_BYTES} bytes")
    paths = [str(folder / file) for file in kind.files]
    if kind.model is models.BPE:
        vocab, merges = kind.model.read_file(*paths)
        return Source(vocab, merges, None, names, options)
    return Source(kind.model.read_file(*paths), [], None, names, options)


def _finish(tokenizer: Tokenizer, settings: Settings, names: Names, extra: list[Token], kind: Kind | None) -> Made:
    """Add the tokens beside the vocabulary, in transformers' order, which numbers them, and the template."""
    options = settings.options
    padding = (settings.whole or {}).get("padding")
    if padding and "pad_token" not in names:
        names = names | {"pad_token": padding["pad_token"]}
    named: Names = {name: names.get(name) for name in NAMES} | settings.specific
    new: list[Token] = settings.own.copy() if kind is None else []
    new += [settings.added[index] for index in sorted(settings.added)]
    known = {str(token) for token in new}
    for token in (*named.values(), *extra):
        if token is not None and str(token) not in known and token not in new:
            new.append(token)
    explicit = "add_bos_token" in options or "add_eos_token" in options
    notices = _without_end(new, tokenizer, settings, extra) if not explicit else []
    texts = {str(token) for token in named.values() if token}
    for index, token in enumerate(new):
        if isinstance(token, str):
            new[index] = AddedToken(token, special=True)
        elif token.content in texts:
            token.special = True
    special = {token.content for token in new if isinstance(token, AddedToken) and token.special}
    last = {str(token): token for token in new}  # the library would keep the flags of the others, too
    if last:
        tokenizer.add_tokens(list(last.values()))
    if kind is not None and kind.template is not None:
        tokenizer.post_processor = _template(tokenizer, kind.template, named)
    elif explicit or tokenizer.post_processor is None:
        start = "bos_token" if options.get("add_bos_token") and named.get("bos_token") else None
        end = "eos_token" if options.get("add_eos_token") and named.get("eos_token") else None
        tokenizer.post_processor = _template(tokenizer, tuple(filter(None, (start, "$A", end))), named)
    return Made(tokenizer, special, {name: str(token) for name, token in named.items() if token is not None}, notices)


def _without_end(new: list[Token], tokenizer: Tokenizer, settings: Settings, extra: list[Token]) -> list[str]:
    """Take the end of text away where only its class has it, it would be the last token, and the model has no such."""
    said = {str(token) for token in (*settings.named.values(), *settings.specific.values(), *extra)}
    if not new or new[-1] != END_OF_TEXT or END_OF_TEXT in said:
        return []
    unknown = [token for token in new if tokenizer.token_to_id(str(token)) is None]
    if new[-1] not in unknown or tokenizer.get_vocab_size() + len(unknown) <= settings.rows:
        return []
    new.pop()
    return [f"the model has no token {END_OF_TEXT}: in a prompt it is text like any other"]


def _unknown(kind: Kind, source: Source) -> list[str]:
    """Say what stands for a character without a token, where the class takes another than the vocabulary's own."""
    if kind.unknown is None or kind.unknown == source.unknown or source.unknown is None:
        return []
    taken, own = (source.vocab[index][0] for index in (kind.unknown, source.unknown))
    return [f"a character that the vocabulary lacks becomes {taken}, as in transformers 5, and not its own {own}"]


def _template(tokenizer: Tokenizer, parts: tuple[str, ...], named: Names) -> processors.TemplateProcessing:
    if lacking := [part for part in parts if part != "$A" and named.get(part) is None]:
        raise BadModel(f"its tokenizer puts a {lacking[0]} around a text, and tokenizer_config.json sets none")
    texts = [part if part == "$A" else str(named[part]) for part in parts]
    tokens = [(text, tokenizer.token_to_id(text)) for text in dict.fromkeys(texts) if text != "$A"]
    return processors.TemplateProcessing(single=texts, special_tokens=tokens)


def _normalized(tokenizer: Tokenizer) -> list[str]:
    """Say which added token is found by another text than its own, where versions of the library tell them otherwise.

    Raises: BadModel where they find them otherwise, too.
    """
    normalizer = tokenizer.normalizer
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.normalized]
    if normalizer is None or not added:
        return []
    if b'"Prepend"' in normalizer.__getstate__():
        raise BadModel(
            f"its tokenizer puts a text before each text, and has the added token {added[0]!r:.40} that is found in "
            "what comes out, which versions of `tokenizers` do differently: set its `normalized` to false"
        )
    other = [text for text in added if normalizer.normalize_str(text) != text]
    if not other:
        return []
    return [f"the added token {other[0]!r:.40} is written as in its file (transformers 5 writes it normalized)"]


def _instead(folder: Path) -> str:
    """Say which class would read what is there."""
    fits = [name for name, kind in KINDS.items() if all((folder / file).is_file() for file in kind.files)]
    fits = [AS_IT_IS] if (folder / TOKENIZER_JSON).is_file() else fits
    return f"set tokenizer_class in tokenizer_config.json to the class it was trained with (here {' or '.join(fits)})"
