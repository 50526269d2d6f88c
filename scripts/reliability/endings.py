"""The end of the daemon, and files that are full, damaged or hostile: a clear end, and nothing half-written is ever used."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

from protocol import Client, messages as m
from protocol.errors import BadModel, Draining, Gpt2dError, LoadFailed, UnknownModel
from scripts.daemon import Daemon
from scripts.reliability.asking import ask, text, until
from scripts.reliability.daemon import Behaviour, FakeDaemon
from scripts.reliability.promise import Figures, Scale, promise
from server.catalogue.architecture import WEIGHTS_FILE
from server.catalogue.catalogue import DEMO_FOLDER


@promise
def shutdown(scale: Scale, folder: Path) -> Figures:
    """SIGTERM: idle it ends at once; what streams may finish; what loads is told; a second signal ends all. Always with exit code 0 and no process left."""
    took: dict[str, float] = {}
    for round_ in range(scale.of(1, 3, 20)):
        for case in ("idle", "streaming", "loading", "twice"):
            behaviour = Behaviour(delay_ms=3, load_s=10 if case == "loading" else 0)
            with (
                FakeDaemon(folder / f"{case}{round_}", behaviour, "--drain-seconds", "20") as daemon,
                Client(daemon.endpoint) as client,
            ):
                asked = []
                if case == "loading":
                    asked = [ask(client, m.Load(model="demo", stream=True))]
                else:
                    client.load("demo")
                    asked = (
                        []
                        if case == "idle"
                        else [ask(client, text(i, 900 if case == "twice" else 60)) for i in range(4)]
                    )
                assert all(one.begun.wait(10) for one in asked)
                workers, began = daemon.workers(), time.monotonic()
                daemon.process.send_signal(signal.SIGTERM)
                if case == "twice":
                    time.sleep(0.1)
                    daemon.process.send_signal(signal.SIGTERM)
                assert daemon.process.wait(10) == 0
                took[case] = max(took.get(case, 0), time.monotonic() - began)
                assert took[case] < 3, f"{case}: it took {took[case]:.1f} s"
                for one in asked:
                    last = one.wait(5)
                    if case == "streaming":
                        one.is_right()
                    else:
                        assert isinstance(last, Gpt2dError), last
                        assert case != "loading" or isinstance(last, Draining)
                assert not any(process.is_running() for process in workers)
    return {f"{case}_s_max": round(seconds, 2) for case, seconds in took.items()}


def damaged(rng: random.Random) -> dict[str, bytes]:
    """Weights' files that are none, by what is wrong with them."""
    whole = (DEMO_FOLDER / WEIGHTS_FILE).read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])

    def with_header(changed: dict[str, object] | bytes) -> bytes:
        raw = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        return len(raw).to_bytes(8, "little") + raw + whole[8 + size :]

    name = "transformer.wte.weight" if "transformer.wte.weight" in header else "wte.weight"
    table = header[name]
    cases = {
        "empty": b"",
        "half a length": whole[:4],
        "no tensors": with_header({}),
        "a header without an end": whole[: 8 + size // 2],
        "a header of 2^63 bytes": (1 << 63).to_bytes(8, "little") + whole[8:],
        "a header of 90 MB of spaces": (90_000_000).to_bytes(8, "little") + b" " * 90_000_000,
        "a header that is no text": with_header(b"\xff\xfe" * 50),
        "a header that is nested": with_header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "another shape": with_header(header | {name: table | {"shape": table["shape"][::-1]}}),
        "a shape that is too large": with_header(header | {name: table | {"shape": [1 << 40, 1 << 40]}}),
        "a negative shape": with_header(header | {name: table | {"shape": [-1, 256]}}),
        "offsets outside": with_header(header | {name: table | {"data_offsets": [0, 1 << 60]}}),
        "offsets that overlap": with_header(
            header | {name: table | {"data_offsets": [0, table["data_offsets"][1] - table["data_offsets"][0]]}}
        ),
        "an unknown type": with_header(header | {name: table | {"dtype": "X9"}}),
        "a tensor missing": with_header({k: v for k, v in header.items() if k != name}),
        "a pickle": b"\x80\x04\x95" + bytes(200),
        "noise": rng.randbytes(100_000),
    }
    cases |= {f"cut after {share:.0%}": whole[: int(share * len(whole))] for share in (0.01, 0.5, 0.99)}
    if cases["offsets that overlap"] == whole:
        del cases["offsets that overlap"]
    return cases


@promise
def disk(scale: Scale, folder: Path) -> Figures:
    """Damaged and hostile weights, symlinks, paths, a cache that cannot be written, a disk that is full, a build that is killed: a clear error, and then it works."""
    rng, models, refused, killed = random.Random(7), folder / "models", 0, 0
    shutil.copytree(DEMO_FOLDER, models / "mine")
    weights = models / "mine" / WEIGHTS_FILE
    whole = weights.read_bytes()
    daemon = Daemon(folder, "--models-dir", str(models))
    try:
        with Client(daemon.endpoint) as client:
            for what, content in damaged(rng).items():
                weights.write_bytes(content)
                with pytest.raises((BadModel, LoadFailed)) as raised:
                    client.load("mine", engine="native", precision="int8", timeout=60)
                assert "Traceback" not in str(raised.value) and "died" not in str(raised.value), (
                    f"{what}: {raised.value}"
                )
                refused += 1
            weights.unlink()
            weights.symlink_to("/etc/passwd")
            for name, error in (
                ("mine", (BadModel, LoadFailed)),
                ("../models/mine", UnknownModel),
                ("/etc", UnknownModel),
                ("mine\0", UnknownModel),
            ):
                with pytest.raises(error):
                    client.load(name, engine="native", precision="int8")
                refused += 1
            weights.unlink()
            weights.write_bytes(whole)
            for _ in range(scale.of(2, 10, 40)):
                waiting = ask(client, m.Load(model="mine", engine="onnx", precision="int4"))
                deadline = time.monotonic() + rng.random() * 0.6
                while time.monotonic() < deadline and not waiting.done.is_set():
                    time.sleep(0.002)
                for process in daemon.workers():
                    process.kill()
                    killed += 1
                waiting.wait(10)
                until(lambda: not daemon.workers(), 5, "the daemon has seen that they are gone")
            client.load("mine", engine="onnx", precision="int4")
            client.load("demo", engine="onnx", precision="int4")
            written = [
                client.generate("Shall I", model=model, strategy="greedy", max_new_tokens=20).text
                for model in ("mine", "demo")
            ]
            assert written[0] == written[1]
    finally:
        daemon.kill()
    (folder / "no folder").write_text("")
    daemon = Daemon(folder, "--cache-dir", str(folder / "no folder"))
    try:
        with Client(daemon.endpoint) as client:
            client.load("demo", precision="int8")
            assert client.generate("Shall I", max_new_tokens=3).ids
            resource.prlimit(
                daemon.process.pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)
            )  # as a full disk: nothing larger can be written
            with pytest.raises(LoadFailed, match=r"too large|space"):
                client.load("demo", precision="int4", engine="onnx")
            assert client.generate("Shall I", max_new_tokens=3).ids
    finally:
        daemon.kill()
    return {"refused": refused, "workers_killed": killed}
