"""Processes on a cluster's nodes, and a worker whose gateway is out of reach. Without a cluster."""

from __future__ import annotations

import itertools
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

pytest.importorskip("ray", reason="needs requirements-cluster.txt")

from protocol import sockets
from protocol.keys import CurveKeys
from protocol.programs import VERSION
from server import link
from server.catalogue.engines import TRAITS
from server.catalogue.notes import digest
from server.config import Config
from server.launch import host, ray
from server.launch.host import DRAFT, Host
from server.launch.local import LocalLauncher
from server.launch.ray import ClusterError, Node, RayLauncher
from server.launch.spec import CUT_OFF, CannotRun, Spec, files_of
from server.link import Started
from tests.conftest import wait_for

SPEC = Spec(
    endpoint="tcp://127.0.0.1:1", server_key="", identity="0" * 32,
    model="mine", folder="/nowhere/mine", hub_cache="", models_dir="", engine="native", precision="int8",
    threads=1, rows=1, room=1 << 30, cache_dir="", cache_bytes=1 << 30,
)  # fmt: skip


def spec(cache: Path, **changed: object) -> Spec:
    return Spec(**{**vars(SPEC), "cache_dir": str(cache), **changed})


@pytest.fixture
def source(tmp_path: Path) -> dict[str, str]:
    """Files and their digests."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(os.urandom(100_000))
    return {file.name: digest(file, lambda *_: None) for file in folder.iterdir()}


def send(to: Host, folder: Path, files: dict[str, str], *, but: str = "") -> None:
    for name in files:
        content = (folder / name).read_bytes()
        for offset in reversed(range(0, len(content), 30_000)):
            if name != but:
                to.take(name, offset, content[offset : offset + 30_000], 100_002)


def test_files_are_used_where_they_are(tmp_path: Path, source: dict[str, str]) -> None:
    here = Host(VERSION, [])
    assert here._folder(spec(tmp_path, folder=str(tmp_path / "source")), source) == tmp_path / "source"
    assert here._folder(spec(tmp_path, folder=str(tmp_path / "source")), source | {"config.json": "0" * 64}) is None, (
        "another model"
    )
    assert here._folder(spec(tmp_path), source) is None


def test_what_was_sent_is_kept_for_the_next(tmp_path: Path, source: dict[str, str]) -> None:
    here = Host(VERSION, [])
    here._cache, here._limit = tmp_path / "cache", 1 << 30
    place: Path | None = None
    for _ in range(2):  # two workers of one node may get the same
        send(here, tmp_path / "source", source)
        place = here._folder(spec(here._cache), source)
        assert place and {f.name: digest(f, lambda *_: None) for f in place.iterdir()} == source
    assert place and Host(VERSION, [])._folder(spec(here._cache), source) == place
    assert [p.name for p in place.parent.iterdir()] == [place.name], "no draft is left"


def test_many_shards_are_kept_under_a_name_that_a_disk_takes(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for i in range(64):
        (folder / f"model-{i}.safetensors").write_bytes(b"%d" % i)
    files = {file.name: digest(file, lambda *_: None) for file in folder.iterdir()}
    here = Host(VERSION, [])
    here._cache, here._limit = tmp_path / "cache", 1 << 30
    send(here, folder, files)
    place = here._folder(spec(here._cache), files)
    assert place and {file.name for file in place.iterdir()} == files.keys()


def test_a_folder_that_would_be_read_otherwise_is_not_used(tmp_path: Path) -> None:
    """A node's folder that has safetensors too is another model than the server's with pytorch_model.bin alone."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("config.json", "pytorch_model.bin", "model.safetensors"):
        (folder / name).write_bytes(b"content")
    files = {name: digest(folder / name, lambda *_: None) for name in ("config.json", "pytorch_model.bin")}
    here = Host(VERSION, [])
    assert here._folder(spec(tmp_path, folder=str(folder)), files) is None
    (folder / "model.safetensors").unlink()
    assert here._folder(spec(tmp_path, folder=str(folder)), files) == folder


@pytest.mark.parametrize("but", ["model.safetensors", "config.json"])
def test_what_did_not_arrive_whole_is_not_used(tmp_path: Path, source: dict[str, str], but: str) -> None:
    here = Host(VERSION, [])
    here._cache, here._limit = tmp_path / "cache", 1 << 30
    send(here, tmp_path / "source", source, but=but)
    assert here._folder(spec(here._cache), source) is None
    send(here, tmp_path / "source", source)
    here.take("model.safetensors", 7, b"other", 9)
    assert here._folder(spec(here._cache), source) is None
    assert not list((here._cache / "received").iterdir())


def test_an_adapter_is_kept_with_its_base(tmp_path: Path) -> None:
    """Both have files of the same names; a changed one of either makes another model."""
    adapter, base = tmp_path / "adapter", tmp_path / "other"
    for folder, name in ((adapter, "adapter_model.safetensors"), (base, "model.safetensors")):
        folder.mkdir()
        (folder / name).write_bytes(os.urandom(100))
        (folder / "tokenizer.json").write_text(name)
    (adapter / "adapter_config.json").write_text("{}")
    orders = spec(tmp_path / "cache", folder=str(adapter), base_folder=str(base))
    sent = files_of(vars(orders))
    files = {name: digest(file, lambda *_: None) for name, file in sent.items()}
    assert set(files) == {
        "adapter_config.json", "tokenizer.json", "adapter_model.safetensors", "base/tokenizer.json",
        "base/model.safetensors",
    }  # fmt: skip
    here = Host(VERSION, [])
    assert here._folder(orders, files) == adapter
    sent["base/model.safetensors"] = (base / "model.safetensors").rename(base / "moved")
    assert here._folder(orders, files) is None
    here._cache, here._limit = tmp_path / "cache", 1 << 30
    for name, file in sent.items():
        here.take(name, 0, file.read_bytes(), 1000)
    place = here._folder(orders, files)
    assert place and place != adapter and here._folder(orders, files) == place
    kept = {str(f.relative_to(place).as_posix()): f.read_bytes() for f in place.rglob("*") if f.is_file()}
    assert kept == {name: file.read_bytes() for name, file in sent.items()}


def test_the_oldest_leave_first(tmp_path: Path) -> None:
    for i, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"x" * 1000)
        os.utime(tmp_path / name, (i, i))
    (tmp_path / f"{DRAFT}1").mkdir()
    os.utime(tmp_path / f"{DRAFT}1", (0, 0))
    (tmp_path / f"{DRAFT}2").mkdir()
    host._make_room(tmp_path, 1500, 3000)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{DRAFT}2", "c"]


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_node_name", lambda: "b")
    with pytest.raises(RuntimeError, match=f"gpt2d {VERSION} is installed on b, and the server is 99"):
        Host("99", [])


def test_an_engine_that_the_node_lacks_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node says what to install; no process is begun there, however often it would be asked."""
    monkeypatch.setattr(host, "_node_name", lambda: "b")
    monkeypatch.setattr(LocalLauncher, "start", lambda *_: pytest.fail("a process was begun"))
    problem = "gpt2d-kernels was installed without a C++ compiler; install one (Debian: g++)"
    monkeypatch.setitem(TRAITS, "native", replace(TRAITS["native"], problem=lambda: problem))
    with pytest.raises(
        CannotRun, match=r"the engine native cannot be used on node b: .* install one \(Debian: g\+\+\)"
    ):
        Host(VERSION, []).run(vars(spec(tmp_path)), {})


def test_a_stop_that_comes_before_the_process_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_node_name", lambda: "b")
    here = Host(VERSION, [])
    begun: list[Worker] = []

    class Worker:
        """Ends when it is asked to, and not before."""

        stopped = False

        def stop(self) -> None:
            self.stopped = True

        def wait(self, timeout: float | None = None) -> int:
            assert self.stopped, "nobody asks it to end"
            return 0

    def start(*_: object) -> Worker:
        Host.stop(here)  # called as by the actor's other thread
        begun.append(Worker())
        return begun[-1]

    monkeypatch.setattr(LocalLauncher, "start", start)
    assert here.run(vars(spec(tmp_path, folder="", engine="onnx")), {}) == 0
    assert [worker.stopped for worker in begun] == [True]


def test_nodes_that_cannot_reach_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [Node(str(i), f"203.0.113.{i}", {}, {}) for i in range(9)]

    def joined(self: RayLauncher) -> None:
        self._nodes = nodes
        self._joined.set()

    monkeypatch.setattr(RayLauncher, "_keep_joined", joined)
    with pytest.raises(
        ClusterError, match=r"203.0.113.5 cannot reach 127.0.0.1; .*--worker-address tcp://ADDRESS:PORT"
    ):
        RayLauncher(Config(cluster="auto")).join()
    launcher = RayLauncher(Config(cluster="auto", worker_address="tcp://203.0.113.99:5557"))
    launcher.join()
    assert f"and {9 - ray.SHOWN} more" in launcher.places()


def test_a_worker_whose_connection_breaks_ends(tmp_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    keys = CurveKeys.new()
    socket, monitor = link.gateway_socket(context, "tcp://127.0.0.1:0", keys)
    given = spec(
        tmp_path,
        endpoint=sockets.endpoint_of(socket),
        server_key=keys.public,
        model="demo",
        folder="",
        node="here",
        task="measure",
    )
    worker = LocalLauncher().start(given, 0)
    try:
        assert socket.poll(20_000), "its first word"
        routing_id, frame = socket.recv_multipart()
        assert routing_id == given.identity.encode() and link.decode_from_worker(frame) == Started(id=None, node="here")
        sockets.close_monitored(socket, monitor)
        assert worker.wait(60) == CUT_OFF, "it does not wait for its task any more"
    finally:
        worker.kill()
        context.destroy(linger=0)


def test_an_agent_that_speaks_nonsense_costs_its_workers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """And another is begun."""
    launcher = RayLauncher(Config(cluster="auto"))
    nodes = '{"nodes": [{"name": "a", "address": "127.0.0.1", "free": {"CPU": 1, "memory": 9e9}, "total": {}}]}'
    lines = itertools.chain([[nodes, "nonsense"]], itertools.repeat(list[str]()))

    def serve(self: RayLauncher) -> None:
        for line in next(lines):
            if line == "nonsense":
                assert known.wait(30)
                process.append(launcher.start(spec(Path(), threads=1), 1))
                assert not launcher._nodes[0].fits({"CPU": 1}), "it is taken until the agent reports again"
            self._on_line(json.loads(line))

    process: list[ray.RayProcess] = []
    known = threading.Event()
    monkeypatch.setattr(RayLauncher, "_serve_agent", serve)
    monkeypatch.setattr(ray, "AGAIN_S", 0.01)
    launcher.join()
    known.set()
    wait_for(lambda: bool(process) and process[0].exit_code() is not None)
    assert "the Ray cluster was left" in str(process[0].problem())
    launcher.close()
