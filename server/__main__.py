"""Arguments, signals; start -> serve -> drain -> stop."""

from __future__ import annotations

import argparse
import contextlib
import logging
import logging.handlers
import queue
import shutil
import signal
import sys
import threading
from pathlib import Path

import zmq

from protocol.errors import Gpt2dError
from protocol.keys import KeyFileError, check_endpoint
from protocol.sockets import is_loopback
from server.catalogue import COMPILED_FOLDER, SUMS_FILE, native_problem
from server.config import VERSION, Config
from server.gateway import Gateway

LOG_QUEUE = 10_000
STDERR_S = 2.0

EPILOG = """\
examples:
  gpt2d-server --preload demo                       start with the embedded model loaded
  gpt2d-server --preload gpt2/onnx/int8 --threads 4
  gpt2d-server --models-dir ~/gpt2-models           offer every GPT-2 folder in there

gpt2, gpt2-medium, gpt2-large, gpt2-xl and distilgpt2 are downloaded from the HuggingFace hub when first loaded, into its
ordinary cache (HF_HOME and HF_HUB_CACHE move it; transformers shares it); a download that was cut goes on where it
stopped. A folder of --models-dir with one of these names comes first. A model's folder has config.json,
model.safetensors and tokenizer.json (or vocab.json and merges.txt); its name is the model's name. Clients connect with `gpt2d-client ENDPOINT`, scripts with `protocol.Client(ENDPOINT)`.

Ctrl-C (or SIGTERM) stops: no new work, running streams finish within --drain-seconds. A second one stops at once.
"""


NEEDS_KEYS = """{endpoint} can be reached from other machines, so the server needs keys to know who may talk to it. Make them:
  .venv/bin/python scripts/keygen.py server
  .venv/bin/python scripts/keygen.py client NAME --endpoint tcp://HOST:PORT
and start it with the --key and --authorised-keys that these print; or let `python3 scripts/run.py --serve` do all of it.
Without keys, listen on tcp://127.0.0.1:PORT and reach it with `ssh -L PORT:127.0.0.1:PORT HOST`."""


class _Bounded(logging.handlers.QueueHandler):
    """Hands log lines to a thread that writes them; drops them when a blocked stderr has filled the queue."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)


def parse(argv: list[str] | None = None) -> Config:
    defaults = Config()
    parser = argparse.ArgumentParser(
        prog="gpt2d-server",
        description="A daemon that holds GPT-2 models and answers msgpack requests on a ZeroMQ socket.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--endpoint", default=defaults.endpoint, help="where to listen (default: %(default)s)")
    parser.add_argument("--key", type=Path, metavar="FILE", help="the server's secret key: encrypts, and admits --authorised-keys alone")
    parser.add_argument(
        "--authorised-keys",
        type=Path,
        metavar="FOLDER",
        help="public keys NAME.pub of those who may talk, with their roles; read again when it changes",
    )
    parser.add_argument(
        "--models-dir", type=Path, default=defaults.models_dir, metavar="DIR", help="folders of GPT-2 models (default: %(default)s)"
    )
    parser.add_argument(
        "--cache-dir", type=Path, default=defaults.cache_dir, metavar="DIR", help="built models are kept here (default: %(default)s)"
    )
    parser.add_argument(
        "--allow-hub",
        action="store_true",
        help="let clients load any GPT-2 of the HuggingFace hub as owner/name (off: the five named below)",
    )
    parser.add_argument(
        "--preload", nargs="+", action="extend", default=[], metavar="MODEL", help="model[/engine[/precision]], loaded at the start"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=defaults.threads,
        metavar="N",
        help="threads of each worker (default: %(default)s, the physical cores)",
    )
    parser.add_argument(
        "--drain-seconds",
        type=float,
        default=defaults.drain_seconds,
        metavar="S",
        help="how long running streams may go on after Ctrl-C (default: %(default)s)",
    )
    parser.add_argument(
        "--rows", type=int, metavar="N", help="sequences that run together in a worker (default: what fits into 640 MB, 1 to 16)"
    )
    parser.add_argument(
        "--max-memory", type=float, metavar="GB", help="memory that all models together may come to need (default: what is free)"
    )
    parser.add_argument("--keep-alive", type=float, metavar="S", help="unload a model that nobody has used for so long (default: never)")
    parser.add_argument(
        "--stuck-seconds",
        type=float,
        default=defaults.stuck_seconds,
        metavar="S",
        help="end a model's worker that has not moved for so long; 0: never (default: %(default)g)",
    )
    parser.add_argument("--clear-cache", action="store_true", help="delete the built models, what was measured of them, and exit")
    parser.add_argument("--log-prompts", action="store_true", help="write prompts to the log (off: a prompt's text is never logged)")
    parser.add_argument("--version", action="version", version=f"gpt2d {VERSION}")
    args = parser.parse_args(argv)
    try:
        check_endpoint(args.endpoint)
    except ValueError as e:
        parser.error(str(e))
    if (args.key is None) != (args.authorised_keys is None):
        parser.error("--key and --authorised-keys are given together: the server's own key, and the keys of those who may talk to it")
    if not is_loopback(args.endpoint) and args.key is None:
        parser.error(NEEDS_KEYS.format(endpoint=args.endpoint))
    if args.threads < 1 or args.drain_seconds < 0 or args.stuck_seconds < 0 or (args.rows is not None and args.rows < 1):
        parser.error("--threads and --rows are at least 1, --drain-seconds and --stuck-seconds at least 0")
    if (args.max_memory is not None and args.max_memory <= 0) or (args.keep_alive is not None and args.keep_alive <= 0):
        parser.error("--max-memory and --keep-alive are above 0")
    if args.clear_cache:
        cleared = clear(args.cache_dir.expanduser())
        parser.exit(message=f"{cleared} built models deleted from {args.cache_dir}\n")
    return Config(
        endpoint=args.endpoint,
        key=args.key and args.key.expanduser(),
        authorised_keys=args.authorised_keys and args.authorised_keys.expanduser(),
        models_dir=args.models_dir.expanduser(),
        cache_dir=args.cache_dir.expanduser(),
        allow_hub=args.allow_hub,
        preload=tuple(args.preload),
        threads=args.threads,
        rows=args.rows,
        max_memory=None if args.max_memory is None else int(args.max_memory * 1e9),
        keep_alive=args.keep_alive,
        stuck_seconds=args.stuck_seconds or None,
        drain_seconds=args.drain_seconds,
        log_prompts=args.log_prompts,
    )


def clear(cache_dir: Path) -> int:
    """Delete built models and what is noted of them, and nothing else that may stand there; return how many. Models that are loaded keep theirs open."""
    entries = [p for p in cache_dir.glob("*-v*") if (p / SUMS_FILE).is_file()]
    for entry in (*entries, *cache_dir.glob(f"{COMPILED_FOLDER}-v*")):
        shutil.rmtree(entry, ignore_errors=True)
    for pattern in ("*.digest", "*.fidelity", "held-out.txt"):
        for note in cache_dir.glob(pattern):
            note.unlink(missing_ok=True)
    return len(entries)


def main() -> None:
    config = parse()
    lines: queue.Queue[logging.LogRecord] = queue.Queue(LOG_QUEUE)
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    writer = logging.handlers.QueueListener(lines, to_stderr)
    writer.start()
    log = logging.getLogger("gpt2d")
    log.setLevel(logging.INFO)
    log.addHandler(_Bounded(lines))
    try:
        gateway = Gateway(config)
    except (Gpt2dError, KeyFileError) as e:
        sys.exit(f"gpt2d-server: {e}")
    except OSError as e:
        sys.exit(f"gpt2d-server: a worker cannot be started: {e}")
    except zmq.ZMQError as e:
        if e.errno == zmq.EADDRINUSE:
            sys.exit(
                f"gpt2d-server: {config.endpoint} is taken, perhaps by a running gpt2d-server; stop that, or choose another with --endpoint"
            )
        sys.exit(f"gpt2d-server: cannot listen on {config.endpoint}: {e.strerror}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: gateway.drain())
    if problem := native_problem():
        log.warning("no native engine, onnx is used: %s", problem)
    log.info("gpt2d %s listens on %s, %d threads a worker", VERSION, gateway.endpoint, config.threads)
    try:
        gateway.run()
        log.info("stopped")
    except Exception:
        log.exception("the gateway failed")
        raise
    finally:
        # In a thread of its own with a deadline: whoever reads stderr may have stopped doing so.
        last = threading.Thread(target=writer.stop, daemon=True)
        last.start()
        last.join(STDERR_S)


if __name__ == "__main__":
    main()
