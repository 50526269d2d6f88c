"""Many texts over one client: in their order, a few at a time, and cancelled where nobody wants them any more."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import re
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from protocol import AsyncClient, Client, many, messages as m
from protocol.errors import BadRequest, NotGpt2d, WorkerDied
from protocol.many import GENERATIONS, parts
from protocol.testing import Answer, FakeServer, generated
from scripts.daemon import ROOT
from server.worker.windows import Windows
from tests.conftest import wait_for
from tests.protocol.scored import scored


def written(request: m.AnyRequest) -> Answer:
    return generated(request, f"{request.prompt}!") if isinstance(request, m.Generate) else None


def endless() -> Iterator[str]:
    return map(str, itertools.count())


def unanswered(request: m.AnyRequest) -> Answer:
    """Answer the first of all generations alone."""
    return written(request) if not isinstance(request, m.Generate) or request.prompt == "0" else []


def all_cancelled(server: FakeServer) -> bool:
    """Return whether every generation that has come and has no answer is cancelled."""
    unanswered = {request.id for request in server.asked(m.Generate) if request.prompt != "0"}
    unanswered |= {request.id for request in server.asked(m.Score) if (request.texts or [])[0].text != "0"}
    return unanswered == {request.target for request in server.asked(m.Cancel)}


def test_results_come_in_the_order_of_the_prompts_with_seeds_that_follow() -> None:
    with FakeServer(written) as server, Client(server.endpoint) as client:
        prompts = [str(number) for number in range(100)]
        texts = [result.text for result in client.generate_many(prompts, seed=7, n=2)]
        assert texts == [f"{prompt}!" for prompt in prompts]
        assert [request.seed for request in server.asked(m.Generate)] == list(range(7, 207, 2))


def test_only_a_few_are_read_ahead_and_leaving_cancels_them() -> None:
    read = []

    def prompts() -> Iterator[str]:
        for prompt in endless():
            read.append(prompt)
            yield prompt

    with FakeServer(unanswered) as server, Client(server.endpoint) as client:
        for result in client.generate_many(prompts()):
            assert result.text == "0!"
            break
        assert len(read) == GENERATIONS
        client.generate("0")  # comes after all that was sent before
        wait_for(lambda: all_cancelled(server))
        results = client.generate_many(prompts())
        with contextlib.closing(results):
            next(client.generate_many(["0"]))
        assert len(read) == GENERATIONS, "nothing is read before the first result is wanted"


def test_asyncio_has_the_same() -> None:
    async def main(server: FakeServer) -> None:
        async with AsyncClient(server.endpoint) as client:
            texts = [result.text async for result in client.generate_many(map(str, range(50)), seed=1)]
            assert texts == [f"{number}!" for number in range(50)]
            assert [request.seed for request in server.asked(m.Generate)] == list(range(1, 51))
            server.requests.clear()
            server.answer = unanswered
            async with contextlib.aclosing(client.generate_many(endless())) as results:
                assert (await anext(results)).text == "0!"
            task = asyncio.create_task(anext(client.generate_many(["1"])))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await client.generate("0")
            await asyncio.to_thread(wait_for, lambda: all_cancelled(server))

    with FakeServer(written) as server:
        asyncio.run(main(server))


def test_what_fails_ends_it_and_says_which() -> None:
    def answer(request: m.AnyRequest) -> Answer:
        return WorkerDied("gone") if isinstance(request, m.Generate) and request.prompt == "2" else written(request)

    with FakeServer(answer) as server, Client(server.endpoint) as client:
        results = client.generate_many(["0", "1", "2", "3"])
        assert [next(results).text, next(results).text] == ["0!", "1!"]
        with pytest.raises(WorkerDied, match="gone"):
            next(results)
        with pytest.raises(BadRequest, match=r"prompt 1: .*lone surrogate"):
            next(client.generate_many(["x", "\ud800"]))
        with pytest.raises(BadRequest, match="did you mean temperature"):
            next(client.generate_many(["x"], temperatur=1))
        with pytest.raises(BadRequest, match="the prompts must be a list of them, got a text; put it into a list"):
            next(client.generate_many("one prompt"))


@pytest.mark.parametrize("index", [-1, 2, 1 << 62])
def test_text_of_a_continuation_that_was_not_asked_for_is_not_gpt2d(index: int) -> None:
    """The stream is over with it, and cancelled."""

    def answer(request: m.AnyRequest) -> Answer:
        if not isinstance(request, m.Generate):
            return None
        return [m.Tokens(id=None, text="a", ids=[1], index=1), m.Tokens(id=None, text="b", ids=[2], index=index)]

    async def main(server: FakeServer) -> None:
        async with AsyncClient(server.endpoint) as client:
            stream = client.stream("x", n=2)
            assert (await anext(stream)).text == "a"
            with pytest.raises(NotGpt2d, match=f"text of continuation {index} of 2, from 0"):
                await anext(stream)
            assert [piece async for piece in stream] == []

    with FakeServer(answer) as server:
        with Client(server.endpoint) as client:
            stream = client.stream("x", n=2)
            assert next(stream).text == "a"
            with pytest.raises(NotGpt2d, match=f"text of continuation {index} of 2, from 0"):
                next(stream)
            assert list(stream) == []
            wait_for(lambda: bool(server.asked(m.Cancel)))
        asyncio.run(main(server))


def scoring(request: m.AnyRequest) -> Answer:
    return scored(request) if isinstance(request, m.Score) else None


def test_scores_come_in_the_order_of_the_texts() -> None:
    """Texts and contexts of any number, in requests of at most a thousand of them."""
    texts = [f"text {number}" for number in range(2500)]
    with FakeServer(scoring) as server, Client(server.endpoint) as client:
        found = list(client.score_many(texts, contexts=map(str, range(2500)), model="demo", bos="never"))
        assert [(one.index, bytes(one.ids).decode()) for one in found] == list(enumerate(texts))
        asked = [request.texts or [] for request in server.asked(m.Score)]
        assert [len(texts) for texts in asked] == [1024, 1024, 452]
        assert [one.context for one in asked[2]] == [str(number) for number in range(2048, 2500)]
        assert list(client.score_many([])) == []


def test_a_score_is_told_as_soon_as_those_before_it_are() -> None:
    later = threading.Event()

    def slowly(request: m.AnyRequest) -> Answer:
        if not isinstance(request, m.Score):
            return None
        *texts, last = scored(request)  # the last text is answered first
        return [texts[3], texts[1], texts[2], later, texts[0], last]

    with FakeServer(slowly) as server, Client(server.endpoint) as client:
        found = client.score_many(["a", "b", "c", "d"])
        assert [next(found).index for _ in range(3)] == [0, 1, 2]
        later.set()
        assert [one.index for one in found] == [3]


def test_a_long_text_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, each after what stands before it; sums, words and places are those of the whole text."""
    monkeypatch.setattr(many, "PART_BYTES", 8)
    monkeypatch.setattr(many, "BEFORE", 6)
    text = "to be or nöt to be"
    with FakeServer(scoring) as server, Client(server.endpoint) as client:
        short, long = client.score_many(["x", text], contexts=["", "before"], unit="word", bos="never")
        asked = server.asked(m.Score)[0].texts or []
        assert [(one.context, one.text) for one in asked] == [
            (None, "x"), ("before", "to be or"), (" be or", " nöt to"), ("nöt to", " be"),
        ]  # fmt: skip
        assert (short.index, short.logprobs, long.index) == (0, [None], 1)
        data = text.encode()
        assert bytes(long.ids) == bytes(token or 0 for token in long.greedy) == data
        assert long.offsets == list(range(len(data) + 1))
        assert long.sum == -sum(data) and long.mean == pytest.approx(-sum(data) / len(data))
        assert long.bits_per_byte == pytest.approx(sum(data) / math.log(2) / len(data))
        assert long.words is not None
        assert long.words.texts == ["to be or", " nöt to", " be"]
        assert [
            text[begin:end] for begin, end in zip(long.words.starts, long.words.ends, strict=True)
        ] == long.words.texts
        assert long.words.tokens == [0, 8, 16]


@pytest.mark.parametrize("stride", [1, 2, 5, 8])
@pytest.mark.parametrize("lead", [0, 1, 1500, 16_384, 32_768])
@pytest.mark.parametrize("context", [64, 1024, 2048, 4096])
def test_parts_keep_to_what_a_server_computes_at_any_stride(stride: int, lead: int, context: int) -> None:
    """Whatever the model's context, even where every byte is a token, and the texts of one request together."""
    texts = ["." * 20_000, *["." * size for size in (900, 1500, 3000, 10, 2000, 900)]]
    with FakeServer(scoring) as server, Client(server.endpoint) as client:
        list(client.score_many(texts, contexts=["," * lead] * len(texts), stride=stride))
        for request in server.asked(m.Score):
            windows = [
                Windows(len(one.context or "") + 1, len(one.text or "") + 1, stride, context, after=False)
                for one in request.texts or []
            ]
            assert sum(each.computed for each in windows) <= m.MAX_COMPUTED
        assert len(server.asked(m.Score)) < 60


@pytest.mark.parametrize("word", ["word ", "слово ", "語", "\U0001f600"])
def test_what_stands_before_a_part_fills_a_context_and_is_no_more_than_a_server_takes(word: str) -> None:
    """A word being a token where it is counted whether they are enough, and a byte where whether they are too many."""
    text = word * 30_000
    with FakeServer(scoring) as server, Client(server.endpoint) as client:
        list(client.score_many([text], stride=1))
        asked = [one for request in server.asked(m.Score) for one in request.texts or []]
    begin = 0
    for one in asked:
        before = one.context or ""
        assert text[:begin].endswith(before)
        assert before.count(word) >= min(text[:begin].count(word), many.CONTEXT)
        assert len(before.encode()) < 65_536
        assert one.goes_on == (len(before) == begin > 0)
        begin += len(one.text or "")


def test_alternatives_of_a_part_fit_an_answer() -> None:
    with FakeServer(scoring) as server, Client(server.endpoint) as client:
        list(client.score_many(["word " * 2000], top=20))
        assert max(len((one.text or "").encode()) for one in server.asked(m.Score)[0].texts or []) <= m.MAX_TOLD // 20


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"top": 100_000}, "score: top must be a whole number <= 20"),
        ({"top": "5"}, "score: top must be a whole number, got a text"),
        ({"strid": 5}, "score has no setting 'strid'; did you mean stride?"),
    ],
)
def test_a_wrong_setting_is_refused_before_a_text_is_read(settings: dict[str, Any], says: str) -> None:
    with Client("tcp://127.0.0.1:9") as client, pytest.raises(BadRequest, match=re.escape(says)):
        next(client.score_many(endless(), **settings))


def test_a_refusal_names_the_text_among_all() -> None:
    def refuse(request: m.AnyRequest) -> Answer:
        if isinstance(request, m.Score) and (request.texts or [])[0].text == "1024":
            return BadRequest("score: texts[3] must have at least 2 tokens, got 1")
        return scoring(request)

    with FakeServer(refuse) as server, Client(server.endpoint) as client:
        found = client.score_many(map(str, range(5000)))
        assert [next(found).index for _ in range(1024)] == list(range(1024))
        with pytest.raises(BadRequest, match=r"^score: texts\[1027\] must have at least 2 tokens"):
            next(found)
        for texts, contexts, says in (
            (["a", "b\ud800"], None, r"texts\[1\] cannot be encoded in UTF-8: lone surrogate"),
            (["a", "b"], iter(["c"]), r"texts\[1\] must be a text, with a context of its own"),
            (["a", 3], None, r"texts\[1\] must be a text"),
            (["a"], ["c", "d"], "each text has a context of its own, got 2 for 1 texts"),
            ("ab", None, "the texts must be a list of them, got a text; put it into a list"),
            (["a", "b"], "cd", "the contexts must be a list of them, got a text"),
        ):
            with pytest.raises(BadRequest, match=says):
                list(client.score_many(texts, contexts=contexts))  # type: ignore[arg-type]
        passages = [m.Passage(ids=[1])] * 1100 + [m.Passage(ids=[-1])]
        with pytest.raises(BadRequest, match=r"texts\[1100\]\.ids\[0\] must be a whole number >= 0"):
            list(client.score_many(passages))


REFUSED = "score: texts[{}] must have at least 2 tokens, got 1"


@pytest.mark.parametrize("place", ["3", "1024", "-1", "0", "00", "9" * 5000, "\u0663"])
def test_a_refusal_of_a_text_that_is_not_open_is_not_gpt2d(place: str) -> None:
    """Of none of the request's three, or of one that is answered."""

    def refuse(request: m.AnyRequest) -> Answer:
        if not isinstance(request, m.Score):
            return None
        first = next(one for one in scored(request) if isinstance(one, m.ScoredText) and one.index == 0)
        return [first, BadRequest(REFUSED.format(place))]

    with FakeServer(refuse) as server, Client(server.endpoint) as client:
        found = client.score_many(["a", "b", "c"])
        assert next(found).index == 0
        with pytest.raises(NotGpt2d, match="the server refused a text that it was not asked for, of 3"):
            next(found)


def wrong_scores() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield fields of a score of the three bytes of a text, each with values that do not fit the others."""
    words: dict[str, Any] = {"texts": ["abc"], "starts": [0], "ends": [3], "tokens": [0], "logprobs": [-1.0]}
    for index in (-1, 1, 2, 1 << 62):
        yield f"index {index}", {"index": index}
    for name in ("ids", "logprobs", "ranks", "entropies", "greedy", "offsets"):
        for size in (0, 1, 7):
            yield f"{name} of {size}", {name: [1] * size}
    yield "one of top", {"top": [[]]}
    for offsets in ([0, 1, 2, 4], [0, -1, 2, 3], [0, 1, 1 << 62, 3]):
        yield f"offsets {offsets}", {"offsets": offsets}
    for value in (math.nan, math.inf, -math.inf):
        yield f"{value}", {"logprobs": [value, -1.0, 1.0]}
    for name, value in words.items():
        yield f"no {name} of words", {"words": m.Words(**(words | {name: []}))}
        yield f"two {name} of words", {"words": m.Words(**(words | {name: value * 2}))}
    for token in (-1, 3):
        yield f"token {token}", {"words": m.Words(**(words | {"tokens": [token]}))}


@pytest.mark.parametrize("fields", [pytest.param(fields, id=name) for name, fields in wrong_scores()])
@pytest.mark.parametrize("cut", [False, True])
def test_scores_that_do_not_fit_are_not_gpt2d(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], *, cut: bool
) -> None:
    """As one text, and as the first part of one."""
    monkeypatch.setattr(many, "PART_BYTES", 4 if cut else 99)

    def wrongly(request: m.AnyRequest) -> Answer:
        if not isinstance(request, m.Score):
            return None
        *others, first = scored(request)[:-1]
        return [msgspec.structs.replace(first, **fields), *others, scored(request)[-1]]

    with FakeServer(wrongly) as server, Client(server.endpoint) as client:
        with pytest.raises(NotGpt2d, match="the server"):
            list(client.score_many(["abc def" if cut else "abc"], unit="word"))


def test_scores_that_nobody_wants_are_cancelled() -> None:
    read = []

    def texts() -> Iterator[str]:
        for text in endless():
            read.append(text)
            yield text

    def slowly(request: m.AnyRequest) -> Answer:
        if isinstance(request, m.Score) and (request.texts or [])[0].text != "0":
            return []
        return scoring(request)

    async def main(server: FakeServer) -> None:
        async with AsyncClient(server.endpoint) as client:
            async with contextlib.aclosing(client.score_many(endless())) as found:
                assert (await anext(found)).index == 0
            assert [one.index async for one in client.score_many(["0", "1"])] == [0, 1]
            await asyncio.to_thread(wait_for, lambda: all_cancelled(server))

    with FakeServer(slowly) as server:
        with Client(server.endpoint) as client:
            for one in client.score_many(texts()):
                assert one.index == 0
                break
            assert len(read) <= many.SCORES * m.MAX_TEXTS + 1
            list(client.score_many(["0"]))
            wait_for(lambda: all_cancelled(server))
        server.requests.clear()
        asyncio.run(main(server))


def test_scores_of_a_daemon_are_those_of_each_text_alone(client: Client) -> None:
    texts = ["Shall I compare thee to a summer's day?", "To be,\nor not", "é"]
    for one, text in zip(client.score_many(texts, top=2), texts, strict=True):
        alone = client.score(text, top=2)
        assert one.ids == alone.ids and one.logprobs == alone.logprobs and one.top == alone.top
        assert one.offsets == client.tokenize(text).offsets == alone.offsets


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        ("to be or", ["to be or"]),
        ("to be or not", ["to be or", " not"]),
        ("to be\n\nor, not", ["to be", "\n\nor,", " not"]),
        ("ends in spaces   ", ["ends in", " spaces", "   "]),
        ("字字。字字", ["字字", "。", "字字"]),
        ("a.字。字字字", ["a.字。", "字字", "字"]),
        ("wonderfully", ["wonderfu", "lly"]),
    ],
)
def test_a_long_text_is_parted_where_words_end(text: str, wanted: list[str]) -> None:
    assert [text[begin:end] for begin, end in parts(text, 8)] == wanted


@pytest.mark.parametrize("bos", ["auto", "always", "never"])
def test_parts_at_a_stride_of_one_have_the_values_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, client: Client, bos: str
) -> None:
    """Within the first window, where the model's first token stands before the text, and behind it."""
    data = (ROOT / "server" / "demo_model" / "held_out.txt").read_bytes()
    text = data[: client.tokenize(data.decode()).offsets[1024 + 4]].decode()
    whole = client.score(text, stride=1, unit="word", bos=bos)
    monkeypatch.setattr(many, "PART_BYTES", len(text.encode()) - 40)
    (late,) = client.score_many([text], stride=1, unit="word", bos=bos)
    monkeypatch.setattr(many, "PART_BYTES", 200)
    short = text[:700]
    (early,) = client.score_many([short], stride=1, unit="word", bos=bos)
    for cut, uncut in ((late, whole), (early, client.score(short, stride=1, unit="word", bos=bos))):
        for name in ("ids", "offsets", "logprobs", "ranks", "entropies", "greedy", "words"):
            assert getattr(cut, name) == getattr(uncut, name), name
