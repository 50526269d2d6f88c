"""Many texts over one client: in their order, a few at a time, and cancelled where nobody wants them any more."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator

import pytest

from protocol import AsyncClient, Client, messages as m
from protocol.errors import BadRequest, WorkerDied
from protocol.many import GENERATIONS, parts
from protocol.testing import Answer, FakeServer, generated
from tests.conftest import wait_for


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
