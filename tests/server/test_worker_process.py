"""Messages of a worker's process about its own end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol import messages as m
from protocol.errors import BadModel
from scripts.reliability.fakes import FakeEngine, ListConnection
from server.engines.load import Made
from server.link import FromWorker, Ready, Started, Work
from server.worker import __main__ as process
from tests.server.test_worker import ARCH, SPEC


def lived(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine | Exception) -> list[FromWorker]:
    """Return what a process sends that has two requests to serve."""

    def load(*_: object, **__: object) -> Made:
        if isinstance(engine, Exception):
            raise engine
        return Made(engine, "digest", 0, separate_head=False)

    monkeypatch.setattr(process, "load_engine", load)
    connection = ListConnection()
    for request_id, new_tokens in ((1, 2), (2, 50)):
        request = m.Generate(prompt_ids=[request_id], max_new_tokens=new_tokens, strategy="greedy")
        connection.coming.append(Work(id=request_id, group=0, request=request))
    process.live(SPEC, connection)
    return connection.sent


@pytest.mark.parametrize(
    ("error", "code"), [(MemoryError(), "no_memory"), (RuntimeError("broken"), "load_failed")], ids=str
)
def test_a_load_that_fails_says_so(monkeypatch: pytest.MonkeyPatch, error: Exception, code: str) -> None:
    sent = lived(monkeypatch, error)
    started = sent[0]
    failure = sent[-1]
    assert isinstance(started, Started)
    assert isinstance(failure, m.Failure) and (failure.id, failure.code) == (None, code)
    assert failure.message.startswith("demo/onnx/fp32: ")
    assert ("unload another model, choose int8" in failure.message) == isinstance(error, MemoryError)


@pytest.mark.parametrize("error", [MemoryError(), ValueError("a bug")], ids=str)
def test_a_ready_worker_that_cannot_go_on_has_died(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Unmovable(FakeEngine):
        def move(self, source: int, target: int, positions: int, first: int = 0) -> None:
            raise error

    sent = lived(monkeypatch, Unmovable(2, ARCH.context, ARCH.vocabulary))
    assert any(isinstance(message, Ready) for message in sent)
    failure = sent[-1]
    assert isinstance(failure, m.Failure) and (failure.id, failure.code) == (None, "worker_died")
    assert (str(error) or "MemoryError") in failure.message


def test_a_forced_instruction_set_concerns_the_native_engine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster's node may lack it, or the kernels, and still hold the models of other engines."""
    engine = FakeEngine(2, ARCH.context, ARCH.vocabulary)
    monkeypatch.setattr(process, "load_engine", lambda *_, **__: Made(engine, "digest", 0, separate_head=False))
    connection = ListConnection()
    process.load(replace(SPEC, engine="onnx", instruction_set="of no processor"), connection)
    assert isinstance(connection.sent[-1], Ready)
    with pytest.raises(BadModel, match="of no processor"):
        process.load(replace(SPEC, engine="native", precision="int8", instruction_set="of no processor"), connection)
