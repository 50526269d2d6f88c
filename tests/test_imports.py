"""Each room loads only what it may: proved in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "numpy",
    "torch",
    "onnxruntime",
    "onnx",
    "transformers",
    "tokenizers",
    "optimum",
    "huggingface_hub",
    "safetensors",
}
ROOMS = {
    "protocol": HEAVY | {"server", "client", "psutil", "platformdirs", "prompt_toolkit"},
    "client.__main__": HEAVY | {"server"},
    "client.terminal": HEAVY | {"server"},
    "server.__main__": HEAVY | {"client"},
    "server.gateway.gateway": HEAVY | {"client"},
    "server.catalogue.catalogue": HEAVY | {"client", "psutil"},
    "server.convert.onnx_graph": {"torch", "onnxruntime", "transformers", "client"},
    "server.engines.onnx": {"torch", "transformers", "client"},
    "server.worker.__main__": {"torch", "transformers", "optimum", "client"},
}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_loads_only_what_it_may(room: str) -> None:
    code = f"import sys, {room}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert not ROOMS[room] & loaded
