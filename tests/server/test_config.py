"""Settings: the defaults, a file, the flags that win over it, and the messages for wrong ones."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest

from protocol.keys import CurveKeys, write_public, write_secret
from server import quantise
from server.__main__ import parse
from server.catalogue.engines import INSTRUCTION_SET, instruction_sets, native_problem
from server.config import Config
from server.settings import settings

EXAMPLE = Path("docs/deploy/gpt2d.toml")


def written(folder: Path, text: str) -> list[str]:
    (folder / "gpt2d.toml").write_text(text, encoding="utf-8")
    return ["--config", str(folder / "gpt2d.toml")]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what a start with these arguments says before it ends with 2."""
    with pytest.raises(SystemExit) as end:
        parse(list(arguments))
    said = capsys.readouterr()
    assert end.value.code == 2 and not said.out
    return said.err


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        parse([*arguments, "--check"])
    said = capsys.readouterr()
    assert not end.value.code and not said.err
    return said.out


def test_without_a_file_the_defaults_hold() -> None:
    assert parse([]) == Config()


def test_a_files_settings_hold_where_no_flag_says_otherwise(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        endpoint = "tcp://127.0.0.1:0"
        max-memory = 2              # dashes, and a whole number where any may stand
        max_open_per_peer = 7
        allow_hub = true
        preload = ["demo", "demo/onnx"]
        log_format = "json"
        drain_seconds = 0.5
        """,
    )
    found = parse([*file, "--drain-seconds", "3", "--no-allow-hub", "--preload", "demo", "--rows", "4"])
    assert found == Config(
        endpoint="tcp://127.0.0.1:0", max_memory=2.0, max_open_per_peer=7, allow_hub=False, preload=("demo",),
        log_format="json", drain_seconds=3.0, rows=4,
    )  # fmt: skip
    assert parse(file).allow_hub and parse(file).preload == ("demo", "demo/onnx") and parse(file).drain_seconds == 0.5


def test_a_files_paths_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/of-a-test")
    written(tmp_path / "etc", 'models_dir = "models"\ncache_dir = "~/cache"')
    found = parse(["--config", "etc/gpt2d.toml"])
    assert found.models_dir == tmp_path / "etc" / "models"
    if os.name == "posix":
        assert found.cache_dir == Path("/home/of-a-test/cache")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("row = 1", "there is no setting 'row'; did you mean rows? there are: endpoint, key,"),
        ("[daemon]\nrows = 1", "there is no setting 'daemon'; there are: endpoint"),
        ("rows = 0", "rows: must be a whole number >= 1, got 0"),
        ("rows = 1.5", "rows: must be a whole number >= 1, got 1.5"),
        ("rows = true", "rows: must be a whole number >= 1, got True"),
        (
            "metrics_port = 70000",
            "metrics_port: must be a whole number from 1 to 65535, got 70000",
        ),
        ("drain-seconds = -1", "drain-seconds: must be a number >= 0, got -1"),
        ("drain_seconds = nan", "drain_seconds: must be a number >= 0, got nan"),
        ("stuck_seconds = inf", "stuck_seconds: must be a number >= 0, got inf"),
        pytest.param("stuck_seconds = 1" + "0" * 400, "stuck_seconds: must be a number >= 0, got 1", id="401 digits"),
        ('drain_seconds = "long"', "drain_seconds: must be a number >= 0, got 'long'"),
        ('preload = "demo"', "preload: must be a list of texts, got 'demo'"),
        ("preload = [1]", "preload: must be a list of texts, got [1]"),
        ("allow_hub = 1", "allow_hub: must be true or false, got 1"),
        ('instruction_set = ""', "instruction_set: must be a text of one line, got ''"),
        ('log_format = "xml"', "log_format: must be 'json' or 'text', got 'xml'"),
        ('models_dir = ""', "models_dir: must be a path, got ''"),
        ('models_dir = "~nobody-of-that-name/x"', "models_dir: there is no home folder for '~nobody-of-that-name/x'"),
        ('endpoint = "localhost"', "endpoint: 'localhost' is not an endpoint"),
        ('endpoint = "tcp://0.0.0.0:5757"', "can be reached from other machines"),
        ('key = "server.key"', "must be given together"),
        ("max_memory = 1\nmax-memory = 2", "max-memory is given twice"),
        ("rows = 1\nrows = 2", "is not valid TOML: "),
        (
            'cluster = "ray"',
            "cluster: must be auto (a cluster on this machine), ray://HOST:10001 or HOST:6379, got 'ray'",
        ),
        (
            'cluster_resources = ["fast"]',
            "cluster_resources: must be NAME=AMOUNT with an amount > 0, such as fast=1, got 'fast'",
        ),
        ('preload = ["a\\nb"]', "preload: must be a list of texts, got"),
        ('worker_address = "tcp://0.0.0.0:5758"', "--worker-address: must be the address by which the nodes"),
        pytest.param("rows = 1" + "0" * 5000, "is not valid TOML: ", id="5001 digits"),
        ("rows =", "is not valid TOML: "),
    ],
)
def test_a_wrong_file_is_named_with_what_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    said = refused(capsys, *written(tmp_path, text))
    assert str(tmp_path / "gpt2d.toml") in said and says in said


def test_a_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "missing.toml cannot be read: No such file" in refused(capsys, "--config", str(tmp_path / "missing.toml"))
    (tmp_path / "latin.toml").write_bytes(b'endpoint = "\xe9"')
    assert "is not valid TOML" in refused(capsys, "--config", str(tmp_path / "latin.toml"))


def test_wrong_flags_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert "argument --rows: must be a whole number >= 1, got 0" in refused(capsys, "--rows", "0")
    assert "argument --rows: must be a whole number >= 1, got 'x'" in refused(capsys, "--rows", "x")
    assert "argument --keep-alive: must be a number >= 0.001, got nan" in refused(capsys, "--keep-alive", "nan")
    assert "argument --log-format: must be 'json' or 'text', got 'xml'" in refused(capsys, "--log-format", "xml")


@pytest.mark.skipif(bool(native_problem()), reason="needs the native kernels")
def test_an_instruction_set_must_be_the_processors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster's nodes have processors of their own: they say it."""
    monkeypatch.delenv(INSTRUCTION_SET, raising=False)
    there = ", ".join(instruction_sets())
    said = refused(capsys, "--instruction-set", "mmx", "--check")
    assert said == f"gpt2d-server: instruction_set: the instruction set is mmx, and here there are {there}\n"
    assert 'instruction_set = "plain"' in checked(capsys, "--instruction-set", "plain")
    assert 'instruction_set = "mmx"' in checked(capsys, "--instruction-set", "mmx", "--cluster", "auto")
    assert INSTRUCTION_SET not in os.environ, "it was only checked"


def test_what_check_prints_is_a_file_that_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_secret(tmp_path / "keys" / "server.key", CurveKeys.new())
    write_public(tmp_path / "keys" / "authorised" / "a.pub", CurveKeys.new().public, "admin")
    odd = tmp_path / 'with "quotes", \\ and ü'
    flags = ["--endpoint", "tcp://0.0.0.0:5757", "--key", str(tmp_path / "keys/server.key")]
    flags += [
        "--authorised-keys",
        str(tmp_path / "keys/authorised"),
        "--models-dir",
        str(odd),
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    flags += [
        "--preload",
        "demo",
        "demo/onnx/int4:3",
        "--cluster",
        "auto",
        "--cluster-resources",
        "fast=1",
        "--instruction-set",
        "avx2",
        "--max-memory",
        "1.5",
        "--rows",
        "3",
        "--metrics-port",
        "9757",
        "--idle-exit",
        "60",
        "--log-prompts",
    ]
    printed = checked(capsys, *flags)
    again = written(tmp_path, printed)
    assert parse(again) == parse(flags)
    assert checked(capsys, *again) == printed
    assert set(tomllib.loads(printed)) == set(settings()) - {"keep_alive"} and "# keep_alive: never\n" in printed
    defaults = written(tmp_path, checked(capsys))
    assert parse(defaults) == Config()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('preload = ["gpt5"]', "preload: no model 'gpt5'"),
        ('preload = ["demo/native/int2"]', "preload: "),
        ('key = "missing"\nauthorised_keys = "authorised"', "key: the key"),
        ('key = "server.key"\nauthorised_keys = "missing"', "authorised_keys: the folder of authorised keys"),
        ('models_dir = "server.key"', "models_dir: "),
        ('cache_dir = "server.key/x"', "cache_dir: "),
    ],
)
def test_check_finds_what_a_start_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    write_secret(tmp_path / "server.key", CurveKeys.new())
    write_public(tmp_path / "authorised" / "a.pub", CurveKeys.new().public, "admin")
    assert says in refused(capsys, *written(tmp_path, text), "--check")


def test_the_example_is_good(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    printed = checked(capsys, "--config", str(EXAMPLE), "--cache-dir", str(tmp_path))
    assert tomllib.loads(printed).items() >= tomllib.loads(EXAMPLE.read_text(encoding="utf-8")).items()


def test_the_command_that_calibrates_takes_only_the_settings_that_matter_to_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        quantise.main(["--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and set(re.findall(r"^  (--[\w-]+)", said, re.MULTILINE)) == {
        "--calibrate", "--config", "--models-dir", "--allow-hub", "--cache-dir", "--cache-bytes", "--threads",
        "--instruction-set",
    }  # fmt: skip
