"""The command gpt2d-server quantise: calibrates a model's int4 here, without a daemon, for the loads of all daemons."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import psutil

from protocol.errors import Gpt2dError
from server import settings
from server.catalogue.adapters import architecture_of, tokenizer_folder
from server.catalogue.catalogue import Catalogue
from server.catalogue.engines import CALIBRATES, choose_engine, force_instruction_set, pace
from server.config import Config

FLAGS = ("models_dir", "allow_hub", "cache_dir", "cache_bytes", "threads", "instruction_set")
"""The daemon's settings that matter here."""
CHUNK_CHARACTERS = 1 << 20
"""Most that is read of a text: far more than the tokens that are used."""


def main(argv: list[str]) -> int:
    """Calibrate a model; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="gpt2d-server quantise",
        description="Make a model's int4 of the native engine nearly as good as int8: its weights are rounded so that "
        "their errors cancel each other out, for texts that the model writes itself. Every load that follows uses it.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model on this disk")
    parser.add_argument("--calibrate", type=Path, metavar="FILE", help="a text of 1,024 tokens or more to do it with")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the daemon's TOML, for the settings below")
    settings.add_flags(parser, *FLAGS)
    args = vars(parser.parse_args(argv))
    try:
        config = settings.resolve(args, args["config"] and args["config"].expanduser())
        return _calibrate(config, args["model"], args["calibrate"])
    except (settings.SettingsError, Gpt2dError, OSError, UnicodeDecodeError, MemoryError, FloatingPointError) as e:
        _clear_status()
        sys.stderr.write(f"gpt2d-server quantise: {e}\n")
        return 1
    except KeyboardInterrupt:  # the cache has what is complete alone
        _clear_status()
        sys.stderr.write("gpt2d-server quantise: interrupted; the model's int4 is what it was before\n")
        return 130


def _calibrate(config: Config, name: str, text: Path | None) -> int:
    if config.instruction_set:
        force_instruction_set(config.instruction_set)
    choose_engine(*CALIBRATES)  # which says how the kernels are built where they are not
    model = Catalogue(config.models_dir, config.hub_cache, allow_hub=config.allow_hub).find(name)
    if model.folder is None or not model.on_disk:
        sys.stderr.write(f"gpt2d-server quantise: {name} is not on this disk; load it first, which downloads it\n")
        return 1
    arch = architecture_of(model.folder, model.base_folder)
    need, free = arch.calibration_bytes(), psutil.virtual_memory().available
    if need > free:
        sys.stderr.write(
            f"gpt2d-server quantise: it needs about {need / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free; unload "
            "models or end other programs\n"
        )
        return 1
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's own, beside those that share out the products
    from server.checkpoint.tokenizer import read_tokenizer
    from server.worker.calibrate import enough, keep
    from server.worker.text import Text

    ids = None
    if text:
        with text.open(encoding="utf-8") as stream:
            found = stream.read(CHUNK_CHARACTERS)
        ids = Text(read_tokenizer(tokenizer_folder(model.folder, model.base_folder)), arch).encode(found)
        enough(ids)
    seconds = arch.calibration_seconds(config.threads, pace())
    print(f"{name}: this takes about {seconds} s", flush=True)  # now, where it is written to a file, too
    place = keep(
        model.folder, arch, config.threads, config.cache_dir, config.cache_bytes, _shown, ids=ids,
        base=model.base_folder,
    )  # fmt: skip
    sys.stdout.write(f"{name}: int4 is calibrated in {place}; the next load takes it\n")
    return 0


def _shown(stage: str, done: int, total: int, unit: str) -> None:
    _clear_status()
    if sys.stderr.isatty() and done < total:
        sys.stderr.write(f"{stage} {done} of {total} {unit}")
        sys.stderr.flush()


def _clear_status() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
