"""Models from the HuggingFace hub: a real daemon and the real library, against a small hub on 127.0.0.1.

tests/server/test_download.py says how to run it with another generation of huggingface_hub.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from protocol import Client, messages as m
from protocol.connection import Event
from protocol.errors import BadModel, Cancelled, LoadFailed, NoMemory, UnknownModel
from scripts.daemon import Daemon
from server.catalogue.architecture import PUBLISHED, read_architecture
from server.catalogue.catalogue import DEMO_FOLDER, Catalogue
from server.catalogue.engines import choose_engine
from server.checkpoint.hub_session import RESUMES
from server.config import Config
from server.gateway.replicas import rows_share
from tests.conftest import wait_for
from tests.hub import COMMIT, Hub
from tests.server.test_weights import copy_demo

WEIGHTS = DEMO_FOLDER / "model.safetensors"
SIZE = WEIGHTS.stat().st_size


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Yield a hub; before it ends, what the test has started does, also where the test failed."""
    with Hub() as hub:
        hub.add("gpt2", DEMO_FOLDER)
        yield hub
        while started:
            started.pop().kill()


started: list[Daemon] = []


def serve(tmp_path: Path, cache: Path, hub: Hub, *arguments: str, **environment: str) -> Daemon:
    daemon = Daemon(
        tmp_path,
        "--cache-dir",
        str(cache),
        *arguments,
        HF_ENDPOINT=hub.url,
        HF_HUB_CACHE=str(tmp_path / "hub"),
        **environment,
    )
    started.append(daemon)
    return daemon


def test_a_download_is_told_in_bytes_and_shared_with_transformers(tmp_path: Path, cache: Path, hub: Hub) -> None:
    daemon = serve(tmp_path, cache, hub)
    told: list[m.Progress] = []
    with Client(daemon.endpoint) as client:
        offered = {model.name: model for model in client.models()}
        assert [name for name, model in offered.items() if not model.on_disk] == list(PUBLISHED)
        assert offered["gpt2"].file_bytes == 548_090_880, (
            "the parameters and attention masks, without the file's header"
        )
        loaded = client.load("gpt2", on_progress=told.append)
        assert client.generate("Shall I", max_new_tokens=3).ids
        usual = PUBLISHED["gpt2"].default_rows(loaded.engine, loaded.precision, rows_share(Config()))
        assert loaded.rows == usual, "as for gpt2's own shape, which was known"
        downloads = [p for p in told if p.stage == "download"]
        done = [p.done for p in downloads]
        assert done == sorted(done) and len(done) > 1
        assert downloads[-1].done == downloads[-1].total == SIZE and {p.unit for p in downloads} == {"bytes"}
        stages = list(dict.fromkeys(p.stage for p in told))
        assert stages[:5] == ["start", "connect", "tokenizer", "download", "verify"] and stages[-1] == "warm up"
        assert {model.name: model for model in client.models()}["gpt2"].on_disk
        asked = len(hub.asked)
        client.unload("gpt2")
        assert client.load("gpt2").digest == loaded.digest
        assert len(hub.asked) == asked, "what is on disk is not asked for again"
    daemon.kill()
    if not find_spec("transformers"):
        return
    script = (
        "from transformers import AutoTokenizer, GPT2LMHeadModel as M; print(M.from_pretrained('gpt2').config.n_embd)"
    )
    offline = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    read = subprocess.run([sys.executable, "-c", script], env=offline, capture_output=True, text=True, timeout=60)
    assert read.stdout.strip() == "256", read.stderr


def test_the_cache_of_transformers_is_used_under_either_name(tmp_path: Path, cache: Path, hub: Hub) -> None:
    folder = tmp_path / "hub" / "models--openai-community--gpt2"
    copy_demo(folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    daemon = serve(tmp_path, cache, hub, "--preload", "gpt2")
    with Client(daemon.endpoint) as client:
        assert client.load("gpt2") and not hub.asked


def test_a_folder_comes_before_the_hub(tmp_path: Path, cache: Path, hub: Hub) -> None:
    copy_demo(tmp_path / "models" / "gpt2")
    daemon = serve(tmp_path, cache, hub)
    with Client(daemon.endpoint) as client:
        assert client.load("gpt2") and not hub.asked


def test_a_cancelled_download_goes_on_where_it_stopped(tmp_path: Path, cache: Path, hub: Hub) -> None:
    daemon = serve(tmp_path, cache, hub)
    hub.stop_after = 6 << 20
    with Client(daemon.endpoint) as client:

        def on_progress(p: m.Progress) -> None:
            if p.stage == "download" and p.done > 5 << 20:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            client.load("gpt2", on_progress=on_progress)
        wait_for(lambda: not daemon.workers())
        hub.stop_after = None
        hub.go.set()
        assert client.load("gpt2")
    first, again = hub.served("model.safetensors")
    assert first == 0 and (5 << 20 <= again <= 6 << 20 if RESUMES else again == 0)
    assert not list((tmp_path / "hub").rglob("*.incomplete"))
    assert (
        tmp_path / "hub" / "models--gpt2" / "snapshots" / COMMIT / "model.safetensors"
    ).read_bytes() == WEIGHTS.read_bytes()


def test_a_cut_connection_is_taken_up_again_by_itself(tmp_path: Path, cache: Path, hub: Hub) -> None:
    hub.cut_after = 5 << 20
    daemon = serve(tmp_path, cache, hub)
    with Client(daemon.endpoint) as client:
        assert client.load("gpt2")
    assert hub.served("model.safetensors") == [0, 5 << 20, 10 << 20]


@pytest.mark.skipif(not RESUMES, reason="this huggingface_hub writes under a name that nobody knows beforehand")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_download_onto_a_full_disk_says_where_room_is_needed(tmp_path: Path, cache: Path, hub: Hub) -> None:
    blobs = tmp_path / "hub" / "models--gpt2" / "blobs"
    blobs.mkdir(parents=True)
    incomplete = blobs / f"{hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()}.incomplete"
    incomplete.symlink_to("/dev/full")
    daemon = serve(tmp_path, cache, hub)
    with Client(daemon.endpoint) as client:
        with pytest.raises(LoadFailed, match=f"the disk of {tmp_path / 'hub'} is full: make room there, or set HF_HUB"):
            client.load("gpt2")
        incomplete.unlink()
        assert client.load("gpt2")


def test_a_damaged_download_is_said_and_deleted(tmp_path: Path, cache: Path, hub: Hub) -> None:
    hub.damaged = True
    daemon = serve(tmp_path, cache, hub)
    with Client(daemon.endpoint) as client:
        with pytest.raises(LoadFailed, match=r"came damaged .* and was deleted; load again"):
            client.load("gpt2")
        hub.damaged = False
        assert client.load("gpt2")


def test_damage_on_disk_is_found(tmp_path: Path, cache: Path, hub: Hub) -> None:
    daemon = serve(tmp_path, cache, hub)
    with Client(daemon.endpoint) as client:
        client.load("gpt2")
        client.unload("gpt2")
        blob = (tmp_path / "hub" / "models--gpt2" / "snapshots" / COMMIT / "model.safetensors").resolve()
        with blob.open("r+b") as file:
            file.seek(SIZE - 1)
            file.write(b"\x55")
        with pytest.raises(BadModel, match=r"is damaged: .* delete that, and load again"):
            client.load("gpt2")
        blob.unlink()
        assert client.load("gpt2")


def test_without_a_network_it_says_what_and_where_instead(tmp_path: Path, cache: Path, hub: Hub) -> None:
    url, hub.url = hub.url, "http://127.0.0.1:9"
    daemon = serve(tmp_path, cache, hub)
    with Client(daemon.endpoint) as client:
        with pytest.raises(LoadFailed) as error:
            client.load("gpt2-xl", timeout=60)
        for part in (
            "http://127.0.0.1:9 cannot be reached",
            "about 6432 MB",
            "model.safetensors",
            str(tmp_path / "models" / "gpt2-xl"),
        ):
            assert part in str(error.value)
    daemon.kill()
    hub.url = url
    daemon = serve(tmp_path, cache, hub, HF_HUB_OFFLINE="1")
    with Client(daemon.endpoint) as client, pytest.raises(LoadFailed, match="HF_HUB_OFFLINE is set"):
        client.load("gpt2")
    assert not hub.asked


def in_shards(folder: Path, parts: int) -> None:
    """Put the embedded model's weights into a folder in shards with an index."""
    tensors = load_file(WEIGHTS)
    placed = {name: f"model-{i % parts + 1:05}-of-{parts:05}.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(placed.values()):
        save_file({name: tensors[name] for name in placed if placed[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def test_of_shards_those_come_that_the_index_names(tmp_path: Path, cache: Path, hub: Hub) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    in_shards(folder, 2)
    for name in ("model-00003-of-00003.safetensors", "pytorch_model.bin"):
        (folder / name).write_bytes(b"not a model")
    hub.add("some/shards", folder)
    hub.add("some/shards", DEMO_FOLDER, "config.json", "tokenizer.json")
    hub.add("some/gap", DEMO_FOLDER, "config.json", "tokenizer.json")
    hub.add("some/gap", folder, "model.safetensors.index.json", "model-00001-of-00002.safetensors")
    daemon = serve(tmp_path, cache, hub, "--allow-hub")
    with Client(daemon.endpoint) as client:
        client.load("some/shards", precision="fp32")
        client.load("demo", precision="fp32")
        texts = [
            client.generate("Shall I", model=name, strategy="greedy", max_new_tokens=8).text
            for name in ("some/shards", "demo")
        ]
        assert texts[0] == texts[1]
        assert [len(hub.served(f"model-{i:05}-of-00002.safetensors")) for i in (1, 2)] == [1, 1]
        assert not hub.served("model-00003-of-00003.safetensors") and not hub.served("pytorch_model.bin")
        offered = {model.name: model for model in client.models()}
        assert offered["some/shards"].file_bytes == sum(file.stat().st_size for file in folder.glob("*-of-00002.*"))
        with pytest.raises(BadModel, match=r"has no model-00002-of-00002.safetensors, which its .*index.json names"):
            client.load("some/gap")
        assert len(hub.served("model-00001-of-00002.safetensors")) == 1, "nothing large came of what has a gap"


def test_a_file_of_torch_comes_where_there_is_no_other(tmp_path: Path, cache: Path, hub: Hub) -> None:
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in load_file(WEIGHTS).items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    hub.add("some/torch", tmp_path, "pytorch_model.bin")
    hub.add("some/torch", DEMO_FOLDER, "config.json", "tokenizer.json")
    daemon = serve(tmp_path, cache, hub, "--allow-hub")
    with Client(daemon.endpoint) as client:
        client.load("some/torch")
        assert client.generate("Shall I", max_new_tokens=3).ids


def test_other_repositories_need_a_word_of_the_operator(tmp_path: Path, cache: Path, hub: Hub) -> None:
    hub.add("some/verse", DEMO_FOLDER)
    hub.add("some/pickle", DEMO_FOLDER, "config.json", "tokenizer.json")
    daemon = serve(tmp_path, cache, hub)
    with Client(daemon.endpoint) as client, pytest.raises(UnknownModel, match="only with --allow-hub"):
        client.load("some/verse")
    assert not hub.asked
    daemon.kill()
    way = "/".join(choose_engine(None, "int4"))
    daemon = serve(tmp_path, cache, hub, "--allow-hub", "--preload", f"some/verse/{way}")
    with Client(daemon.endpoint) as client:
        loaded = client.load("some/verse", precision="int4")
        usual = read_architecture(DEMO_FOLDER).default_rows(loaded.engine, "int4", rows_share(Config()))
        assert loaded.rows == usual, "its own shape, found out on the way"
        assert "some/verse" in [model.name for model in client.models()]
        with pytest.raises(UnknownModel, match="has no model some/thing"):
            client.load("some/thing")
        with pytest.raises(BadModel, match=r"has no model.safetensors or pytorch_model.bin, .* \(other formats"):
            client.load("some/pickle")
        for name in ("../demo", "a/../b", "/etc/passwd", "a//b", "https://x/y"):
            with pytest.raises(UnknownModel):
                client.load(name)


def test_what_is_refused_costs_no_weights(tmp_path: Path, cache: Path, hub: Hub) -> None:
    """Not one request for them: the configuration and the tokenizer are checked first, and a gate is told."""
    hub.files |= {
        f"some/{name}/model.safetensors": WEIGHTS.read_bytes() for name in ("llama", "tokens", "gate", "heads")
    }
    narrow = json.loads((DEMO_FOLDER / "config.json").read_text()) | {"n_head": 64}
    hub.files["some/heads/config.json"] = json.dumps(narrow).encode()
    for name in ("some/tokens", "some/gate"):
        hub.add(name, DEMO_FOLDER, "config.json")
    hub.files |= {"some/llama/config.json": b'{"model_type": "llama"}', "some/tokens/tokenizer.json": b"{}"}
    hub.gated = frozenset({"some/gate"})
    daemon = serve(tmp_path, cache, hub, "--allow-hub", HF_TOKEN="", HF_HOME=str(tmp_path / "home"))
    with Client(daemon.endpoint) as client:
        with pytest.raises(BadModel, match="its architecture is 'llama'; only gpt2 is supported"):
            client.load("some/llama")
        with pytest.raises(BadModel, match="attention heads are 4 wide, and engine onnx computes multiples of 8; use"):
            client.load("some/heads", engine="onnx")
        with pytest.raises(BadModel, match="tokenizer"):
            client.load("some/tokens")
        with pytest.raises(LoadFailed, match=rf"{hub.url}/some/gate is gated: accept its terms on that page, and give"):
            client.load("some/gate")
        assert not [model.name for model in client.models() if model.name.startswith("some/")]
    assert not hub.weights_asked()


def test_an_earlier_snapshot_is_completed_or_told(tmp_path: Path, cache: Path, hub: Hub) -> None:
    """Without a hub it is loaded as it is, as transformers does, and the load says so."""
    folder = tmp_path / "hub" / "models--some--verse"
    copy_demo(folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    hub.add("some/verse", DEMO_FOLDER, "config.json")
    hub.files["some/verse/special_tokens_map.json"] = b"{}"
    daemon = serve(tmp_path, cache, hub, "--allow-hub", HF_HUB_OFFLINE="1")
    with Client(daemon.endpoint) as client:
        (notice,) = client.load("some/verse").notices
        assert notice.startswith("whether its repository has generation_config.json, tokenizer_config.json, ")
        assert notice.endswith("Load it again when the hub can be reached")
    assert not hub.asked
    daemon.kill()
    daemon = serve(tmp_path, cache, hub, "--allow-hub")
    with Client(daemon.endpoint) as client:
        assert client.load("some/verse").notices == []
        assert (folder / "snapshots" / COMMIT / "special_tokens_map.json").read_text() == "{}"
        asked = len(hub.asked)
        client.unload("some/verse")
        assert client.load("some/verse") and len(hub.asked) == asked and not hub.weights_asked()


def test_a_model_that_turns_out_too_large_is_refused_before_its_weights_come(
    tmp_path: Path, cache: Path, hub: Hub
) -> None:
    big = copy_demo(tmp_path / "big", n_embd=4096, n_head=16, n_layer=48)
    hub.add("some/giant", big)
    hub.stop_after = 1 << 20
    daemon = serve(tmp_path, cache, hub, "--allow-hub", "--max-memory", "1")
    with Client(daemon.endpoint) as client:
        with pytest.raises(NoMemory, match=r"some/giant/\w+/int8 needs about \d+ MB"):
            client.load("some/giant")
        wait_for(lambda: not daemon.workers())
        with pytest.raises(NoMemory):
            client.load("gpt2-xl")
    assert [file for _, file, _ in hub.asked if "gpt2-xl" in file] == []


@pytest.mark.parametrize("said", ["etag", "commit"])
def test_a_hub_that_is_none_writes_nothing_anywhere(tmp_path: Path, cache: Path, hub: Hub, said: str) -> None:
    setattr(hub, said, "../../../evil")
    daemon = serve(tmp_path, cache, hub)
    with Client(daemon.endpoint) as client, pytest.raises(LoadFailed, match=f"{said} that is not a digest"):
        client.load("gpt2")
    assert not list(tmp_path.rglob("evil*"))


def test_small_files_are_small(tmp_path: Path, cache: Path, hub: Hub) -> None:
    hub.files["gpt2/config.json"] = b" " * (33 << 20)
    daemon = serve(tmp_path, cache, hub)
    with Client(daemon.endpoint) as client, pytest.raises(BadModel, match="more than such a file ever needs"):
        client.load("gpt2")
    assert not hub.served("config.json")


def test_cancelling_a_load_tells_the_waiter(tmp_path: Path, cache: Path, hub: Hub) -> None:
    hub.stop_after = 0
    daemon = serve(tmp_path, cache, hub)
    with Client(daemon.endpoint) as client:
        events: list[Event] = []
        load = client.connection.submit(m.Load(model="gpt2", stream=True), events.append, 60)
        wait_for(lambda: bool(hub.served("model.safetensors")))
        client.connection.cancel(load)
        wait_for(lambda: isinstance(events[-1], Cancelled))
        wait_for(lambda: not daemon.workers())


@pytest.mark.usefixtures("hub")
def test_what_was_downloaded_once_is_loaded_again_without_the_hub(tmp_path: Path, cache: Path) -> None:
    with Hub() as hub:
        hub.add("gpt2", DEMO_FOLDER)
        daemon = serve(tmp_path, cache, hub, "--preload", "gpt2")
        with Client(daemon.endpoint) as client:
            assert client.load("gpt2")
    (worker,) = daemon.workers()
    worker.kill()
    wait_for(lambda: "is loaded again in" in daemon.logged())
    with Client(daemon.endpoint) as client:
        assert client.load("gpt2", timeout=60)
    assert "cannot be" not in daemon.logged()


def test_names_of_the_cache_are_read_with_care(tmp_path: Path) -> None:
    """A cache that somebody else fills must not lead out of it, nor hide what is there."""
    for name in ("models--gpt2", "models--some--verse", "models--bad--ref"):
        shutil.copytree(DEMO_FOLDER, tmp_path / name / "snapshots" / COMMIT)
        (tmp_path / name / "refs").mkdir()
        (tmp_path / name / "refs" / "main").write_text("\udcff" if "bad" in name else COMMIT, errors="surrogateescape")
    shutil.copytree(DEMO_FOLDER, tmp_path / "elsewhere")
    (tmp_path / "models--bad--road" / "refs").mkdir(parents=True)
    (tmp_path / "models--bad--road" / "snapshots").mkdir()
    (tmp_path / "models--bad--road" / "refs" / "main").write_text("../../elsewhere")
    names = [model.name for model in Catalogue(tmp_path / "none", tmp_path, allow_hub=True).models() if model.folder]
    assert names == ["demo", "gpt2", "some/verse"]
