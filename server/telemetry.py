"""Telemetry of the libraries: off, in this process and in those that it starts.

Importing `server` does it, before any library is loaded: each of them reads its variable once, when it starts. Calls
such as ONNX Runtime's disable_telemetry_events() come too late for what a library sends, and writes into the user's
cache folder, at its start.
"""

from __future__ import annotations

import os

OFF = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, transformers, optimum
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",  # where it is off, Ray reports that
    "DO_NOT_TRACK": "1",  # whoever keeps to https://consoledonottrack.com
}


def turn_off() -> None:
    os.environ |= OFF
