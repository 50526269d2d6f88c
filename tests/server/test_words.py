"""Words of a text and their probabilities: a made-up model of six tokens, whose words can all be listed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence as Many

import numpy as np
import pytest

from protocol.errors import BadRequest
from server.worker import words
from server.worker.words import Boundaries

PIECES = [b"a", b" a", b"b.", b"\n", b".\n", b"<end>"]
END = 5
BOUNDARIES = Boundaries(PIECES, [END])
RNG = np.random.default_rng(26)
FIRST, SECOND = RNG.dirichlet(np.ones(6) * 2, 7), RNG.dirichlet(np.ones(6) * 2, (7, 7))


def chances(before: Many[int]) -> list[float]:
    """Probabilities of the token after others, of which the last two count."""
    last, other = [6, 6, *before][-1], [6, 6, *before][-2]
    found: list[float] = ((FIRST[last] + SECOND[other, last]) / 2).tolist()
    return found


def scored(ids: Many[int], context: Many[int] = ()) -> tuple[list[float], list[float]]:
    """Log-probabilities of tokens, and of what a word begins with at their places and after them."""
    tokens, masses = [], []
    for i in range(len(ids) + 1):
        here = chances([*context, *ids[:i]])
        masses.append(math.log(sum(one for one, begins in zip(here, BOUNDARIES.mask, strict=True) if begins)))
        if i < len(ids):
            tokens.append(math.log(here[ids[i]]))
    return tokens, masses


def text_of(ids: Many[int]) -> tuple[str, list[int]]:
    parts = [PIECES[i] for i in ids]
    return b"".join(parts).decode(), [0, *itertools.accumulate(map(len, parts))]


def found(ids: Many[int], context: Many[int] = ()) -> list[tuple[str, float | None]]:
    """The words of tokens after others, and their log-probabilities."""
    text, offsets = text_of(ids)
    ours = words.find(text, ids, offsets, BOUNDARIES, BOUNDARIES.after(context))
    values = words.logprobs(ours, *scored(ids, context))
    return [(text[word.begin : word.end], value) for word, value in zip(ours, values, strict=True)]


def outcomes(context: Many[int], ids: list[int], chance: float, longest: int) -> Iterator[float]:
    """Probabilities of all that can come after tokens of one word: words, the text's end, and what is left open."""
    text = text_of(ids)[0]
    here = chances([*context, *ids])
    open_ = 1.0
    if text.strip():
        ((_, logprob),) = found(ids, context)
        assert logprob is not None
        yield math.exp(logprob)
        mass = math.exp(scored(ids, context)[1][-1])
        open_ = 0.0 if text[-1].isspace() else 1 - mass
    if len(ids) == longest:
        yield chance * open_
        return
    for token in range(END) if open_ else ():
        if not (text.strip() and BOUNDARIES.mask[token]):
            yield from outcomes(context, [*ids, token], chance * here[token], longest)
    if not text.strip():
        yield chance * here[END]


@pytest.mark.parametrize(
    ("context", "given"),
    [([], "solid"), ([], "blank"), ([0], "blank"), ([2, 4], "any"), ([1, 3], "any"), ([0, 2, 0], "blank")],
)
def test_the_words_that_can_come_next_sum_to_one(context: list[int], given: str) -> None:
    """With the text's end in place of a word, and those that are not over after seven tokens."""
    mass = math.exp(scored([], context)[1][0])
    here = chances(context)
    firsts = [token for token in range(END) if given == "any" or BOUNDARIES.mask[token] == (given == "blank")]
    share = {"any": 1.0, "blank": mass, "solid": 1 - mass}[given]
    parts = [value for token in firsts for value in outcomes(context, [token], here[token] / share, 7)]
    ends = 0.0 if given == "solid" else here[END] / share
    assert sum(parts) + ends == pytest.approx(1, abs=1e-9)


def test_the_corrections_are_those_of_the_papers() -> None:
    """Next to the plain products: the end of each word is the word's own, and no longer the next one's."""
    ids = [0, 2, 1, 0, 3, 0, 4]  # "ab. aa\na.\n"
    tokens, masses = scored(ids)
    plain = [sum(tokens[:2]), sum(tokens[2:4]), sum(tokens[4:])]
    fixed = [
        plain[0] + masses[2] - math.log(1 - math.exp(masses[0])),
        plain[1] + masses[4] - masses[2],
        plain[2] - masses[4],  # over with its last token, which ends in a line feed
    ]
    told, values = zip(*found(ids), strict=True)
    assert told == ("ab.", "aa", "a.")
    assert values == pytest.approx(fixed)


def test_a_word_of_many_tokens_has_the_same_bits_on_every_python() -> None:
    """sum() adds otherwise from 3.12 on: ten times a tenth is less than one before."""
    (word,) = words.find("a" * 10, [0] * 10, range(11), BOUNDARIES, "inside")
    assert words.logprobs([word], [-0.1] * 10, [-0.2] * 10 + [0.0]) == [-1.0]


def test_whitespace_belongs_to_the_word_after_it() -> None:
    ids = [3, 3, 0, 3, 1, 3, 3]
    text, offsets = text_of(ids)
    ours = words.find(text, ids, offsets, BOUNDARIES)
    assert [(text[word.begin : word.end], word.first, word.last) for word in ours] == [("a", 0, 3), ("a", 3, 5)]
    tokens, masses = scored(ids)
    values = words.logprobs(ours, tokens, masses)
    assert values == [
        pytest.approx(sum(tokens[:3]) + masses[3] - masses[0]),
        pytest.approx(sum(tokens[3:5]) + masses[5] - masses[3]),
    ]


def test_the_rest_of_a_word_whose_beginning_is_in_the_context() -> None:
    tokens, masses = scored([0, 1], [0])
    told, values = zip(*found([0, 1], [0]), strict=True)
    assert told == ("a", "a")
    assert values == pytest.approx((tokens[0] + masses[1], tokens[1] + masses[2] - masses[1]))


def test_a_text_may_end_within_another() -> None:
    """What comes after the end begins as a text does."""
    ids = [0, END, 0]
    tokens, masses = scored(ids)
    first, second = (-math.log(1 - math.exp(masses[i])) for i in (0, 2))
    assert [value for _, value in found(ids)] == [
        pytest.approx(tokens[0] + masses[1] + first),
        pytest.approx(tokens[2] + masses[3] + second),
    ]
    assert BOUNDARIES.after(ids) == "inside"
    assert BOUNDARIES.after([0, END]) == BOUNDARIES.after([]) == "start"
    assert BOUNDARIES.after([4]) == "between"


def test_a_first_token_without_a_value_leaves_its_word_without_one() -> None:
    ids = [0, 2, 1]
    text, offsets = text_of(ids)
    ours = words.find(text, ids, offsets, BOUNDARIES)
    tokens, masses = scored(ids)
    values = words.logprobs(ours, [None, *tokens[1:]], [None, *masses[1:]])
    assert values == [None, pytest.approx(tokens[2] + masses[3] - masses[2])]


@pytest.mark.parametrize("ids", [[], [3], [END], [3, END, 3]])
def test_texts_without_words(ids: list[int]) -> None:
    assert found(ids) == []


@pytest.mark.parametrize(
    ("pieces", "at"),
    [
        ([b"a b", b" c"], 2),  # two words in one token
        ([b"a b", b"c"], 2),  # the second one goes on
        ([b"a", b"\n b c"], 5),
    ],
)
def test_tokens_of_two_words_are_refused(pieces: list[bytes], at: int) -> None:
    text = b"".join(pieces).decode()
    offsets = [0, *itertools.accumulate(map(len, pieces))]
    boundaries = Boundaries(pieces, [])
    with pytest.raises(BadRequest, match=f"not parted where its words are, as at character {at}, "):
        words.find(text, range(len(pieces)), offsets, boundaries)


def test_tokens_that_say_otherwise_than_the_text_are_refused() -> None:
    """As of a tokenizer that parts punctuation, or that drops a space."""
    for text, pieces, offsets in (("ab", [b"a", b" b"], [0, 1, 2]), ("a b", [b"a", b"b"], [0, 1, 3])):
        with pytest.raises(BadRequest, match='ask for unit="token"'):
            words.find(text, [0, 1], offsets, Boundaries(pieces, []))


def test_no_break_spaces_part_nothing_and_are_no_word() -> None:
    """Whether they are tokens, parts of such, or several tokens."""
    pieces = [b"a", b" \xc2\xa0 \xc2\xa0", b" b", b"\xc2", b"\xa0", b"\n"]
    boundaries = Boundaries(pieces, [])
    for ids, told in (
        ([0, 1, 2], ["a", "b"]),
        ([0, 5, 3, 4, 2], ["a", "b"]),
        ([0, 3, 4, 0, 2], ["a\u00a0a", "b"]),
        ([3, 4, 5], []),
    ):
        text = b"".join(pieces[i] for i in ids).decode()
        offsets = [0, *itertools.accumulate(len(pieces[i]) for i in ids)]
        ours = words.find(text, ids, offsets, boundaries)
        assert [text[word.begin : word.end] for word in ours] == told
        assert [word.last for word in ours[-1:]] == [len(ids)] * bool(told)
