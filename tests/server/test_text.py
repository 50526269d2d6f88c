"""Pieces of the tokenizer: whole characters, the same text as decoding all at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer

from protocol.errors import BadModel, BadRequest
from protocol.messages import Tokenize
from protocol.tokens import bytes_of
from server.catalogue.architecture import read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.checkpoint.tokenizer import read_tokenizer
from server.checkpoint.tokenizer_classes import END_OF_TEXT
from server.worker import words
from server.worker.text import Text

ARCH = read_architecture(DEMO_FOLDER)
TEXT = Text(read_tokenizer(DEMO_FOLDER), ARCH)
REFERENCE = Tokenizer.from_file(str(DEMO_FOLDER / "tokenizer.json"))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_encoding_and_decoding_gives_the_text_back(text: str) -> None:
    ids = TEXT.encode(text)
    increments = TEXT.vocabulary.increments()
    pieces = [increments.push(token) for token in ids] + [increments.flush()]
    if text:
        assert "".join(pieces) == text.replace(END_OF_TEXT, "")


@settings(max_examples=300)
@given(st.lists(st.integers(0, ARCH.vocabulary - 1), max_size=30))
def test_any_tokens_decode_as_the_library_decodes_them(ids: list[int]) -> None:
    increments = TEXT.vocabulary.increments()
    assert "".join([increments.push(t) for t in ids] + [increments.flush()]) == REFERENCE.decode(ids)


def test_an_empty_prompt_begins_with_the_model_s_first_token() -> None:
    assert TEXT.encode("") == [ARCH.start] == TEXT.check([])
    without = Text(read_tokenizer(DEMO_FOLDER), replace(ARCH, start=None))
    refused = "the prompt is empty, and this model has neither a bos_token_id nor"
    with pytest.raises(BadRequest, match=refused):
        without.encode("")
    with pytest.raises(BadRequest, match=refused):
        without.check([])


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(BadRequest, match="0 to 4095"):
        TEXT.check([1, 4096])


def test_vocab_and_merges_make_the_same_tokenizer(tmp_path: Path) -> None:
    model = json.loads(REFERENCE.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    other = Text(read_tokenizer(tmp_path), ARCH)
    for sentence in ("Shall I compare thee", "  naïve — “quotes”\n\n\t€ 42", END_OF_TEXT + "x"):
        assert other.encode(sentence) == TEXT.encode(sentence)


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadModel, match="cannot be read"):
        Text(read_tokenizer(tmp_path), ARCH)
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(
            {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
        )
    )
    with pytest.raises(BadModel, match="WordLevel"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert Text(read_tokenizer(tmp_path), ARCH).encode("a") == [0]


def test_a_tokenizer_may_have_more_tokens_than_the_model() -> None:
    few = Text(read_tokenizer(DEMO_FOLDER), replace(ARCH, vocabulary=300))
    assert few.encode("a b") == TEXT.encode("a b")
    for use in (few.encode, few.forms, lambda word: few.spans(Tokenize(text=word))):
        with pytest.raises(BadRequest, match=r"'\w+' is token \d+ of this model's tokenizer, but the model has only"):
            use("Shall")
    with pytest.raises(BadRequest, match="must be 0 to 299, got 4000"):
        few.check([4000])


def test_a_model_may_have_more_tokens_than_the_tokenizer() -> None:
    padded = Text(read_tokenizer(DEMO_FOLDER), replace(ARCH, vocabulary=4200))
    increments = padded.vocabulary.increments()
    ids = [*TEXT.encode("a b"), 4199]
    assert "".join(map(increments.push, padded.check(ids))) + increments.flush() == "a b"
    assert padded.spans(Tokenize(ids=ids)).offsets == [0, 1, 3, 3]
    assert padded.vocabulary.text_of(4199) == ""


def test_every_token_has_a_name_of_its_own() -> None:
    """Parts of characters all read as replacement characters, and special tokens as nothing."""
    told = [TEXT.vocabulary.alternative(token, -1.0) for token in range(ARCH.vocabulary)]
    assert len({one.name or one.text for one in told}) == ARCH.vocabulary
    end = told[ARCH.ends[0]]
    assert (end.text, end.name) == ("", END_OF_TEXT)
    assert [one.text for one in told if one.name == r"bytes:\xe2"] == ["\ufffd"]
    assert all(one.name == "" for one in told if one.text and "\ufffd" not in one.text)
    assert [bytes_of(name) for name in ("bytes:\\xe2\\x80", "bytes:", "é")] == [b"\xe2\x80", b"bytes:", "é".encode()]


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab.'é日🙂 \n\t\u00a0\u3000"), max_size=30) | st.text(max_size=30))
def test_words_are_what_stands_between_whitespace(text: str) -> None:
    """Whatever the tokens are: whitespace of several bytes parts nothing."""
    spans = TEXT.spans(Tokenize(text=text, specials=False))
    found = words.find(text, spans.ids, spans.offsets, TEXT.boundaries)
    told = [text[word.begin : word.end] for word in found]
    assert told == [word.decode() for word in text.encode().split() if word.decode().strip("\u00a0")]


def test_words_begin_with_whitespace_or_where_the_text_ends() -> None:
    mask = TEXT.boundaries.mask
    begin = {token for token in range(ARCH.vocabulary) if TEXT.vocabulary.text_of(token)[:1] in {*" \n\t\r\f\v"} - {""}}
    assert {*mask.nonzero()[0].tolist()} == begin | {*ARCH.ends}
    assert TEXT.boundaries.mask is mask, "made once"
