"""Command gpt2d-server: arguments, signals; start -> serve -> drain -> stop."""

from __future__ import annotations

import sys

try:
    import signal

    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # scripts/run.py holds it back until here
    import argparse
    import contextlib
    import logging
    import shutil
    from pathlib import Path

    import zmq

    from protocol.errors import Gpt2dError
    from protocol.keys import KeyFileError
    from protocol.programs import VERSION, needed_by, printed_by

    with needed_by("gpt2d-server"):
        from server import build, logs, settings
        from server.catalogue.engines import COMPILED_FOLDER, SUMS_FILE, force_instruction_set, notices
        from server.check import check
        from server.config import Config
        from server.convert.cache import sweep
        from server.cores import threads_here
        from server.gateway.gateway import Gateway
except KeyboardInterrupt:  # these take a moment, in which no traceback helps
    sys.exit(130)

log = logging.getLogger("gpt2d")

ENDING = ("SIGINT", "SIGTERM", "SIGBREAK")
"""Signals at which the daemon finishes what it has begun and ends. The last is Windows' Ctrl-Break, the only one that
another program can send there.
"""
MAX_DESCRIPTORS = 65_536

EPILOG = """\
examples:
  gpt2d-server --preload demo                       start with the embedded model loaded
  gpt2d-server --preload gpt2/onnx/int8 --threads 4
  gpt2d-server --models-dir ~/gpt2-models           offer every GPT-2 folder in there
  gpt2d-server quantise gpt2                        make its int4 nearly as good as int8, for all later loads

gpt2, gpt2-medium, gpt2-large, gpt2-xl and distilgpt2 are downloaded from the HuggingFace hub when first loaded, into
its ordinary cache (HF_HOME and HF_HUB_CACHE move it; transformers shares it); an interrupted download resumes where it
stopped (with huggingface_hub before 1.18). --allow-hub admits every other GPT-2 of the hub; for a gated one, set
HF_TOKEN or run hf auth login. A folder of --models-dir with one of these names comes first. A model's folder has
config.json, weights (model.safetensors or pytorch_model.bin, whole or in shards) and a tokenizer (tokenizer.json, or
vocab.json and merges.txt, vocab.txt or spiece.model, as transformers has them); its name is the model's name. Clients
connect with `gpt2d-client ENDPOINT`, scripts with `protocol.Client(ENDPOINT)`.

Ctrl-C (or SIGTERM) stops: no new work, running streams finish within --drain-seconds. A second one stops at once. A
terminal that is closed stops it like the first; nohup gpt2d-server outlives that.
"""


def parse(argv: list[str] | None = None) -> Config:
    """Return the Config in force. Exits after --check and --clear-cache; with code 2 for a wrong setting."""
    parser = argparse.ArgumentParser(
        prog="gpt2d-server",
        description="A daemon that holds GPT-2 models and answers msgpack requests on a ZeroMQ socket.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gpt2d {VERSION}")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML with any of the settings below; flags win over it"
    )
    parser.add_argument(
        "--check", action="store_true", help="print the settings in force as TOML, or what is wrong with them, and exit"
    )
    parser.add_argument(
        "--clear-cache", action="store_true", help="delete the built models and what was measured of them, and exit"
    )
    parser.add_argument(
        "--build-kernels", action="store_true", help="build the native engine's kernels for this machine, and exit"
    )
    settings.add_flags(parser)
    args = parser.parse_args(argv)
    if args.build_kernels:
        parser.exit(build.main([]))
    try:
        config = settings.resolve(vars(args), args.config and args.config.expanduser())
        if args.check:
            check(config)
    except settings.SettingsError as e:
        parser.exit(2, f"gpt2d-server: {e}\n")
    if args.check:
        sys.stdout.write(settings.to_toml(config))
        parser.exit()
    if args.clear_cache:
        parser.exit(message=f"{clear(config.cache_dir)} built models deleted from {config.cache_dir}\n")
    return config


def clear(cache_dir: Path) -> int:
    """Delete built models and what is noted of them, and nothing else in that folder; return how many.

    Loaded models keep their files open.
    """
    entries = [p for p in cache_dir.glob("*-v*") if (p / SUMS_FILE).is_file()]
    sweep(cache_dir)
    for entry in (*entries, *cache_dir.glob(f"{COMPILED_FOLDER}-v*")):
        shutil.rmtree(entry, ignore_errors=True)
    for pattern in ("*.digest", "*.fidelity", "*.finding"):
        for note in cache_dir.glob(pattern):
            note.unlink(missing_ok=True)
    return len(entries)


def raise_descriptor_limit() -> None:
    """Allow one descriptor for each client: as many as the system gives this user, up to MAX_DESCRIPTORS."""
    if sys.platform == "win32":  # which has no such limit
        return
    import resource

    with contextlib.suppress(ValueError, OSError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def end_by_signals(gateway: Gateway) -> None:
    """Have the gateway drain at a signal to end, and also once a terminal is closed, unless nohup has that ignored."""
    for name in ENDING:
        if number := getattr(signal, name, None):
            signal.signal(number, lambda *_: gateway.drain())
    hang_up = getattr(signal, "SIGHUP", None)
    if hang_up and signal.getsignal(hang_up) is not signal.SIG_IGN:
        signal.signal(hang_up, lambda *_: gateway.drain(hurry=False))  # it comes from the terminal and from its shell


def serve(config: Config) -> int:
    """Serve until a signal; return the exit code."""
    raise_descriptor_limit()
    try:
        gateway = start(config)
    except StartError as e:
        log.critical("%s", e)
        return 1
    end_by_signals(gateway)
    for notice in notices():
        log.warning("%s", notice)
    usual = threads_here()
    reason = f", {usual.reason}" if config.threads == usual.number else ""
    log.info("gpt2d %s listens on %s, %d threads a worker%s", VERSION, gateway.endpoint, config.threads, reason)
    try:
        gateway.run()
        log.info("stopped")
    except Exception:
        log.exception("the gateway failed")
        return 1
    return 0


class StartError(Exception):
    """Reason why the daemon cannot start, for people."""


def start(config: Config) -> Gateway:
    """Make the gateway with its launcher and metrics. Raises: StartError."""
    metrics, launcher = None, None
    if config.metrics_port:
        from server.gateway.metrics import Metrics

        try:
            metrics = Metrics(config.metrics_port)
        except OSError as e:
            raise StartError(
                f"--metrics-port {config.metrics_port}: cannot listen on 127.0.0.1: {e.strerror}; choose another port"
            ) from None
    if config.cluster:
        from server.launch.ray import ClusterError, RayLauncher

        launcher = RayLauncher(config)
        try:
            launcher.join()
        except ClusterError as e:
            raise StartError(f"--cluster {config.cluster}: {e}") from None
    try:
        if config.instruction_set and not config.cluster:  # a cluster's nodes have processors of their own
            force_instruction_set(config.instruction_set)
        return Gateway(config, launcher, metrics)
    except (Gpt2dError, KeyFileError) as e:
        raise StartError(str(e)) from None
    except zmq.ZMQError as e:
        if e.errno == zmq.EADDRINUSE:
            raise StartError(
                f"{config.endpoint} is in use, perhaps by a running gpt2d-server (one that scripts/run.py started ends "
                "a minute after its last client); stop that, or choose another with --endpoint"
            ) from None
        raise StartError(f"cannot listen on {config.endpoint}: {e.strerror}") from None


def main() -> None:
    try:
        if sys.argv[1:2] == ["quantise"]:
            from server import quantise

            sys.exit(quantise.main(sys.argv[2:]))
        with printed_by("gpt2d-server"):
            config = parse()
        with logs.to_stderr(config.log_format):
            code = serve(config)
    except KeyboardInterrupt:  # while it starts; afterwards the signal drains
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
