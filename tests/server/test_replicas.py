"""Table of replicas: the memory that is reserved for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from protocol.errors import NoMemory
from protocol.keys import CurveKeys
from server.catalogue.catalogue import DEMO, Catalogue
from server.config import Config
from server.gateway.replicas import Replica, Replicas
from server.launch.spec import Spec


class Idle:
    """Process that does nothing."""

    def exit_code(self) -> int | None:
        return None

    def problem(self) -> None:
        return None

    def progress(self) -> None:
        return None

    def renew(self, routing_id: str) -> bool:
        return False

    def stop(self) -> None: ...

    def kill(self) -> None: ...


class Launcher:
    free = 400_000_000

    def start(self, spec: Spec, memory_bytes: int) -> Idle:
        self.spec = spec
        return Idle()

    def free_memory(self, untaken: int) -> int:
        return self.free - untaken

    def places(self) -> str:
        return ""

    def close(self) -> None: ...


@dataclass
class Started:
    replicas: Replicas
    replica: Replica
    launcher: Launcher


@pytest.fixture
def started(tmp_path: Path) -> Started:
    launcher = Launcher()
    replicas = Replicas(
        Config(models_dir=tmp_path, hub_cache=tmp_path), CurveKeys.new(), "tcp://127.0.0.1:1", launcher, launcher
    )
    replica = replicas.start(Catalogue(tmp_path, tmp_path).find(DEMO), "native", "int8")
    return Started(replicas, replica, launcher)


def test_what_is_taken_already_is_not_asked_for_again(started: Started) -> None:
    replicas, replica = started.replicas, started.replica
    need = replica.reserved
    started.launcher.free = 10_000_000  # it has loaded: what it needs is gone from what is free
    replicas.resize(replica, need)
    replicas.resize(replica, need // 2)
    assert replica.reserved == need // 2


def test_growth_is_asked_for(started: Started) -> None:
    with pytest.raises(NoMemory):
        started.replicas.resize(started.replica, started.replica.reserved + 500_000_000)
