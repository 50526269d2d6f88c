"""Where texts begin and end: the same tokens as transformers takes from config.json and generation_config.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from protocol import messages as m
from protocol.errors import BadModel
from server.catalogue.architecture import read_architecture
from server.catalogue.catalogue import DEMO_FOLDER, Catalogue
from server.catalogue.findings import Finding
from server.catalogue.generation import OLD_END, read_bounds
from server.config import Config
from server.engines.base import Engine
from server.engines.load import load_engine
from server.engines.native import NativeEngine
from server.gateway.status import describe
from tests.server.test_weights import copy_demo
from tests.server.test_worker import Loop

ABSENT = object()
WITHOUT_FILE = object()


def folder_with(
    folder: Path, config: object, generation: object, key: str = "eos_token_id", like: Path = DEMO_FOLDER
) -> Path:
    """Return a copy of a model with 4096 tokens, whose files have `key` as given, or not at all."""
    shutil.copytree(like, folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    settings = json.loads((folder / "config.json").read_text())
    for name in ("bos_token_id", "eos_token_id"):
        settings.pop(name, None)
    settings |= {} if config is ABSENT else {key: config}
    (folder / "config.json").write_text(json.dumps(settings))
    if generation is not WITHOUT_FILE:
        told = {} if generation is ABSENT else {key: generation}
        (folder / "generation_config.json").write_text(json.dumps({"transformers_version": "4.57.6"} | told))
    return folder


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        (7, WITHOUT_FILE, (7,)), ([9, 7], WITHOUT_FILE, (7, 9)), ([7], WITHOUT_FILE, (7,)),
        (None, WITHOUT_FILE, ()), (ABSENT, WITHOUT_FILE, ()), ([], WITHOUT_FILE, ()),
        (4096, WITHOUT_FILE, ()), (-1, WITHOUT_FILE, ()), ([7, 4096], WITHOUT_FILE, (7,)),
        (7, ABSENT, ()), (7, None, ()), (7, 9, (9,)), (7, [8, 9], (8, 9)), (ABSENT, 9, (9,)), (7, 4096, ()),
    ],
)  # fmt: skip
def test_the_end_of_text_is_a_set(tmp_path: Path, config: object, generation: object, ends: tuple[int, ...]) -> None:
    """A generation_config.json takes the place of config.json as a whole, also where it names no token."""
    arch = read_architecture(folder_with(tmp_path / "own", config, generation))
    assert arch.ends == ends
    assert any("only max_new_tokens and stop strings end a text" in told for told in arch.notices) == (not ends)


@pytest.mark.parametrize(
    ("config", "generation", "start"),
    [(7, WITHOUT_FILE, 7), (None, WITHOUT_FILE, None), (ABSENT, WITHOUT_FILE, None), (4096, WITHOUT_FILE, None),
     (-1, WITHOUT_FILE, None), (7, ABSENT, None), (7, 9, 9), (ABSENT, 9, 9)],
)  # fmt: skip
def test_a_text_begins_with_bos(tmp_path: Path, config: object, generation: object, start: int | None) -> None:
    assert read_architecture(folder_with(tmp_path / "own", config, generation, "bos_token_id")).start == start


def test_without_bos_a_text_begins_with_the_first_end_of_text(tmp_path: Path) -> None:
    assert read_architecture(folder_with(tmp_path / "own", [4096, 9, 7], WITHOUT_FILE)).start == 9


def test_a_token_that_only_transformers_4_takes_is_told(tmp_path: Path) -> None:
    (told,) = read_bounds(tmp_path, {}, OLD_END + 1).notices
    assert told == (
        "its config.json names no eos_token_id: only max_new_tokens and stop strings end a text, as in transformers 5 "
        "(4 took 50256)"
    )
    assert all(
        "4 took" not in n
        for v in (OLD_END, OLD_END + 1)
        for n in read_bounds(tmp_path, {"eos_token_id": None}, v).notices
    )


def test_sampling_settings_are_told(tmp_path: Path) -> None:
    folder = copy_demo(tmp_path / "own")
    told = {"eos_token_id": 0, "do_sample": False, "temperature": 0.7, "top_p": 0.9, "top_k": 50, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(told))
    assert read_architecture(folder).notices == (
        "its generation_config.json suggests temperature 0.7, top_p 0.9; they are not applied",
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "generation_config.json cannot be read"), ("", "generation_config.json cannot be read"),
        ("[1]", "generation_config.json is not a map"), ("[" * 200_000, "generation_config.json cannot be read"),
        (" " * (1 << 20) + "{}", "generation_config.json is over 1048576 bytes"),
        ("version https://git-lfs.github.com/spec/v1\n", "generation_config.json is a Git LFS pointer: run git"),
        ('{"eos_token_id": "7"}', "generation_config.json has eos_token_id=7; expected a token"),
        ('{"bos_token_id": [7]}', r"generation_config.json has bos_token_id=\[7\]; expected a token"),
    ],
)  # fmt: skip
def test_a_generation_config_that_cannot_be_read_is_refused(tmp_path: Path, content: str, says: str) -> None:
    folder = copy_demo(tmp_path / "own")
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(BadModel, match=says):
        read_architecture(folder)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Let torch compute such small matrices in one thread, where others would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model with the vocabulary of demo, and its tokenizer, that is soon computed."""
    folder = copy_demo(tmp_path_factory.mktemp("models") / "small", n_layer=1, n_head=2, n_embd=16, n_positions=64)
    torch.manual_seed(3)
    config = GPT2Config.from_pretrained(folder, initializer_range=0.5)
    make: Any = GPT2LMHeadModel
    make(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["native", "onnx"])  # native guesses ahead
def engine(small: Path, cache: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = load_engine(small, read_architecture(small), request.param, "fp32", 8, 1, cache, 1 << 30, lambda *_: None)
    yield made.engine
    made.engine.close()


def written(engine: Engine, folder: Path, **fields: Any) -> m.Generated:
    """Return what a worker writes that read its tokens of beginning and end from `folder`."""
    name = "native" if isinstance(engine, NativeEngine) else "onnx"
    loop = Loop(engine=engine, name=name, folder=folder, arch=read_architecture(folder))
    loop.ask(1, **fields)
    loop.turn(60)
    (result,) = loop.link.sent
    assert isinstance(result, m.Generated), result
    return result


def theirs(folder: Path, prompt: list[int] | None, **fields: Any) -> list[list[int]]:
    """Return the new tokens of transformers' `generate`, padding cut off, by the folder's files alone."""
    model = GPT2LMHeadModel.from_pretrained(folder)
    given = torch.tensor([prompt]) if prompt else None
    padding = 4095 if model.generation_config.eos_token_id is not None else None
    out = model.generate(given, max_new_tokens=LENGTH, do_sample=False, pad_token_id=padding, **fields)
    rows = [row[len(prompt or "1") :].tolist() for row in out]
    return [row[: row.index(padding)] if padding in row else row for row in rows]


LENGTH = 16
PROMPT = [5, 77, 300, 12]
NONE, OUTSIDE = None, 4096


@pytest.fixture(scope="module")
def usual(engine: Engine, small: Path) -> list[int]:
    """Return the greedy tokens that nothing ends."""
    ids = written(engine, small, prompt_ids=PROMPT, strategy="greedy", max_new_tokens=LENGTH, ignore_eos=True).ids
    assert [ids.index(ids[i]) for i in (2, 4, 6)] == [2, 4, 6]
    return ids


def sets(usual: list[int]) -> list[object]:
    """Return ends of text as a file may have them, some of which come in the greedy text."""
    return [NONE, usual[4], [usual[6], usual[4]], OUTSIDE, [OUTSIDE, usual[2]], -1]


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("generation", [False, True])
def test_greedy_texts_end_where_those_of_transformers_do(
    engine: Engine, small: Path, usual: list[int], tmp_path: Path, number: int, generation: bool
) -> None:
    ends = sets(usual)[number]
    folder = folder_with(tmp_path / "own", *((usual[1], ends) if generation else (ends, WITHOUT_FILE)), like=small)
    for least in (0, 5):
        got = written(engine, folder, prompt_ids=PROMPT, strategy="greedy", max_new_tokens=LENGTH, min_new_tokens=least)
        assert [got.ids] == theirs(folder, PROMPT, **({"min_new_tokens": least} if least else {}))
        assert got.finish_reason == ("length" if len(got.ids) == LENGTH else "eos")


@pytest.mark.parametrize(("number", "stopping"), [(0, "no"), (1, "no"), (2, "yes"), (4, "no")])
def test_beams_end_where_those_of_transformers_do(
    engine: Engine, small: Path, usual: list[int], tmp_path: Path, number: int, stopping: str
) -> None:
    folder = folder_with(tmp_path / "own", sets(usual)[number], WITHOUT_FILE, like=small)
    got = written(
        engine, folder, prompt_ids=PROMPT, strategy="beam", n=3, num_beams=3, max_new_tokens=LENGTH,
        early_stopping=stopping, min_new_tokens=2,
    )  # fmt: skip
    want = theirs(
        folder, PROMPT, num_beams=3, num_return_sequences=3, early_stopping=stopping == "yes", min_new_tokens=2
    )
    assert [got.ids, *(other.ids for other in got.others)] == want


def test_a_beam_goes_on_beside_two_ends_that_are_likelier(
    engine: Engine, small: Path, usual: list[int], tmp_path: Path
) -> None:
    ends = [usual[4], usual[6]]
    folder = folder_with(tmp_path / "own", ends, WITHOUT_FILE, like=small)
    got = written(
        engine, folder, prompt_ids=PROMPT, strategy="beam", n=3, num_beams=3, max_new_tokens=LENGTH,
        early_stopping="never", length_penalty=2.0, logit_bias=[(token, 8.0) for token in ends],
    )  # fmt: skip
    want = theirs(
        folder, PROMPT, num_beams=3, num_return_sequences=3, early_stopping="never", length_penalty=2.0,
        sequence_bias=[[[token], 8.0] for token in ends],
    )  # fmt: skip
    assert [got.ids, *(other.ids for other in got.others)] == want


def test_an_empty_prompt_is_that_of_transformers(engine: Engine, small: Path, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "own", 9, WITHOUT_FILE, "bos_token_id", small)
    prompts: list[dict[str, Any]] = [{"prompt": ""}, {"prompt_ids": []}]
    for prompt in prompts:
        got = written(engine, folder, strategy="greedy", max_new_tokens=LENGTH, **prompt)
        assert [got.ids] == theirs(folder, None) and got.ledger.prompt_tokens == 1


def test_an_empty_prompt_is_refused_where_the_model_has_no_token_for_it(
    engine: Engine, small: Path, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path / "own", None, WITHOUT_FILE, like=small)
    loop = Loop(engine=engine, folder=folder, arch=read_architecture(folder))
    loop.ask(1, prompt="")
    loop.ask(2, prompt_ids=[])
    for reply in loop.link.sent:
        assert isinstance(reply, m.Failure) and reply.code == "bad_request"
        assert "the prompt is empty, and this model has neither a bos_token_id nor" in reply.message
    assert len(loop.link.sent) == 2


def test_the_list_of_models_tells_it(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "own", None, WITHOUT_FILE)
    (model,) = [found for found in Catalogue(tmp_path, tmp_path / ".hub").models() if found.folder == folder]
    assert describe(model, Finding(notices=["found"]), Config()).notices == [
        "its config.json names no eos_token_id: only max_new_tokens and stop strings end a text", "found",
    ]  # fmt: skip


def test_a_built_file_is_the_same_whatever_ends_a_text(tmp_path: Path) -> None:
    """Its name has the repr of the shape (engines/load.py), which has what changes the mathematics alone."""
    shapes = [read_architecture(folder_with(tmp_path / str(end), end, WITHOUT_FILE)) for end in (7, None)]
    assert shapes[0] != shapes[1] and str(shapes[0]) == str(shapes[1])
