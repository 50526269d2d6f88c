"""What is wrong with a folder, or remarkable, is told by `models` without loading it, and costs nobody anything."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from protocol import Client, messages as m
from protocol.errors import BadModel
from scripts.daemon import Daemon
from server.catalogue import findings
from server.catalogue.catalogue import DEMO_FOLDER, Catalogue
from server.catalogue.findings import Finding
from server.checkpoint.inspection import LOWEST, inspect
from server.config import Config
from server.gateway import inspector
from server.gateway.listing import Listing, Look

KNOWN_S = 60


def copy(folder: Path) -> Path:
    return Path(shutil.copytree(DEMO_FOLDER, folder))


def without_a_tensor(folder: Path) -> None:
    """config.json says that there is one more layer."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": config["n_layer"] + 1}))


def with_another_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    table = next(tensor for name, tensor in tensors.items() if name.endswith("wte.weight"))
    save_file(tensors | {"lm_head.weight": np.ascontiguousarray(table + 1)}, folder / "model.safetensors")


def with_a_token_of_its_own_before_every_text(folder: Path) -> None:
    """The tokenizer has one token more than the model."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 4096, "content": "[CLS]"})
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [4096], "tokens": ["[CLS]"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def known(client: Client, name: str) -> m.ModelInfo:
    """Ask until the folder has been looked into; nobody tells when that is."""
    give_up = time.monotonic() + KNOWN_S
    while time.monotonic() < give_up:
        (info,) = [model for model in client.models() if model.name == name]
        if info.problem or info.notices:
            return info
    raise AssertionError(f"nothing was found out about {name}")


def test_models_tells_what_a_load_would(tmp_path: Path) -> None:
    """The same sentences, and they go when the folder is mended."""
    without_a_tensor(copy(tmp_path / "models" / "broken"))
    (copy(tmp_path / "models" / "mute") / "tokenizer.json").write_text("{}")
    with_another_head(copy(tmp_path / "models" / "headed"))
    with_a_token_of_its_own_before_every_text(copy(tmp_path / "models" / "larger"))
    with Daemon(tmp_path, "--max-rate-per-peer", "100000") as daemon, Client(daemon.endpoint) as client:
        assert "puts '[CLS]' before every text, token 4096" in known(client, "larger").problem
        for name in ("broken", "mute", "larger"):
            with pytest.raises(Exception, match=name) as refused:
                client.load(name)
            assert known(client, name).problem in str(refused.value)
        headed = known(client, "headed")
        assert headed.notices == client.load("headed").notices != [] and headed.precisions and not headed.problem
        shutil.copy(DEMO_FOLDER / "config.json", tmp_path / "models" / "broken")
        (info,) = [model for model in client.models() if model.name == "broken"]
        assert not info.problem and info.precisions


ODD = "a\ud800\x1b[31mb"
"""What JSON can hold and a message cannot, and what steers a terminal."""
SHOWN = r"a\ud800\x1b[31mb"


def test_what_is_no_text_is_told_as_escapes(tmp_path: Path) -> None:
    """One such folder costs the others nothing: not the listing, and not its own load where it can be loaded."""
    models = tmp_path / "models"
    suggests = {"eos_token_id": 0, "stop_strings": ODD}
    (copy(models / "suggests") / "generation_config.json").write_text(json.dumps(suggests))
    config = json.loads((DEMO_FOLDER / "config.json").read_text())
    (copy(models / "pruned") / "config.json").write_text(json.dumps(config | {"pruned_heads": ODD}))
    (copy(models / "mute") / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": ODD}))
    misnamed = copy(models / "misnamed")
    (misnamed / "model.safetensors").rename(misnamed / os.fsdecode(b"poids-\xe9.safetensors"))
    with Daemon(tmp_path, "--max-rate-per-peer", "100000") as daemon, Client(daemon.endpoint) as client:
        assert SHOWN in known(client, "pruned").problem and SHOWN in known(client, "mute").problem
        assert r"here is poids-\udce9.safetensors" in known(client, "misnamed").problem
        with pytest.raises(BadModel) as refused:
            client.load("mute")
        assert SHOWN in str(refused.value)
        loaded = client.load("suggests")
        assert any(SHOWN in notice for notice in loaded.notices)
        assert known(client, "suggests").notices == loaded.notices


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Listing]:
    config = replace(Config(), models_dir=tmp_path / "models", cache_dir=tmp_path / "cache")
    made = Listing(Catalogue(config.models_dir, tmp_path / "hub"), config)
    yield made
    made.close()


def look(asked: Listing) -> dict[str, m.ModelInfo]:
    asked.changed()
    asked.ask(1)
    served: list[tuple[int, Look]] = []
    while not served:
        served = asked.take()
        if not served:
            assert select.select([asked.woken], [], [], 30)[0]
    return served[0][1].models


def settle(asked: Listing) -> None:
    """Wait until nothing looks into files any more."""
    give_up = time.monotonic() + KNOWN_S
    while asked._inspector._process and time.monotonic() < give_up:
        time.sleep(0.005)


FATAL = """
import json, os, sys
folders = [bytes.fromhex(f).decode() for f, base in json.loads(sys.stdin.readline())["folders"]]
with open({record!r}, "a") as record:
    for number, folder in enumerate(folders):
        print(number, flush=True)
        print(os.path.basename(folder), os.nice(0), file=record, flush=True)
        if "fatal" in folder:
            os.abort()
"""


def test_a_folder_that_ends_the_process_is_tried_once(
    asked: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those after it all the same."""
    for name in ("a", "b-fatal", "c"):
        copy(tmp_path / "models" / name)
    record = tmp_path / "record"
    (tmp_path / "program.py").write_text(FATAL.format(record=str(record)))
    monkeypatch.setattr(inspector, "ROOT", str(tmp_path))
    monkeypatch.setattr(inspector, "PROGRAM", "program")
    for _ in range(4):
        assert not any(info.problem for info in look(asked).values())
        settle(asked)
    assert [line.split()[0] for line in record.read_text().splitlines()] == ["a", "b-fatal", "c"]


def test_a_process_that_cannot_start_is_tried_once(
    asked: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(tmp_path / "models" / "a")
    monkeypatch.setattr(inspector, "PROGRAM", "no_such_module")
    started: list[object] = []

    def popen(command: list[str], **settings: Any) -> subprocess.Popen[bytes]:
        started.append(command)
        return begin(command, **settings)

    begin = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", popen)
    for executable in (sys.executable, "/nowhere"):
        monkeypatch.setattr(sys, "executable", executable)
        (tmp_path / "models" / "a" / "config.json").touch()
        for _ in range(3):
            assert "a" in look(asked)
            settle(asked)
    assert len(started) == 2


def test_a_look_that_takes_too_long_is_ended(asked: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy(tmp_path / "models" / "a")
    (tmp_path / "program.py").write_text("import sys\nprint(0, flush=True)\nsys.stdin.read()\n")
    monkeypatch.setattr(inspector, "ROOT", str(tmp_path))
    monkeypatch.setattr(inspector, "PROGRAM", "program")
    monkeypatch.setattr(inspector, "LOOK_S", 0.3)
    look(asked)
    process = asked._inspector._process
    assert process
    assert process.wait(30) != 0


def test_it_yields_to_everybody_and_ends_with_its_daemon(tmp_path: Path) -> None:
    first = copy(tmp_path / "models" / "0")
    for number in range(1, 100):
        shutil.copytree(first, tmp_path / "models" / str(number), copy_function=os.link)
    with Daemon(tmp_path) as daemon, Client(daemon.endpoint) as client:
        client.models()
        (looking,) = psutil.Process(daemon.process.pid).children()
        while looking.nice() != LOWEST:  # raises if it ends first
            time.sleep(0.001)
        daemon.kill()
        assert looking.wait(30) is None


def test_a_finding_is_of_the_files_as_they_are(tmp_path: Path) -> None:
    folder = copy(tmp_path / "model")
    seen = findings.state(folder)
    assert inspect(folder) == Finding() and findings.found(folder, tmp_path, seen) is None
    findings.keep(folder, tmp_path, seen, Finding(problem="broken"))
    assert findings.found(folder, tmp_path, findings.state(folder)) == Finding(problem="broken")
    (folder / "added_tokens.json").write_text("{}")
    assert findings.found(folder, tmp_path, findings.state(folder)) is None
