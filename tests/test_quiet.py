"""Long commands on one line, and what their logs say where they fail."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import quiet
from tests.conftest import free_port

LIMIT_S = 60
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--retries=1"]


def test_what_a_command_prints_goes_into_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    for word in ("one", "two"):
        assert quiet.run([sys.executable, "-c", f"print('{word}')"], word, log=log, folders=[tmp_path]) == 0
    assert log.read_text() == "one\ntwo\n"
    assert "one ...\none: 0 s, 0 MB\n" in capfd.readouterr().err


def test_an_exit_code_that_is_expected(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit(3)"]
    assert quiet.run(command, "x", log=tmp_path / "log", accept=(0, 3)) == 3
    with pytest.raises(quiet.Failed, match="x failed after 0 s: it printed nothing"):
        quiet.run(command, "x", log=tmp_path / "log")


def test_a_network_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    wheel = f"http://127.0.0.1:{free_port()}/pyzmq-27.3.0-py3-none-any.whl"
    with pytest.raises(quiet.Failed, match="index cannot be reached: connect this machine") as failed:
        quiet.run([*PIP, wheel], "x", log=tmp_path / "log")
    assert str(tmp_path / "log") in str(failed.value) and "\n" not in str(failed.value)


def test_a_package_without_a_wheel_is_named(tmp_path: Path) -> None:
    """By what pip prints where there is a source distribution alone."""
    said = (
        "ERROR: Could not find a version that satisfies the requirement some-thing==1.0 (from versions: none)\n"
        "ERROR: No matching distribution found for some-thing==1.0\n"
    )
    with pytest.raises(quiet.Failed, match=r"some-thing==1\.0 has no wheel for Python 3\.\d+ on "):
        quiet.run([sys.executable, "-c", f"import sys; sys.exit({said!r})"], "x", log=tmp_path / "log")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: Package 'gpt2d' requires a different Python: 3.10.1 not in '>=3.11'", "3.10.1 not in '>=3.11'"),
        ("Collecting x\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n", "THESE PACKAGES DO NOT MATCH THE HASHES"),
        ("ERROR: one thing\nanother line\n", "ERROR: one thing"),
        ("ERROR: Exception:\nTraceback (most recent call last):\n  File", "cut short, as on a full disk: free"),
    ],
)
def test_other_causes(tmp_path: Path, said: str, sentence: str) -> None:
    log = tmp_path / "log"
    log.write_text("No space left on device\n" + said)
    assert sentence in quiet.cause(log, len("No space left on device\n"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_has_one_line_that_changes(tmp_path: Path) -> None:
    """It shows seconds, megabytes and what pip is at; the command goes on until that was seen."""
    os.mkfifo(fifo := tmp_path / "fifo")
    child = "import sys; print('Collecting numpy==1 (from -r x)', flush=True); open(sys.argv[1]).close()"
    code = (
        "import sys; from pathlib import Path; import quiet; quiet.MEASURE_S = 0; "
        f"quiet.run([sys.executable, '-c', {child!r}, {str(fifo)!r}], 'installing', "
        f"log=Path({str(tmp_path / 'log')!r}), folders=[Path({str(tmp_path)!r})])"
    )
    master, slave = pty.openpty()
    program = subprocess.Popen([sys.executable, "-c", code], cwd=Path(quiet.__file__).parent, stderr=slave)
    os.close(slave)
    seen = b""
    while b"MB: numpy" not in seen:
        seen += os.read(master, 1024)
    fifo.write_bytes(b"")
    assert program.wait(LIMIT_S) == 0
    seen += os.read(master, 1024)
    os.close(master)
    assert seen.startswith(b"\r\x1b[Kinstalling: ") and seen.count(b"\n") == 1, "one line stays"
    assert seen.endswith(b" MB\r\n")
