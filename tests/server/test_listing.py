"""The models are looked at beside the gateway's thread: never an empty answer, never an old one, never in the way."""

from __future__ import annotations

import select
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from protocol import Client, codec, messages as m
from scripts.daemon import Daemon
from server.catalogue.catalogue import DEMO_FOLDER, Catalogue, Model
from server.config import Config
from server.gateway import listing, status
from server.gateway.listing import Listing, Look
from server.gateway.replicas import Replica, Replicas

FOLDERS = 1_000
THREAD_S = 0.02
"""How much of the gateway's thread may go into an answer."""
PING_S = 0.1
"""How long a ping may take meanwhile, on a machine that is busy with other things, too."""


def make_folders(models: Path, count: int) -> None:
    for i in range(count):
        folder = models / f"model-{i}"
        folder.mkdir(parents=True)
        shutil.copy(DEMO_FOLDER / "config.json", folder)
        (folder / "model.safetensors").write_bytes(b"x")
        (folder / "tokenizer.json").write_bytes(b"x")


class SlowCatalogue(Catalogue):
    """Looks when a test lets it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, folder / "hub")
        self.go = threading.Semaphore(0)
        self.looks = 0
        self.fault: Exception | None = None

    def models(self) -> list[Model]:
        assert threading.current_thread() is not threading.main_thread()
        self.go.acquire(timeout=30)
        self.looks += 1
        if self.fault:
            raise self.fault
        return super().models()


@pytest.fixture
def catalogue(tmp_path: Path) -> SlowCatalogue:
    return SlowCatalogue(tmp_path)


@pytest.fixture
def asked(catalogue: SlowCatalogue, tmp_path: Path) -> Iterator[Listing]:
    made = Listing(catalogue, replace(Config(), cache_dir=tmp_path / "cache"))
    yield made
    catalogue.go.release(100)
    made.close()


def wait(asked: Listing) -> list[tuple[int, Look]]:
    """What the gateway's loop does: sleep until a look has ended."""
    assert select.select([asked.woken], [], [], 30)[0]
    return asked.take()


def test_nobody_gets_an_answer_before_the_first_look(asked: Listing, catalogue: SlowCatalogue) -> None:
    assert asked.take() == [] and not select.select([asked.woken], [], [], 0)[0]
    asked.ask(1)
    assert asked.take() == []
    asked.ask(2)
    assert asked.take() == [] and catalogue.looks == 0
    catalogue.go.release()
    served = wait(asked)
    assert [key for key, _ in served] == [1, 2], "both were waiting for the one look"
    assert all("demo" in look.models and "demo" in look.packed for _, look in served)
    assert catalogue.looks == 1 and not select.select([asked.woken], [], [], 0)[0]
    assert asked.take() == [], "each is answered once"


def test_an_answer_serves_for_a_while(
    asked: Listing, catalogue: SlowCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert listing.MAX_AGE_S <= 1
    monkeypatch.setattr(listing, "MAX_AGE_S", 3600)
    catalogue.go.release(10)
    asked.ask(1)
    asked.take()
    ((_, first),) = wait(asked)
    asked.ask(2)
    assert asked.take() == [(2, first)] and catalogue.looks == 1
    monkeypatch.setattr(listing, "MAX_AGE_S", 0)
    asked.ask(3)
    assert asked.take() == []
    ((key, look),) = wait(asked)
    assert key == 3 and look is not first and catalogue.looks == 2


def test_what_has_changed_is_seen(asked: Listing, catalogue: SlowCatalogue, tmp_path: Path) -> None:
    """A look that was under way when something changed is not what those want who ask after it."""
    asked.ask(1)
    asked.take()
    make_folders(tmp_path, 1)
    asked.changed()
    asked.ask(2)
    catalogue.go.release()
    assert [key for key, _ in wait(asked)] == [1]
    catalogue.go.release()
    ((key, look),) = wait(asked)
    assert key == 2 and "model-0" in look.models


def test_a_look_that_fails_is_an_answer_too(asked: Listing, catalogue: SlowCatalogue) -> None:
    catalogue.fault = ZeroDivisionError("no such thing")
    catalogue.go.release()
    asked.ask(1)
    asked.take()
    ((_, look),) = wait(asked)
    assert look.error is catalogue.fault
    catalogue.fault = None


@pytest.mark.usefixtures("no_threads")
def test_no_thread_for_a_look_is_an_answer_too(asked: Listing) -> None:
    asked.ask(1)
    assert asked.take() == []
    ((key, look),) = wait(asked)
    assert key == 1 and isinstance(look.error, RuntimeError)


def test_a_disk_that_does_not_answer_keeps_nobody_from_closing(tmp_path: Path) -> None:
    catalogue = SlowCatalogue(tmp_path)
    asked = Listing(catalogue, Config())
    asked.ask(1)
    asked.take()
    asked.close()
    catalogue.go.release()
    for thread in threading.enumerate():
        if thread.name == "models":
            thread.join(10)


class SlowToWake:
    """The looking thread's socket, at which it stands still until a test lets it."""

    def __init__(self, far: socket.socket) -> None:
        self._far = far
        self.reached, self.go = threading.Event(), threading.Event()

    def send(self, data: bytes) -> int:
        self.reached.set()
        assert self.go.wait(30)
        return self._far.send(data)

    def close(self) -> None:
        self._far.close()


def test_a_look_that_wakes_late_wakes_once(asked: Listing, catalogue: SlowCatalogue) -> None:
    """The loop may come by between the look's end and its word, which then must not wake it again and again."""
    asked._far = slow = cast("Any", SlowToWake(asked._far))
    asked.ask(1)
    asked.take()
    catalogue.go.release()
    assert slow.reached.wait(30)
    served = asked.take()
    slow.go.set()
    served += wait(asked)
    assert [key for key, _ in served] == [1]
    asked.take()
    assert not select.select([asked.woken], [], [], 0)[0]


class NoReplicas:
    def models(self) -> list[Replica]:
        return []


def test_a_thousand_folders_cost_the_gateways_thread_little(tmp_path: Path) -> None:
    """What its thread computes for an answer, from the first on."""
    make_folders(tmp_path / "models", FOLDERS)
    config = replace(Config(), models_dir=tmp_path / "models", cache_dir=tmp_path / "cache")
    asked = Listing(Catalogue(config.models_dir, tmp_path / "hub"), config)
    computed = -time.thread_time()
    asked.ask(1)
    assert asked.take() == []
    computed += time.thread_time()
    assert select.select([asked.woken], [], [], 60)[0]
    computed -= time.thread_time()
    ((_, look),) = asked.take()
    frame = codec.encode(status.model_list(look.models, look.packed, cast("Replicas", NoReplicas())))
    computed += time.thread_time()
    asked.close()
    reply = codec.decode_reply(frame)
    assert isinstance(reply, m.ModelList) and len(reply.models) == FOLDERS + 6
    assert computed < THREAD_S


def test_others_are_answered_while_a_thousand_folders_are_looked_at(tmp_path: Path) -> None:
    """From the first moment of a daemon on."""
    make_folders(tmp_path / "models", FOLDERS)
    daemon = Daemon(tmp_path, "--max-rate-per-peer", "100000")
    answers: list[int] = []
    try:
        with Client(daemon.endpoint) as client, Client(daemon.endpoint) as other:
            other.ping()
            asking = threading.Thread(target=lambda: answers.append(len(client.models())))
            asking.start()
            pings = []
            while asking.is_alive():
                began = time.perf_counter()
                other.ping()
                pings.append(time.perf_counter() - began)
            asking.join()
            assert answers == [FOLDERS + 6], "all of them, in the first answer"
            # Were they looked at in the gateway's thread, a ping or two would wait for all of it.
            assert len(pings) > 5 and sorted(pings)[len(pings) // 2] < PING_S
    finally:
        daemon.kill()


def test_a_folder_that_was_copied_just_now_is_known(tmp_path: Path) -> None:
    """To a load at once, and to whom asks for the models after it."""
    daemon = Daemon(tmp_path)
    try:
        with Client(daemon.endpoint) as client:
            assert "mine" not in [model.name for model in client.models()]
            shutil.copytree(DEMO_FOLDER, tmp_path / "models" / "mine")
            assert client.load("mine").model == "mine"
            (found,) = [model for model in client.models() if model.name == "mine"]
            (loaded,) = [p for p in found.precisions if p.loaded]
            assert len(loaded.replicas) == 1
            client.unload("mine")
            (found,) = [model for model in client.models() if model.name == "mine"]
            assert not any(p.loaded or p.replicas for p in found.precisions)
    finally:
        daemon.kill()
