#!/usr/bin/env python3
"""Measure what the window costs and how it keeps up, with 200,000 characters on its page.

    xvfb-run -a -s "-screen 0 1400x900x24" python -m scripts.bench.client --like gpt2

Opens the real window on the display there is and starts a daemon of its own. Four times it is kept busy while something
happens: a model loads, text streams, the daemon is stopped (SIGSTOP), the daemon is killed. The model is loaded as the
Model panel offers it: with the daemon's first engine and precision, native int8 where that is installed. `frame_ms_p99`
is the time that a frame's own code took, `late_ms_p999` how much later than due frames began, `token_to_pixel_ms_p95`
the time from a token's arrival to the end of the frame that shows it, `start_s` the time from the program's start to
its first frame. Frames are forced, sixty a second, while a model loads and once the daemon is stopped or dead; text
streams as it does for a user. At last the speed of texts in the window is compared with a script's for the same
request: `software_share` with what draws here, llvmpipe where there is no graphics card, `card_share` with
GALLIUM_NOOP=1, which draws nothing and so stands for a card. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil

from scripts.bench.arguments import add_place, start_daemon
from scripts.bench.figures import percentile
from scripts.bench.window import WAIT_S, Driven, speeds
from scripts.daemon import Daemon
from scripts.make_model import ensure_model
from scripts.stage import own_home
from server.catalogue.architecture import PUBLISHED

BUSY_S = 6.0
IDLE_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--like",
        choices=list(PUBLISHED),
        help="random weights of these shapes (default: the embedded model, which is faster)",
    )
    parser.add_argument("--speeds", action="store_true", help="measure the speeds of texts alone, which takes a minute")
    add_place(parser)
    args = parser.parse_args()
    with own_home("1400x900x24"):
        model = ensure_model(args.like, args.models_dir) if args.like else "demo"
        with start_daemon(args) as daemon:
            figures: dict[str, object] = {**speeds(daemon.endpoint, model)}
            if not args.speeds:
                figures = Bench(model, daemon).run() | figures
            print(json.dumps(figures))


def first_frame_s(endpoint: str) -> float:
    """Return the seconds from the start of a process of its own to its first frame: median of three."""
    code = f"""
from client.window.loop import Window
window = Window({endpoint!r})
window.watch = lambda own, late, at: (print(at, flush=True), setattr(window.app.state, "quitting", True))
window.run()
window.close()
"""
    took = list[float]()
    for _ in range(3):
        began = time.monotonic()
        printed = subprocess.run(
            [sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True, timeout=WAIT_S, check=True
        ).stdout
        took.append(float(printed.split()[0]) - began)
    return statistics.median(took)


class Bench(Driven):
    def __init__(self, model: str, daemon: Daemon) -> None:
        self._daemon = daemon.process
        self._start_s = first_frame_s(daemon.endpoint)
        super().__init__(daemon.endpoint, model)
        self.own: list[float] = []
        self.late: list[float] = []
        self.arrived: list[float] = []
        self.shown: list[float] = []
        self.figures: dict[str, dict[str, float]] = {"frame_ms_p99": {}, "late_ms_p999": {}}
        self.idle_cpu_pct = 0.0

    def run(self) -> dict[str, object]:
        window, replied = self.window, self.window.app.link._replied
        from client.window.events import Replied
        from protocol.messages import Tokens

        def arrive(epoch: int, serial: int, event: Replied) -> None:
            if isinstance(event.event, Tokens):
                self.arrived.append(time.monotonic())
            replied(epoch, serial, event)

        window.app.link._replied = arrive  # type: ignore[method-assign]
        window.watch = self._watch
        try:
            self.drive()
        finally:
            self._daemon.kill()  # it may be stopped, and would not end by itself
        return {
            **self.figures,
            "idle_cpu_pct": round(self.idle_cpu_pct, 2),
            "token_to_pixel_ms_p95": round(percentile(self.shown, 0.95) * 1000, 1),
            "start_s": round(self._start_s, 2),
            "rss_mb": psutil.Process().memory_info().rss // 1_000_000,
        }

    def _watch(self, own_s: float, late_s: float, at: float) -> None:
        self.own.append(own_s)
        self.late.append(max(0.0, late_s))
        while self.arrived:
            self.shown.append(at - self.arrived.pop())

    def _measured(self, name: str) -> None:
        self.figures["frame_ms_p99"][name] = round(percentile(self.own, 0.99) * 1000, 2)
        self.figures["late_ms_p999"][name] = round(percentile(self.late, 0.999) * 1000, 2)
        print(f"{name}: {len(self.own)} frames", file=sys.stderr)

    def _begin(self, *, forced: bool) -> None:
        self.own.clear()
        self.late.clear()
        self.forced = forced

    def steps(self) -> Iterator[float | Callable[[], bool]]:
        from client.window import events as e

        app, state = self.window.app, self.state

        def writes() -> bool:
            going = state.page.generating
            return going is not None and going.end > going.start

        yield from self.open_page()
        if state.loaded:  # for the speeds
            app.tell(e.UnloadModel(state.models.model, state.models.engine, state.models.precision))
            yield lambda: not state.link.workers
        self._begin(forced=True)
        app.tell(e.LoadModel())
        yield BUSY_S
        yield lambda: state.loaded
        self._measured("load")
        self.forced = False
        process = psutil.Process()
        yield 2.0
        before = sum(process.cpu_times()[:2])
        yield IDLE_S
        self.idle_cpu_pct = (sum(process.cpu_times()[:2]) - before) / IDLE_S * 100
        state.preferences.sampling = {"max_new_tokens": 900, "ignore_eos": True}
        self._begin(forced=False)
        over = time.monotonic() + BUSY_S
        while time.monotonic() < over:  # one generation after the other: the engine may write faster than that
            app.tell(e.Do("generate"))
            yield lambda: state.page.generating is None or time.monotonic() > over
        self._measured("stream")
        app.tell(e.Do("stop"))
        yield lambda: state.page.generating is None
        self._begin(forced=True)
        app.tell(e.Do("generate"))
        yield writes
        self._daemon.send_signal(signal.SIGSTOP)
        yield BUSY_S
        self._measured("stopped")
        self._daemon.send_signal(signal.SIGCONT)
        yield lambda: state.link.status == "ready" and state.loaded  # there is a new connection
        self._begin(forced=True)
        app.tell(e.Do("generate"))
        yield writes
        self._daemon.kill()
        yield BUSY_S
        self._measured("killed")
        self.forced = False


if __name__ == "__main__":
    main()
