"""Scripts are tested with FakeServer: what it is told to answer reaches the script's client as from a daemon."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import pytest

import protocol.testing
from protocol import AsyncClient, Client, messages as m
from protocol.errors import BadRequest, Busy, Cancelled, ConnectionLost, Internal, NoServer, NotLoaded
from protocol.testing import Answer, FakeServer, generated, server_info
from tests.conftest import wait_for

ROOT = Path(__file__).resolve().parent.parent.parent


def hello(request: m.AnyRequest) -> Answer:
    return ["Hello", ", ", "world"] if isinstance(request, m.Generate) else None


def test_pieces_come_one_by_one_and_the_result_follows() -> None:
    with FakeServer(hello) as server, Client(server.endpoint) as client:
        with client.stream("x", seed=5) as stream:
            pieces = list(stream)
        assert [p.text for p in pieces] == ["Hello", ", ", "world"]
        assert stream.result.text == "Hello, world" and stream.result.settings["seed"] == 5
        assert [i for p in pieces for i in p.ids] == stream.result.ids
        assert client.generate("y", model="mine").model == "mine"
        assert [request.prompt for request in server.asked(m.Generate)] == ["x", "y"]


def test_both_clients_get_the_same() -> None:
    async def ask(endpoint: str) -> tuple[str, list[str]]:
        async with AsyncClient(endpoint) as client:
            pieces = [piece.text async for piece in client.stream("x")]
            return (await client.generate("x")).text, pieces

    with FakeServer(hello) as server:
        assert asyncio.run(ask(server.endpoint)) == ("Hello, world", ["Hello", ", ", "world"])


@pytest.mark.parametrize("error", [NotLoaded("load it first"), Busy("full up"), BadRequest("top_k: no")])
@pytest.mark.parametrize("way", ["returned", "raised", "after a piece"])
def test_an_error_arrives_with_its_class_and_message(error: Any, way: str) -> None:
    def answer(_: m.AnyRequest) -> Answer:
        if way == "raised":
            raise error
        return error if way == "returned" else ["a", error]

    with FakeServer(answer) as server, Client(server.endpoint) as client:
        with pytest.raises(type(error), match=str(error)):
            list(client.stream("x", wait=False))
        with pytest.raises(type(error), match=str(error)):
            client.score("x", wait=False) if way != "after a piece" else client.generate("x", wait=False)


def test_what_comes_after_an_event_waits_for_it_and_others_do_not() -> None:
    go_on = threading.Event()

    def answer(request: m.AnyRequest) -> Answer:
        return ["a", go_on, "b"] if isinstance(request, m.Generate) else None

    with FakeServer(answer) as server, Client(server.endpoint) as client, client.stream("x") as stream:
        assert next(stream).text == "a"
        assert client.ping().server_id == "fake" and client.stats().open_requests == 2
        go_on.set()
        assert next(stream).text == "b"
        assert not list(stream) and stream.result.text == "ab"


def test_a_cancelled_generation_ends_as_with_a_daemon() -> None:
    def answer(request: m.AnyRequest) -> Answer:
        if isinstance(request, m.Generate):
            return [request.prompt or threading.Event(), threading.Event()]
        return None

    with FakeServer(answer) as server, Client(server.endpoint) as client:
        written = client.stream("x")
        next(written)
        written.cancel()
        assert not list(written) and (written.result.text, written.result.finish_reason) == ("x", "cancelled")
        begun = client.stream("")
        wait_for(lambda: len(server.asked(m.Generate)) == 2)
        begun.cancel()
        with pytest.raises(Cancelled):
            next(begun)


def test_messages_are_sent_as_they_are_given() -> None:
    def answer(request: m.AnyRequest) -> Answer:
        match request:
            case m.Generate():
                return generated(request, "best", finish_reason="eos", score=-1.5)
            case m.Load():
                return [m.Progress(id=None, stage="build", done=i, total=2, unit="layers") for i in range(2)]
            case _:
                return None

    info = server_info(limits=m.Limits(open=3, tokens=100, rate=5.0))
    with FakeServer(answer, info=info) as server, Client(server.endpoint) as client:
        result = client.generate("x")
        assert (result.text, result.finish_reason, result.score) == ("best", "eos", -1.5)
        limits = client.hello().limits
        assert limits and limits.open == 3
        stages: list[int] = []

        def on_progress(told: m.Progress) -> None:
            stages.append(told.done)
            if told.done == 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            client.load("demo", on_progress=on_progress)
        assert stages == [0, 1]


def test_a_fault_in_the_answer_is_told() -> None:
    def answer(_: m.AnyRequest) -> Answer:
        raise ZeroDivisionError("mine")

    with FakeServer(answer) as server, Client(server.endpoint) as client:
        with pytest.raises(Internal, match=r"a generate raised ZeroDivisionError\('mine'\)"):
            client.generate("x")
    with FakeServer() as server, Client(server.endpoint) as client:
        with pytest.raises(Internal, match="has no answer to a tokenize"):
            client.tokenize("x")
        assert client.models() == [] and client.unload("x") == []


def test_a_server_that_goes_away() -> None:
    def answer(request: m.AnyRequest) -> Answer:
        return threading.Event() if isinstance(request, m.Generate) else None

    with FakeServer(answer) as server, Client(server.endpoint) as client:
        stream = client.stream("x")
        wait_for(lambda: bool(server.asked(m.Generate)))
        server.close()
        with pytest.raises((ConnectionLost, NoServer)):
            next(stream)


def test_an_answer_that_waits_by_itself_does_not_hang_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.testing.CLOSE_S", 0.1)
    asked, never = threading.Event(), threading.Event()

    def answer(_: m.AnyRequest) -> list[str]:
        asked.set()
        never.wait(60)
        return []

    with pytest.raises(TimeoutError, match="let it yield an event"), FakeServer(answer) as server:
        with Client(server.endpoint) as client, client.stream("x"):
            assert asked.wait(60)
    never.set()


def test_the_example_in_its_docstring_runs() -> None:
    text = protocol.testing.__doc__ or ""
    example = re.sub("^    ", "", text.split("\n\n", 1)[1].split("\n\nIt listens")[0], flags=re.MULTILINE)
    exec(example, {"messages": m, "FakeServer": FakeServer, "Client": Client})
