"""Sequences: stop strings, pieces, ends."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given, strategies as st

from protocol.messages import Generate
from server.worker.increments import ByteDecoder, CleanDecoder, Decoder
from server.worker.sampling import sample
from server.worker.sequence import Generation, Sequence
from server.worker.text import Vocabulary

VOCABULARY = 257
TABLE = [bytes([i]) for i in range(256)] + [b""]
END = 256


def make(
    decoder: Decoder | None = None,
    stops: frozenset[int] = frozenset(),
    prompt: bytes = b"A",
    **settings: object,
) -> Sequence:
    request = Generate(prompt="", **({"max_new_tokens": 1000} | settings))  # type: ignore[arg-type]
    return Sequence(
        Generation(
            id=1,
            group=0,
            request=request,
            prompt=list(prompt),
            dropped=0,
            seed=0,
            bad_words=[],
            stops=stops,
            vocabulary=Vocabulary(decoder or ByteDecoder(TABLE), (END,)),
            received=time.monotonic(),
        )
    )


def feed(sequence: Sequence, data: bytes) -> list[str]:
    """Append bytes as tokens, taking a piece after each; return the pieces' texts."""
    sequence.begin(0)
    pieces = []
    for byte in data:
        sequence.advance([byte], 1, 0.0)
        if piece := sequence.take_piece():
            pieces.append(piece.text)
        if sequence.finished:
            break
    return pieces


@given(st.text("abx", max_size=30), st.lists(st.text("abx", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_stop_string_ends_the_text_before_it_and_is_never_sent(text: str, stops: list[str]) -> None:
    sequence = make(stop=stops)
    pieces = feed(sequence, text.encode())
    if not sequence.finished:
        sequence.end("cancelled")
        if piece := sequence.take_piece():
            pieces.append(piece.text)
    # The plain reading: the text ends at the first moment at which it contains a stop string.
    expected = text
    for end in range(len(text) + 1):
        found = [text[:end].find(s) for s in stops if s in text[:end]]
        if found:
            expected = text[: min(found)]
            break
    assert "".join(pieces) == expected
    assert sequence.text == expected


@given(
    st.text("abx", max_size=30), st.lists(st.text("abx", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(0, 12),
)  # fmt: skip
def test_a_stop_string_counts_from_the_least_number_of_tokens_on(text: str, stops: list[str], least: int) -> None:
    """One that is complete before stays in the text; one that begins before and ends later ends the text."""
    sequence = make(stop=stops, min_new_tokens=least)
    pieces = feed(sequence, text.encode())
    if not sequence.finished:
        sequence.end("cancelled")
        if piece := sequence.take_piece():
            pieces.append(piece.text)
    ends = [
        (end, end - len(stop)) for end in range(max(least, 1), len(text) + 1) for stop in stops
        if text[:end].endswith(stop)
    ]  # fmt: skip
    expected = text[: min(ends)[1]] if ends else text
    assert sequence.text == "".join(pieces) == expected
    assert not ends or sequence.new_tokens >= least


def test_a_special_token_that_stops_does_not_come_before_the_least_number_of_tokens() -> None:
    sequence = make(min_new_tokens=2, strategy="greedy", stops=frozenset({3}))
    logits = np.zeros((1, VOCABULARY), np.float32)
    logits[0, [3, 5]] = 2, 1
    sequence.begin(0)
    for _ in range(3):
        (token,) = sample(logits.copy(), [sequence.sampler], [sequence.ids])
        assert isinstance(token, int)
        sequence.advance([token], 1, 0.0)
    assert sequence.ids[1:] == [5, 5, 3] and sequence.finished == "stop"


@given(st.text(max_size=20))
def test_pieces_never_split_a_character(text: str) -> None:
    sequence = make()
    pieces = feed(sequence, text.encode())
    assert "".join(pieces) == text
    assert "\ufffd" in text or all("\ufffd" not in p for p in pieces)


def test_an_unfinished_character_at_the_end_becomes_a_replacement() -> None:
    sequence = make(max_new_tokens=3)
    assert feed(sequence, "a€".encode()) == ["a", "", "\ufffd"]
    assert sequence.finished == "length"
    assert sequence.text == "a\ufffd"


def test_end_of_text_ends_it_unless_ignored() -> None:
    sequence = make()
    sequence.begin(0)
    sequence.advance([97], 1, 0.0)
    sequence.advance([END], 1, 0.0)
    assert (sequence.finished, sequence.text) == ("eos", "a")
    sequence = make(ignore_eos=True)
    sequence.begin(0)
    sequence.advance([END], 1, 0.0)
    assert sequence.finished is None


def test_a_special_token_can_be_a_stop_string() -> None:
    sequence = make(stops=frozenset({END}), stop=["<end>"], ignore_eos=True)
    assert feed(sequence, b"a") == ["a"]
    sequence.advance([END], 1, 0.0)
    assert (sequence.finished, sequence.text, sequence.ids[-1]) == ("stop", "a", END)


def test_a_stop_string_that_only_the_end_of_the_text_shows() -> None:
    sequence = make(CleanDecoder(ByteDecoder(TABLE)), stop=[" '"], max_new_tokens=4)
    assert feed(sequence, b"it '") == ["i", "t", "", ""], "it could become it's"
    assert (sequence.finished, sequence.text) == ("stop", "it")
    assert "".join(feed(make(CleanDecoder(ByteDecoder(TABLE)), stop=[" '"], max_new_tokens=5), b"it 's")) == "it's"


def test_a_character_that_the_prompt_begins_is_written_whole() -> None:
    begun, rest = "€".encode()[:2], "€".encode()[2:]
    assert "".join(feed(make(prompt=begun), rest + b"!")) == "€!"
    assert "".join(feed(make(prompt=begun), b"!?")) == "!?"


def test_the_ledger_counts() -> None:
    sequence = make(max_new_tokens=3)
    feed(sequence, b"abc")
    ledger = sequence.ledger()
    assert (ledger.prompt_tokens, ledger.new_tokens, ledger.mean_batch) == (1, 3, 1.0)
    assert ledger.first_token_ms == ledger.queue_ms + ledger.tokenise_ms + ledger.prefill_ms
