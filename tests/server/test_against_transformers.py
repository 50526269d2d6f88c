"""A daemon gives the tokens, texts and log-probabilities of transformers, or refuses with a sentence that says why.

These are some of the kinds of folders that scripts/checkpoints compares with transformers 5. Here the version in this
environment is asked, and where that answers otherwise, what the newer one said is in tests/data/checkpoints.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch

from protocol import Client
from scripts.checkpoints import judge, ours
from scripts.checkpoints.compare import compare
from scripts.checkpoints.environment import judges_python
from scripts.checkpoints.kind import Kind
from scripts.checkpoints.list import KINDS
from scripts.checkpoints.run import COMMITTED, make, refuse
from scripts.daemon import Daemon

GATE = [kind for kind in KINDS if kind.gate and not kind.refused]
REFUSED = [kind for kind in KINDS if kind.gate and kind.refused]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def asked(place: Path) -> Iterator[Client]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are so small that a second one only costs
    with Daemon(place) as daemon, Client(daemon.endpoint) as client:
        yield client
    torch.set_num_threads(threads)


def expected(kind: Kind, folder: Path, place: Path) -> judge.Answer:
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    if kind.name in committed:
        return cast("judge.Answer", committed[kind.name])
    if kind.judged:
        folder = make(place / "judged" / kind.name, kind.judged)
    return judge.ask(folder, list(kind.texts), list(kind.prompts))


@pytest.mark.parametrize("kind", GATE, ids=lambda kind: kind.name)
def test_a_folder_is_read_as_transformers_reads_it(place: Path, asked: Client, kind: Kind) -> None:
    folder = make(place / "models" / kind.name, kind.make)
    theirs = expected(kind, folder, place)
    for engine in ("native", "onnx") if kind.blocks else ("native",):
        assert compare(kind, theirs, ours.ask(asked, kind, engine, "fp32"), "fp32").differences == []


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.name)
def test_what_transformers_would_read_otherwise_is_refused(place: Path, asked: Client, kind: Kind) -> None:
    make(place / "models" / kind.name, kind.make)
    assert refuse(asked, kind).differences == []


def test_a_difference_is_found(place: Path, asked: Client) -> None:
    """Of tokens, probabilities, offsets, text, and how it ended: else nothing above would mean anything."""
    kind = GATE[0]
    folder = make(place / "models" / kind.name, kind.make)
    mine = ours.ask(asked, kind, "native", "fp32")
    theirs = expected(kind, folder, place)
    assert compare(kind, theirs, mine, "fp32").differences == []
    told, prompt = theirs["texts"][0], theirs["prompts"][0]
    others: list[judge.Answer] = [
        theirs | {"texts": [told | {"ids": [1, *told["ids"][1:]]}, *theirs["texts"][1:]]},
        theirs | {"texts": [told | {"spans": [[40, 41], *told["spans"][1:]]}, *theirs["texts"][1:]]},
        theirs | {"texts": [told | {"logprobs": [None, -1.0, *told["logprobs"][2:]]}, *theirs["texts"][1:]]},
        theirs | {"prompts": [prompt | {"ids": [1, *prompt["ids"][1:]]}, *theirs["prompts"][1:]]},
        theirs | {"prompts": [prompt | {"text": prompt["text"][1:]}, *theirs["prompts"][1:]]},
        theirs | {"prompts": [prompt | {"ended": not prompt["ended"]}, *theirs["prompts"][1:]]},
    ]
    for other in others:
        assert len(compare(kind, other, mine, "fp32").differences) == 1


def test_a_folder_with_other_files_is_not_made_an_environment(tmp_path: Path) -> None:
    """venv would delete them."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OSError, match="has files, and no Python with transformers"):
        judges_python(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
