"""Where texts begin and end: the same tokens as transformers takes from config.json and generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protocol.errors import BadModel
from server.catalogue.architecture import read_architecture
from server.catalogue.generation import OLD_END, read_bounds
from tests.server.test_weights import copy_demo

ABSENT = object()
WITHOUT_FILE = object()


def folder_with(folder: Path, config: object, generation: object, key: str = "eos_token_id") -> Path:
    """Return a copy of demo (4096 tokens) whose files have `key` as given, or not at all."""
    copy_demo(folder)
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
