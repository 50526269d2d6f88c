"""Many texts scored in one request, by a worker: their values, what stands before them, and what they share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from protocol import messages as m
from server.catalogue.catalogue import DEMO_FOLDER
from server.checkpoint.tensors import Weights
from server.convert.native_layout import FILE, Layout
from server.engines.native import NativeEngine
from server.link import Work
from server.worker.judging import judge
from server.worker.scoring import SHARED
from server.worker.text import Spans
from server.worker.text_scores import Piece, TextScores, Told
from server.worker.windows import Windows
from tests.server.test_native import ARCH
from tests.server.test_worker import Loop

START = ARCH.start


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeEngine]:
    folder = tmp_path_factory.mktemp("scores")
    Layout(ARCH, Weights(DEMO_FOLDER, ARCH), "int8", lambda *_: None).write(folder)
    engine = NativeEngine(ARCH, folder / FILE, "int8", 6, 2)
    yield engine
    engine.close()


def asked(engine: NativeEngine, **fields: Any) -> list[Any]:
    """Return a worker's replies."""
    loop = Loop(engine=engine, arch=ARCH, name="native")
    loop.worker._read(Work(id=1, group=0, request=m.Score(**fields)))()  # at once, however long it is
    while loop.scheduler.running or loop.scheduler.waiting:
        loop.turn()
    return loop.link.sent


def texts_of(engine: NativeEngine, passages: list[m.Passage], **fields: Any) -> tuple[list[m.ScoredText], m.Scored]:
    *texts, last = asked(engine, texts=passages, **fields)
    assert isinstance(last, m.Scored), last
    assert sorted(text.index for text in texts) == list(range(len(passages)))
    return sorted(texts, key=lambda text: text.index), last


def expected(engine: NativeEngine, ids: list[int], first: int) -> tuple[list[float], list[int], list[float], list[int]]:
    """Return log-probabilities, ranks, entropies and greedy choices of ids[first:], from all logits in float64."""
    wanted = list(range(first - 1, len(ids) - 1))
    logits = engine.prefill(0, ids[:-1], 0, wanted).astype(np.float64)
    own = logits[np.arange(len(logits)), ids[first:]]
    logs = logits - logits.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    return (
        logs[np.arange(len(logits)), ids[first:]].tolist(),
        (1 + (logits > own[:, None]).sum(1)).tolist(),
        (-(np.exp(logs) * logs).sum(1)).tolist(),
        logits.argmax(1).tolist(),
    )


def random_ids(seed: int, count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, ARCH.vocabulary, count)]


def test_each_text_is_told_apart_and_all_together(engine: NativeEngine) -> None:
    """Whatever is computed beside it: alone, a text has the same bits."""
    passages = [m.Passage(ids=random_ids(n, n)) for n in (1, 2, 15, 16, 17, 40, 130, 700, 3, 9)]
    texts, last = texts_of(engine, passages)
    for passage, text in zip(passages, texts, strict=True):
        ids = passage.ids or []
        assert START is not None and text.ids == ids
        want = expected(engine, [START, *ids], 1)
        assert text.logprobs == pytest.approx(want[0], abs=2e-5)
        assert text.entropies == pytest.approx(want[2], abs=2e-5)
        assert (text.ranks, text.greedy) == (want[1], want[3])
        assert text.sum == pytest.approx(sum(want[0])) and text.mean == pytest.approx(text.sum / len(ids))
        assert text.perplexity == pytest.approx(math.exp(-text.mean))
        (alone,) = asked(engine, ids=ids)
        for name in ("ids", "logprobs", "ranks", "entropies", "greedy", "sum", "perplexity", "bits_per_byte"):
            assert getattr(alone, name) == getattr(text, name), name
    assert last.tokens == sum(len(text.ids) for text in texts) and last.ids == last.logprobs == []
    assert last.sum == pytest.approx(sum(text.sum for text in texts))
    assert last.perplexity == pytest.approx(math.exp(-last.sum / last.tokens))


def test_what_stands_before_a_text_is_chosen_by_bos(engine: NativeEngine) -> None:
    ids, context = random_ids(1, 12), random_ids(2, 20)
    assert START is not None
    for bos, lead in (("auto", [START]), ("always", [START]), ("never", [])):
        text, told = asked(engine, texts=[m.Passage(ids=ids)], bos=bos)
        first = 0 if lead else 1
        assert [value is None for value in text.logprobs] == [not lead, *[False] * 11] and told.tokens == 12 - first
        assert text.ranks[0] == text.entropies[0] == text.greedy[0] == text.logprobs[0] or lead
        assert text.logprobs[first:] == pytest.approx(expected(engine, [*lead, *ids], 1)[0], abs=2e-5)
    for bos, lead in (("auto", []), ("always", [START]), ("never", [])):
        text, _ = asked(engine, texts=[m.Passage(ids=ids, context_ids=context)], bos=bos)
        want = expected(engine, [*lead, *context, *ids], len(lead) + len(context))[0]
        assert text.logprobs == pytest.approx(want, abs=2e-5)
    (begun,) = asked(engine, ids=[START, *ids])
    assert begun.logprobs[0] is None, "it begins with the token already"
    (begun,) = asked(engine, ids=[START, *ids], bos="always")
    assert begun.logprobs[0] is not None


def test_a_text_has_the_same_tokens_with_its_context_as_text_or_as_tokens(engine: NativeEngine) -> None:
    (by_text, by_ids), _ = texts_of(
        engine,
        [
            m.Passage(text=" thou art", context="Shall I compare thee"),
            m.Passage(
                ids=asked(engine, text=" thou art")[0].ids,
                context_ids=asked(engine, text="Shall I compare thee")[0].ids,
            ),
        ],
    )
    assert by_text.ids == by_ids.ids and by_text.logprobs == by_ids.logprobs
    assert by_text.bits_per_byte == by_ids.bits_per_byte


def test_a_context_that_texts_share_is_computed_once(engine: NativeEngine) -> None:
    context = random_ids(3, 300)
    passages = [m.Passage(ids=random_ids(n, 5), context_ids=context) for n in range(8)]
    texts, last = texts_of(engine, passages)
    assert len(context) > SHARED and last.computed < len(context) + 8 * 6
    alone = [asked(engine, texts=[passage])[0] for passage in passages]
    assert [text.logprobs for text in texts] == [text.logprobs for text in alone]
    assert [text.entropies for text in texts] == [text.entropies for text in alone]


def test_a_window_takes_nothing_from_the_cache_that_is_to_be_scored(engine: NativeEngine) -> None:
    """Where a text repeats the context that it shares, later windows may begin as that does."""
    passages = [m.Passage(ids=[7] * 1500, context_ids=[7] * 65) for _ in range(2)]
    texts, _ = texts_of(engine, passages, stride=960)
    text, _ = asked(engine, texts=passages[:1], stride=960)
    assert text.logprobs == texts[0].logprobs == texts[1].logprobs and 0.0 not in text.logprobs
    assert text.entropies == texts[1].entropies


def test_words_change_no_score_of_a_token(engine: NativeEngine) -> None:
    """Also where the context has no room for the text's last token, after which its last word may go on."""
    ids = asked(engine, text="Shall I compare thee to a summer's day?\n" * 200)[0].ids
    for lead, count in ((0, 1023), (0, 1024), (0, 1025), (300, 725), (1100, 600), (1500, 20)):
        passage = m.Passage(ids=ids[lead : lead + count], context_ids=ids[:lead] or None)
        by_token, _ = asked(engine, texts=[passage])
        by_word, _ = asked(engine, texts=[passage], unit="word")
        assert by_word.logprobs == by_token.logprobs and by_word.entropies == by_token.entropies, (lead, count)
        assert all(value is not None and value < 0 for value in by_word.words.logprobs[1:])


def test_alternatives_take_little_memory_and_change_nothing(
    engine: NativeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits that they are chosen from are in memory: 128 rows at a time, and of no more texts than a step has."""
    rows: list[int] = []
    judge_all = engine.judge

    def watched(*given: Any) -> Any:
        logits, judged = judge_all(*given)
        rows.append(len(logits))
        return logits, judged

    passages = [m.Passage(ids=random_ids(n, n)) for n in (300, 1400, *range(20, 60), 300)]
    plain, _ = texts_of(engine, passages)
    monkeypatch.setattr(engine, "judge", watched)
    for text, told in zip(plain, texts_of(engine, passages, top=2)[0], strict=True):
        assert (text.logprobs, text.ranks, text.entropies) == (told.logprobs, told.ranks, told.entropies)
        assert [best[0].id for best in told.top] == told.greedy
    assert 100 < max(rows) <= 128


def test_the_end_of_a_context_that_is_too_long_counts(engine: NativeEngine) -> None:
    context, ids = random_ids(4, 1500), random_ids(5, 7)
    text, _ = asked(engine, texts=[m.Passage(ids=ids, context_ids=context)])
    whole = [*context, *ids][-(ARCH.context + 1) :]
    assert text.logprobs == pytest.approx(expected(engine, whole, len(whole) - 7)[0], abs=2e-5)


UNKNOWN = f"a token of this model must be 0 to {ARCH.vocabulary - 1}, got 1000000"


@pytest.mark.parametrize(
    ("passages", "says"),
    [
        ([m.Passage(text="a b"), m.Passage(text="")], "score: texts[1] must have at least 1 token, got none"),
        ([m.Passage(ids=[1]), m.Passage(ids=[1, 10**6])], f"score: texts[1]: {UNKNOWN}"),
        ([m.Passage(ids=[1], context_ids=[10**6])], f"score: texts[0]: {UNKNOWN}"),
        ([m.Passage(ids=[1]), m.Passage(ids=[1] * 9000)], "score: texts[1]: 9001 tokens at a stride of 1 are"),
        (
            [m.Passage(ids=[1] * 3500)] * 2,
            "score: these 2 texts are 5,074,944 tokens to compute, and the limit is 4,000,000",
        ),
    ],
)
def test_one_text_that_cannot_be_scored_refuses_all(engine: NativeEngine, passages: list[m.Passage], says: str) -> None:
    loop = Loop(engine=engine, arch=ARCH, name="native")
    work = Work(id=1, group=0, request=m.Score(texts=passages, stride=1))
    loop.worker._read(work)()
    (reply,) = loop.link.sent
    assert isinstance(reply, m.Failure) and reply.code == "bad_request"
    assert reply.message.startswith(says)
    assert not loop.scheduler.waiting


def test_a_text_of_one_token_needs_something_before_it(engine: NativeEngine) -> None:
    (reply,) = asked(engine, ids=[5], bos="never")
    assert isinstance(reply, m.Failure) and reply.message == "score: the text must have at least 2 tokens, got 1"
    (reply,) = asked(engine, ids=[5])
    assert isinstance(reply, m.Scored) and reply.tokens == 1


def test_a_cancelled_request_leaves_nothing_behind(engine: NativeEngine) -> None:
    loop = Loop(engine=engine, arch=ARCH, name="native")
    passages = [m.Passage(ids=random_ids(n, 30)) for n in range(300)]
    loop.worker._read(Work(id=1, group=0, request=m.Score(texts=passages)))()
    loop.turn(3)
    loop.cancel(1)
    loop.turn()
    *texts, last = loop.link.sent
    assert 0 < len(texts) < 300 and isinstance(last, m.Failure) and last.code == "cancelled"
    assert not loop.scheduler.running and not loop.scheduler.waiting and not loop.worker._answers


@pytest.mark.parametrize(("likely", "want"), [([9, 7], [7, 9, 0, 1]), ([], [0, 1, 2, 3])])
def test_of_equally_likely_tokens_those_with_the_lowest_numbers_are_told(likely: list[int], want: list[int]) -> None:
    logits = np.zeros((1, 1000), np.float32)
    logits[0, likely] = 1
    text = one_token(4)
    text.take(1, judge(logits, [5]), logits)
    assert alternatives(text) == [want]


def test_more_alternatives_than_there_are_tokens_and_none_is_kept() -> None:
    """A request may have a thousand texts, each with fifty thousand alternatives."""
    logits = np.arange(3, dtype=np.float32)[None]
    text = one_token(20)
    text.take(1, judge(logits, [0]), logits)
    assert alternatives(text) == [[2, 1, 0]] and alternatives(text) == []


def one_token(top: int) -> TextScores:
    """Return a text of one token after another."""
    told = Told(top, lambda token, logprob: m.Alternative(id=token, text="", logprob=logprob))
    return TextScores(0, Piece([0], Spans("a", [0], [0, 1])), Windows(1, 1, 4, 8, after=False), told)


def alternatives(text: TextScores) -> list[list[int]]:
    found: Any = text.fields()["top"]
    return [[one.id for one in likeliest] for likeliest in found]


@pytest.mark.parametrize(
    "fields", [{}, {"text": "a", "ids": [1]}, {"text": "a", "texts": [m.Passage(text="a")]}, {"ids": [1], "texts": []}]
)
def test_a_score_is_of_exactly_one_form(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give exactly one of `text`, `ids` and `texts`"):
        m.Score(**fields)
    with pytest.raises(ValueError, match="give exactly one of `text` and `ids` in each of `texts`"):
        m.Passage()
    with pytest.raises(ValueError, match="give at most one of `context` and `context_ids` in each of `texts`"):
        m.Passage(text="a", context="b", context_ids=[1])
