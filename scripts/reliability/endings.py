"""The end of the daemon, and files that are damaged, hostile or cannot be written: nothing half-written is used."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from protocol import Client, messages as m
from protocol.errors import BadModel, Draining, Gpt2dError, LoadFailed, UnknownModel
from scripts.daemon import Daemon
from scripts.reliability.asking import NATIVE, ask, error_of, text, until
from scripts.reliability.daemon import Behaviour, FakeDaemon
from scripts.reliability.promise import Figures, Scale, promise
from server.catalogue.catalogue import DEMO_FOLDER
from server.catalogue.files import WEIGHTS_FILE


@promise
def shutdown(scale: Scale, folder: Path) -> Figures:
    """After SIGTERM an idle daemon ends at once, streams may finish, a load ends with `draining`; a second SIGTERM ends
    everything. The exit code is always 0, and no process is left.
    """
    took: dict[str, float] = {}
    for round_ in range(scale.of(1, 3, 20)):
        for case in ("idle", "streaming", "loading", "twice"):
            seconds = _shut_down(case, folder / f"{case}{round_}")
            took[case] = max(took.get(case, 0), seconds)
    return {f"{case}_s_max": round(seconds, 2) for case, seconds in took.items()}


def _shut_down(case: str, folder: Path) -> float:
    """Return the seconds until a daemon that does what `case` names has ended."""
    behaviour = Behaviour(delay_ms=3, load_s=10 if case == "loading" else 0)
    with FakeDaemon(folder, behaviour, "--drain-seconds", "20") as daemon, Client(daemon.endpoint) as client:
        if case == "loading":
            asked = [ask(client, m.Load(model="demo", stream=True))]
        else:
            client.load("demo")
            tokens = 900 if case == "twice" else 60
            asked = [] if case == "idle" else [ask(client, text(i, tokens)) for i in range(4)]
        assert all(one.begun.wait(10) for one in asked)
        workers, began = daemon.workers(), time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        if case == "twice":
            until(lambda: isinstance(ask(client, text(9, 1)).wait(5), Draining), 5, "it has seen the first signal")
            daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(10) == 0
        took = time.monotonic() - began
        assert took < 3, f"{case}: it took {took:.1f} s"
        for one in asked:
            last = one.wait(5)
            if case == "streaming":
                one.is_right()
            else:
                assert isinstance(last, Gpt2dError), last
                assert case != "loading" or isinstance(last, Draining)
        assert not any(process.is_running() for process in workers)
    return took


def damaged(rng: random.Random) -> dict[str, bytes]:
    """Return damaged contents of a file of weights, by what is wrong with them."""
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
        "a header that is not text": with_header(b"\xff\xfe" * 50),
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
    """Damaged and hostile weights, symlinks and paths, a cache that cannot be written, a full disk, a killed build:
    each ends in a clear error, and afterwards everything works.
    """
    rng, models = random.Random(7), folder / "models"
    shutil.copytree(DEMO_FOLDER, models / "mine")
    with Daemon(folder, "--models-dir", str(models)) as daemon, Client(daemon.endpoint) as client:
        refused = _refuses_damaged(client, models, rng) + _refuses_paths(client, models)
        killed = _builds_killed(daemon, client, scale.of(2, 10, 40), rng)
        client.load("mine", engine="onnx", precision="int4")
        client.load("demo", engine="onnx", precision="int4")
        written = [
            client.generate("Shall I", model=model, strategy="greedy", max_new_tokens=20).text
            for model in ("mine", "demo")
        ]
        assert written[0] == written[1]
        daemon.kill()
    _cache_not_written(folder)
    return {"refused": refused, "workers_killed": killed}


def _refuses_damaged(client: Client, models: Path, rng: random.Random) -> int:
    """Load a model with each damage there is; return their number."""
    cases = damaged(rng)

    def refuse(number: int, what: str, content: bytes) -> None:
        model = models / f"damaged-{number}"
        shutil.copytree(DEMO_FOLDER, model, ignore=shutil.ignore_patterns(WEIGHTS_FILE))
        (model / WEIGHTS_FILE).write_bytes(content)
        error = error_of(lambda: client.load(model.name, **NATIVE, timeout=60), BadModel, LoadFailed)
        assert "Traceback" not in str(error) and "died" not in str(error), f"{what}: {error}"
        shutil.rmtree(model)

    with ThreadPoolExecutor(2) as pool:  # each is a process that mostly starts and ends
        list(pool.map(refuse, range(len(cases)), cases.keys(), cases.values()))
    return len(cases)


def _refuses_paths(client: Client, models: Path) -> int:
    """Load weights that are a link out of the folder, and names that are paths; return the number of refusals."""
    weights = models / "mine" / WEIGHTS_FILE
    kept = weights.rename(models / "kept")
    weights.symlink_to("/etc/passwd")
    cases: dict[str, tuple[type[Gpt2dError], ...]] = {
        "mine": (BadModel, LoadFailed),
        "../models/mine": (UnknownModel,),
        "/etc": (UnknownModel,),
        "mine\0": (UnknownModel,),
    }
    for name, kinds in cases.items():
        error_of(lambda: client.load(name, **NATIVE), *kinds)  # noqa: B023 - called at once
    weights.unlink()
    kept.rename(weights)
    return len(cases)


def _builds_killed(daemon: Daemon, client: Client, count: int, rng: random.Random) -> int:
    """Kill the worker that builds a model's cache, at a random moment of it; return how many were killed."""
    killed = 0
    for _ in range(count):
        waiting = ask(client, m.Load(model="mine", engine="onnx", precision="int4"))
        waiting.done.wait(rng.random() * 0.6)
        for process in daemon.workers():
            process.kill()
            killed += 1
        waiting.wait(30)
        until(lambda: not daemon.workers(), 30, "the daemon has seen that they are gone")
    return killed


def _cache_not_written(folder: Path) -> None:
    """Load with a cache that cannot be made, then with a limit that acts as a full disk."""
    (folder / "no folder").write_text("")
    with Daemon(folder, "--cache-dir", str(folder / "no folder")) as daemon, Client(daemon.endpoint) as client:
        client.load("demo", precision="int8")
        assert client.generate("Shall I", max_new_tokens=3).ids
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # nothing larger is written
        error = error_of(lambda: client.load("demo", precision="int4", engine="onnx"), LoadFailed)
        assert "too large" in str(error) or "space" in str(error), error
        assert client.generate("Shall I", max_new_tokens=3).ids
        daemon.kill()
