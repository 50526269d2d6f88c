"""Nothing phones home: no engine, no window and no script looks a name up or sends a packet to the world."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.telemetry import OFF
from tests.conftest import wait_for
from tests.test_readme import ROOT
from tests.trap import HIDES, WHY_NOT, Trap, possible

PHONES = "import time, onnxruntime\nwhile True: time.sleep(1)"
"""ONNX Runtime as it is: it phones some ten seconds after it was loaded."""
DAEMON = [sys.executable, "-P", "-m", "server", "--endpoint=tcp://127.0.0.1:5757"]
WRITE = """
import sys
from protocol import Client
with Client() as client:
    client.load("demo", engine=sys.argv[1], timeout=90)
    client.generate("Shall I", engine=sys.argv[1], max_new_tokens=4, timeout=60)
"""


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    if not possible():
        pytest.skip(WHY_NOT)
    trap = Trap(tmp_path / "trap")
    yield trap
    trap.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Trap]:
    other = Trap(tmp_path / "other")
    yield other
    other.close()


@pytest.mark.alone  # it counts what its network carries, with a window
def test_no_engine_and_no_window_phones_home(trap: Trap, other: Trap, screen: str) -> None:
    def write(engine: str) -> subprocess.Popen[str]:
        return trap.start(sys.executable, "-c", WRITE, engine)

    daemon = trap.start(*DAEMON, PYTHONPATH=str(ROOT))
    assert write("onnx").wait(60) == 0
    other.start(sys.executable, "-c", PHONES)  # what onnx would do, it does later
    writing = [write(engine) for engine in ("native", "torch", "optimum")]
    trap.start(sys.executable, "-P", "-m", "client", PYTHONPATH=str(ROOT), DISPLAY=screen)
    assert [process.wait(90) for process in writing] == [0, 0, 0]
    wait_for((trap.home / ".config" / "gpt2d" / "client.json").exists, 30)  # it has met the daemon
    wait_for(lambda: other.looked_up() != [] and other.packets() > 0, 40)
    assert (trap.looked_up(), trap.packets()) == ([], 0)
    assert daemon.poll() is None
    kept = {path.name for path in (trap.home / ".cache").iterdir()}
    assert kept <= {"gpt2d", "huggingface", "mesa_shader_cache"}, "ONNX Runtime keeps its number of this machine there"


@pytest.mark.parametrize("package", ["server", "scripts"])
def test_it_is_off_before_a_library_is_loaded(package: str) -> None:
    """In a fresh process, also where somebody's profile turns it on."""
    code = f"import json, os, {package}; print(json.dumps(dict(os.environ)))"
    on = {name: "0" if value == "1" else "1" for name, value in OFF.items()} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, timeout=60, env=os.environ | on)
    assert OFF.items() <= json.loads(done.stdout).items()


def test_onnx_runtime_writes_nothing_into_the_home(tmp_path: Path) -> None:
    """Seen by everybody, where no namespace can be made; a build server's variables would keep it silent, too."""
    kept = {name: value for name, value in os.environ.items() if name not in HIDES and not name.startswith("XDG_")}
    kept |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    code = "import server.engines.onnx, onnxruntime"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60, env=kept)
    assert list(tmp_path.iterdir()) == []
