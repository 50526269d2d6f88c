"""A model's tokenizer from its folder: what transformers' AutoTokenizer makes of it, without transformers.

It runs no code of the folder and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from protocol.errors import BadModel

END_OF_TEXT = "<|endoftext|>"
CACHED_WORDS = 1024
"""Number of words that the tokenizer remembers. With its default of 10,000 it grows for hours, and is no faster."""


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
    """Whether it is byte-level BPE, whose tokens are bytes."""
    clean_up: bool
    """Whether spaces before punctuation go when tokens are decoded, as transformers' clean_up_tokenization_spaces."""
    notices: tuple[str, ...]
    """What the loader's user should know."""


def read_tokenizer(folder: Path) -> ModelTokenizer:
    """Return the tokenizer of a model's folder.

    Raises: BadModel, which says what is missing or not understood and what to do.
    """
    tokenizer = _read(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.model._resize_cache(CACHED_WORDS)
    added = tokenizer.get_added_tokens_decoder()
    special = frozenset(index for index, token in added.items() if token.special)
    return ModelTokenizer(tokenizer, before=(), special=special, byte_level=True, clean_up=False, notices=())


def _read(folder: Path) -> Tokenizer:
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            tokenizer.add_special_tokens([END_OF_TEXT])
    except Exception as e:  # noqa: BLE001 - tokenizers raises plain Exception
        raise BadModel(f"the tokenizer cannot be read: {e}") from None
    if not isinstance(tokenizer.model, models.BPE) or not isinstance(tokenizer.decoder, decoders.ByteLevel):
        raise BadModel("its tokenizer is not byte-level BPE, which GPT-2 uses")
    return tokenizer
