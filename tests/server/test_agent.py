"""What the process that speaks to Ray does at the wrong moment, and on the wrong node. Without a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from server.launch.agent import Agent, Voice
from server.launch.spec import CannotRun, Spec

KEY = "a" * 32
SPEC = Spec(
    endpoint="tcp://127.0.0.1:1", server_key="", identity=KEY, model="mine", folder="", hub_cache="", models_dir="",
    engine="native", precision="int8", threads=1, rows=1, room=1 << 30, cache_dir="", cache_bytes=1 << 30,
)  # fmt: skip
DEMAND = {"CPU": 1.0, "memory": 1e9}


class FakeRay:
    """An actor's methods note that they were called; `ray.get` gives what `run` is to return."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.killed = 0
        self.on_create: Callable[[], None] = lambda: None
        self.on_ready: Callable[[], None] = lambda: None
        self.run: Callable[[], int] = lambda: 0
        self.exceptions = SimpleNamespace(GetTimeoutError=TimeoutError)

    def remote(self, **_: object) -> Callable[[Any], Any]:
        return lambda _: self

    def options(self, **_: object) -> Any:
        self.on_create()
        return SimpleNamespace(remote=lambda *_: self.actor())

    def actor(self) -> Any:
        methods = ("__ray_ready__", "run", "stop", "cut")
        return SimpleNamespace(**{name: SimpleNamespace(remote=self.caller(name)) for name in methods})

    def caller(self, name: str) -> Callable[..., str]:
        def call(*_: object) -> str:
            self.calls.append(name)
            return name

        return call

    def get(self, what: str, timeout: float = 0) -> object:
        if what == "__ray_ready__":
            self.on_ready()
            if self.killed:
                raise RuntimeError("the actor died")
        return self.run() if what == "run" else None

    def kill(self, _: object) -> None:
        self.killed += 1


@pytest.fixture
def fake() -> FakeRay:
    return FakeRay()


@pytest.fixture
def said() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def agent(fake: FakeRay, said: list[dict[str, Any]]) -> Agent:
    host: Any = SimpleNamespace(CONTROL="control", Host=object)
    return Agent(fake, host, "1", [], cast("Voice", lambda **told: said.append(told)))


def tend(agent: Agent) -> None:
    agent._tend(KEY, vars(SPEC), DEMAND)


def test_a_worker_runs_and_its_end_is_said(agent: Agent, fake: FakeRay, said: list[dict[str, Any]]) -> None:
    tend(agent)
    assert fake.calls == ["__ray_ready__", "run"] and said[-1] == {"key": KEY, "ended": 0, "code": "", "message": ""}


@pytest.mark.parametrize("moment", ["on_create", "on_ready"])
@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_worker_that_is_stopped_while_its_actor_is_created_is_not_begun(
    agent: Agent, fake: FakeRay, said: list[dict[str, Any]], moment: str, way: str
) -> None:
    setattr(fake, moment, lambda: getattr(agent, way)(KEY))
    tend(agent)
    assert "run" not in fake.calls and fake.killed
    assert said[-1]["ended"] == -1 and not said[-1]["code"], "it has ended, and nothing went wrong"


def test_a_worker_that_is_stopped_before_anything_is_not_begun(agent: Agent, fake: FakeRay) -> None:
    agent.stop(KEY)
    tend(agent)
    assert fake.calls == []


def test_a_worker_that_runs_is_asked_to_stop(agent: Agent, fake: FakeRay) -> None:
    """Its process has time to end; its actor is not killed under it."""

    def run() -> int:
        agent.stop(KEY)
        assert not fake.killed
        return 0

    fake.run = run
    tend(agent)
    assert fake.calls == ["__ray_ready__", "run", "stop"]
    assert not agent._ended and not agent._running, "nothing of it is kept"


def test_a_node_that_cannot_run_the_engine_says_what_to_do(
    agent: Agent, fake: FakeRay, said: list[dict[str, Any]], tmp_path: Path
) -> None:
    """As a fault of what was asked for, which is not tried again by itself, and not as an accident, which is."""

    def run() -> int:
        raise CannotRun(f"the engine native cannot be used on node b: install a C++ compiler, {tmp_path}")

    fake.run = run
    tend(agent)
    assert said[-1]["code"] == "bad_model"
    assert said[-1]["message"] == (
        "mine/native/int8 cannot run on the cluster: the engine native cannot be used on node b: "
        f"install a C++ compiler, {tmp_path}"
    )
