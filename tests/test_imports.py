"""Each room loads only what it may: every module of a folder, proved in a fresh interpreter."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

from tests.conftest import WINDOW

MODELS = {
    "numpy", "torch", "onnxruntime", "onnx", "transformers", "tokenizers", "sentencepiece", "optimum",
    "huggingface_hub", "safetensors",
}  # fmt: skip
DRAWING = {"numpy", "glfw", "imgui_bundle", "OpenGL"}
CLIENTS = {"client.window", "client.terminal", "client.servers", "platformdirs"}
"""What a door has no use for: it speaks the protocol to the daemon, and nothing else of ours."""
REFERENCES = {"torch", "transformers", "optimum", "onnxruntime"}
"""What engines import when they are asked for, and not before."""
RAY = {"server.launch.agent", "server.launch.host"}
"""Processes of their own, beside the gateway and on the nodes."""
ROOMS: dict[str, set[str]] = {
    "protocol": MODELS | {"server", "client", "psutil", "platformdirs", "prompt_toolkit", "ray"},
    "client": MODELS | DRAWING | {"server", "ray"},
    "client.corpus": MODELS | DRAWING | {"server", "ray", "pyarrow", "client.doors"} | CLIENTS,
    "client.doors": MODELS | DRAWING | {"server", "ray"} | CLIENTS,
    "client.doors.http": MODELS | DRAWING | {"server", "ray", "jinja2"} | CLIENTS,
    "client.doors.lm_eval": MODELS | DRAWING | {"server", "ray"} | CLIENTS,
    "client.window": (MODELS - {"numpy"}) | {"server", "ray"},
    "server": MODELS | {"client", "ray"},
    "server.catalogue": MODELS | {"client", "ray", "psutil"},
    "server.launch": MODELS | {"client", "ray", "server.gateway", "server.worker"},
    "server.gateway": MODELS
    | {"client", "ray", "server.worker", "server.engines", "server.convert", "server.checkpoint"},
    "server.checkpoint": REFERENCES | {"client", "server.gateway", "server.worker", "server.link"},
    "server.convert": REFERENCES | {"client", "server.gateway", "server.worker", "server.link"},
    "server.engines": REFERENCES - {"onnxruntime"} | {"client", "server.gateway", "server.worker", "server.link"},
    "server.worker": REFERENCES | {"client", "server.gateway"},
}
OWN = {
    "client.doors.lm_eval": {"client.doors.lm_eval.__main__", "client.doors.lm_eval.model"},
    "server.engines": {"server.engines.torch", "server.engines.optimum"},
    "server.launch": RAY,
}
"""Modules that are there to load what their folder otherwise must not."""


def modules_of(room: str) -> list[str]:
    """The modules that lie in a folder itself, not in a folder of its own."""
    folder = __import__(room, fromlist=["__path__"]).__path__
    names = [f"{room}.{found.name}" for found in pkgutil.iter_modules(folder) if not found.ispkg]
    return [name for name in (room, *names) if name not in OWN.get(room, ())]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_loads_only_what_it_may(room: str) -> None:
    if room == "client.doors.http":
        pytest.importorskip("starlette", reason="needs requirements-http.txt")
    if room == "client.window":
        pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)
    code = f"import importlib, sys\nfor name in {modules_of(room)}: importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert not ROOMS[room] & loaded


def test_every_folder_of_the_product_has_a_rule() -> None:
    folders = set()
    for package in ("protocol", "server", "client", "client.doors"):
        path = __import__(package, fromlist=["__path__"]).__path__
        folders |= {package} | {f"{package}.{found.name}" for found in pkgutil.iter_modules(path) if found.ispkg}
    assert folders == set(ROOMS)
