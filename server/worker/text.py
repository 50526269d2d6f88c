"""Text -> tokens, and where they are in the text; the text of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence as Many
from dataclasses import dataclass, field
from functools import cached_property

from tokenizers import Encoding, Tokenizer, models

from protocol.errors import BadRequest
from protocol.messages import Alternative, OfText, TokenizerInfo
from protocol.tokens import name_of_part
from server.catalogue.architecture import Architecture
from server.checkpoint.decoder import BYTE, read_stages
from server.checkpoint.tokenizer import ModelTokenizer, bound_cache, is_fault
from server.worker import spans
from server.worker.increments import ByteDecoder, CleanDecoder, Decoder, Increments, StageDecoder
from server.worker.words import Boundaries

MAX_TOKENS = 65_536
"""Largest number of tokens of a text that is tokenised or scored, since one reply has to hold them."""
REPLACEMENT = "\ufffd"
SPACE = "\u2581"
"""Character for a space, in the tokens of sentencepiece."""
ANCHORS = ("(", "“", "。", "\n", "a")
"""Texts after which a word is looked at without a space before it."""


@dataclass(frozen=True)
class Vocabulary:
    """Texts of a model's tokens, and which of them have a meaning of their own."""

    decoder: Decoder
    """Has no tokens yet."""
    ends: tuple[int, ...]
    """Tokens that end a text."""
    within: Decoder | None = None
    """Has taken a token, after which others are as within a text. None: they are the same at its beginning."""
    names: dict[str, int] = field(default_factory=dict)
    """Special tokens, which have no text but their names."""
    bytes_of: Callable[[int], bytes | None] = lambda _: None
    """Returns the bytes of a token, None where only its text is known."""

    def increments(self, prompt: Many[int] = ()) -> Increments:
        """Return a decoder for what is written after a prompt."""
        return Increments.after(self.decoder.fork(), prompt)

    def text_of(self, token: int) -> str:
        """Return the text of a token by itself, with a replacement character for a part of a character."""
        decoder = (self.within or self.decoder).fork()
        return decoder.push(token) + decoder.flush()

    @cached_property
    def _special(self) -> dict[int, str]:
        return {token: name for name, token in self.names.items()}

    def name_of(self, token: int, text: str) -> str:
        """Return what a token is called where its text does not say which it is; else nothing."""
        if token in self._special:
            return self._special[token]
        data = self.bytes_of(token) if REPLACEMENT in text else None
        if data is None or data == text.encode():
            return ""
        return name_of_part(data)

    def alternative(self, token: int, logprob: float) -> Alternative:
        """Return what is told of a possible token."""
        text = self.text_of(token)
        return Alternative(id=token, text=text, logprob=logprob, name=self.name_of(token, text))


@dataclass(frozen=True)
class Spans:
    """Tokens of a text and where each begins."""

    text: str
    ids: list[int]
    offsets: list[int]
    """Offsets in bytes: one for each token, and the end of the last."""


class Text:
    """A model's tokenizer, of any kind."""

    def __init__(self, made: ModelTokenizer, arch: Architecture) -> None:
        """Make it for a model's vocabulary, which may be larger than the tokenizer's, or smaller.

        Raises: BadModel if tokens cannot be decoded one by one, or the model lacks one that stands before every text.
        """
        made.check_vocabulary(arch.vocabulary)
        self._tokenizer = made.tokenizer
        self.before = made.before
        """Tokens that stand before every text."""
        self.start = arch.start
        """Token that a text begins with, where the model has one."""
        self._size = arch.vocabulary
        self._clean_up = made.clean_up
        self._words = [self._tokenizer.id_to_token(token) for token in range(self._size)]
        """Tokens as the tokenizer has them; None for the padding of the model's vocabulary."""
        self._bytes = [_bytes_of(word) for word in self._words] if made.byte_level else None
        decoder: Decoder
        if self._bytes is not None:
            self._all: Decoder = ByteDecoder(self._bytes)
            decoder = ByteDecoder([b"" if i in made.special else piece for i, piece in enumerate(self._bytes)])
            within = None
        else:
            stages = read_stages(self._tokenizer.decoder)
            self._all = StageDecoder(self._words, stages)
            table = [None if i in made.special else word for i, word in enumerate(self._words)]
            decoder = StageDecoder(table, stages.fork())
            begun = stages.fork()
            begun.push("\0")
            within = StageDecoder(table, begun)
        names = {str(self._tokenizer.id_to_token(token)): token for token in made.special}
        first = CleanDecoder(decoder) if made.clean_up else decoder
        self.vocabulary = Vocabulary(first, arch.ends, within, names, self._bytes_alone)
        self._ends = arch.ends
        self._chat_template, self._names = made.chat_template, dict(made.names)

    @cached_property
    def _without_specials(self) -> Tokenizer:
        """The same tokenizer, to which the names of special tokens are text like any other."""
        other = Tokenizer.from_str(self._tokenizer.to_str())
        other.encode_special_tokens = True
        bound_cache(other)
        return other

    def encode(self, text: str, *, specials: bool = True) -> list[int]:
        """Return a prompt's tokens, with those that the tokenizer puts before every text.

        An empty one gets the model's first token. `specials` says whether the names of special tokens become these.
        Raises: BadRequest if there are none, or for a token that the model does not have.
        """
        return [*self.before, *self._known(self._encoding(text, specials=specials).ids)] or self._empty()

    def forms(self, word: str) -> list[list[int]]:
        """Return a word's tokens at the start of a line, after a space, and after other characters.

        Raises: BadRequest if the model has none, since a vocabulary need not have every character.
        """
        encodings = [self._encoding(form) for form in (word, f" {word}")]
        forms = [self._known(encoding.ids) for encoding in encodings]
        if not all(forms) or any(self._unknown(encoding, word) for encoding in encodings):
            raise BadRequest(f"bad_words: this model has no token for {word!r}")
        if self._begins_with_space(forms[0]):
            forms += self._inside(word)
        return [form for i, form in enumerate(forms) if form not in forms[:i]]

    def stops(self, strings: Many[str]) -> frozenset[int]:
        """Return the special tokens whose names are stop strings.

        Raises: BadRequest for one that the model does not have.
        """
        names = self.vocabulary.names
        return frozenset(self._known([names[string] for string in strings if string in names]))

    def spans(self, request: OfText) -> Spans:
        """Return the tokens of a request that has a text or tokens.

        Raises: BadRequest for a token that does not exist, or too many.
        """
        if request.text is None:
            return self.spans_of_tokens(request.ids or [])
        return self.spans_of_text(request.text, specials=request.specials)

    def spans_of_tokens(self, tokens: Many[int]) -> Spans:
        """Return tokens with their text. Raises: BadRequest for a token that does not exist."""
        ids = self._checked(tokens)
        text, offsets = spans.of_tokens(self._all.fork(), ids, clean_up=self._clean_up)
        return Spans(text, ids, offsets)

    def spans_of_text(self, text: str, *, specials: bool, after: bool = False) -> Spans:
        """Return a text's tokens, with those that stand before every text; `after` a context those of its own alone.

        Raises: BadRequest for a token that does not exist, too many, or what cannot go on after a context.
        """
        if after and self._puts_space:
            return self._spans(text, (), *self._going_on(text, specials=specials))
        encoding = self._encoding(text, specials=specials)
        return self._spans(text, () if after else self.before, encoding.ids, encoding.offsets)

    def _spans(self, text: str, before: Many[int], ids: list[int], places: Many[tuple[int, int]]) -> Spans:
        offsets = [0] * len(before) + self._offsets(text, self._known(ids), places)
        ids = [*before, *ids]
        if len(ids) > MAX_TOKENS:
            raise BadRequest(f"the text must have at most {MAX_TOKENS} tokens, got {len(ids)}; send it in parts")
        if ids:
            offsets[-1] = len(text.encode())
        return Spans(text, ids, offsets)

    @cached_property
    def _puts_space(self) -> bool:
        """Whether the tokenizer puts a space before every text."""
        ids = self._encoding("a").ids
        return bool(ids) and ids[0] < self._size and self._begins_with_space(ids)

    def _going_on(self, text: str, *, specials: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the tokens of a text that goes on after another, and their places: no space is put before it."""
        for anchor in ANCHORS:
            encoding = self._encoding(anchor + text, specials=specials)
            places = [(begin - len(anchor), end - len(anchor)) for begin, end in encoding.offsets]
            first = next((i for i, (begin, _) in enumerate(places) if begin >= 0), len(places))
            if first and places[first - 1][1] <= 0:
                return encoding.ids[first:], places[first:]
        raise BadRequest(
            f"this model's tokenizer cannot tell how {text[:20]!r} goes on after a context; begin the text with a space"
        )

    @cached_property
    def boundaries(self) -> Boundaries:
        """Which tokens words begin with. Raises: BadRequest where the tokens do not say."""
        if self._bytes is None and not any(word and word.startswith(SPACE) for word in self._words):
            raise BadRequest(
                'score: unit="word" needs a model whose tokens have the spaces between words, and the tokens of this '
                'one do not; ask for unit="token"'
            )
        pieces = self._bytes or [_plain(word) for word in self._words]
        start = () if self.start is None else (self.start,)
        return Boundaries(pieces, {*start, *self._ends, *self.before})

    def about(self, context: int) -> TokenizerInfo:
        """Return what the model's files say of its texts."""
        return TokenizerInfo(
            context=context,
            before=list(self.before),
            bos="" if self.start is None else self._words[self.start] or "",
            eos=[name for token in self._ends if (name := self._words[token])],
            chat_template=self._chat_template,
            names=self._names,
        )

    def check(self, ids: list[int]) -> list[int]:
        """Return the ids, or the model's first token for none.

        Raises: BadRequest for one not in the vocabulary, or if there are none and the model has no first token.
        """
        return self._checked(ids) or list(self.before) or self._empty()

    def _checked(self, ids: Many[int]) -> list[int]:
        if ids and max(ids) >= self._size:
            raise BadRequest(f"a token of this model must be 0 to {self._size - 1}, got {max(ids)}")
        return list(ids)

    def _known(self, ids: list[int]) -> list[int]:
        """Return tokens of a text. Raises: BadRequest for one that the tokenizer has and the model does not."""
        if ids and max(ids) >= self._size:
            token = max(ids)
            raise BadRequest(
                f"{self._tokenizer.id_to_token(token)!r} is token {token} of this model's tokenizer, but the model has "
                f"only the tokens 0 to {self._size - 1}; leave it out"
            )
        return ids

    def _empty(self) -> list[int]:
        """Return an empty prompt's tokens. Raises: BadRequest."""
        if self.start is None:
            raise BadRequest(
                "the prompt is empty, and this model has neither a bos_token_id nor an eos_token_id to begin with; "
                "give it a prompt of at least one token"
            )
        return [self.start]

    def _encoding(self, text: str, *, specials: bool = True) -> Encoding:
        """Return the tokens of a text without any around it. Raises: BadRequest if it cannot be encoded.

        Two threads may use it. A batch of one, since that is what the library computes without holding up the others.
        """
        try:
            tokenizer = self._tokenizer if specials else self._without_specials
            return tokenizer.encode_batch([text], add_special_tokens=False)[0]
        except BaseException as e:
            if not is_fault(e):
                raise
            raise BadRequest(f"this model's tokenizer cannot encode the text: {e}") from None

    def _offsets(self, text: str, ids: list[int], places: Many[tuple[int, int]]) -> list[int]:
        if self._bytes is not None:
            exact = spans.by_bytes([self._bytes[token] for token in ids], text.encode())
            if exact is not None:
                return exact
        return spans.by_places(places, lambda i: self._bytes_in_text(ids[i]), text)

    def _bytes_in_text(self, token: int) -> int:
        """Return the size of a token within a text."""
        if self._bytes is not None:
            return len(self._bytes[token])
        word = self._words[token] or ""
        return 1 if BYTE.fullmatch(word) else len(self.vocabulary.text_of(token).encode())

    def _bytes_alone(self, token: int) -> bytes | None:
        """Return the bytes of a token, where it has any of its own."""
        if self._bytes is not None:
            return self._bytes[token]
        found = BYTE.fullmatch(self._words[token] or "")
        return bytes.fromhex(found[1]) if found else None

    def _inside(self, word: str) -> list[list[int]]:
        """Return a word's tokens where no space comes before it, for a tokenizer that puts one before every text."""
        for anchor in ANCHORS:
            encoding = self._encoding(anchor + word)
            places = encoding.offsets
            at = next((i for i, (begin, _) in enumerate(places) if begin >= len(anchor)), 0)
            form = self._known(encoding.ids[at:])
            if at and places[at - 1][1] <= len(anchor) and not self._begins_with_space(form):
                return [form]
        return []

    def _begins_with_space(self, ids: list[int]) -> bool:
        if self._bytes is not None:
            return self._bytes[ids[0]].startswith(b" ")
        return str(self._words[ids[0]]).startswith(SPACE)

    def _unknown(self, encoding: Encoding, word: str) -> bool:
        """Return whether a token stands for what the vocabulary does not have."""
        words: list[str] = encoding.tokens
        if isinstance(self._tokenizer.model, models.Unigram):  # whose encodings have the text instead of the token
            return words != [self._tokenizer.id_to_token(token) for token in encoding.ids]
        unknown: str | None = self._tokenizer.model.unk_token
        return unknown != word and unknown in words


def _plain(word: str | None) -> bytes:
    """Return the bytes of a token of sentencepiece within a text; none for padding of the vocabulary."""
    if word is None:
        return b""
    byte = BYTE.fullmatch(word)
    return bytes.fromhex(byte[1]) if byte else word.replace(SPACE, " ").encode()


def _bytes_of(word: str | None) -> bytes:
    """Return the bytes of a token, as the byte-level decoder does; none for padding of the vocabulary."""
    if word is None:
        return b""
    try:
        return bytes(BYTE_OF[c] for c in word)
    except KeyError:  # an added token: its text is as it is written
        return word.encode()


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's printable character -> byte: the byte itself if printable, else the next free one from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_alphabet()
