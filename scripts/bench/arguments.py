"""Arguments that the benchmarks share, and what they lead to: a model on this disk, and a daemon that offers it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from protocol.errors import Gpt2dError
from scripts.daemon import Daemon
from scripts.make_model import ensure_model
from server.catalogue.architecture import PUBLISHED
from server.catalogue.catalogue import Catalogue, Model
from server.catalogue.engines import ENGINES
from server.config import default_hub_cache, default_models_dir, default_threads


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every script that starts a daemon: --models-dir and --threads."""
    parser.add_argument(
        "--models-dir", type=Path, default=default_models_dir(), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--threads", type=int, default=default_threads(), help="default: %(default)s")


def add_arguments(parser: argparse.ArgumentParser, *, runs: int) -> None:
    """Add the arguments of every benchmark of one model."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="a model of the daemon: demo, or a folder of --models-dir")
    which.add_argument(
        "--like", choices=list(PUBLISHED), help="random weights of these shapes, made where they are missing"
    )
    parser.add_argument("--engine", choices=list(ENGINES), default=next(iter(ENGINES)), help="default: %(default)s")
    parser.add_argument("--precision", default="int8", help="default: %(default)s")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--new-tokens", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=runs, help="default: %(default)s")
    add_place(parser)


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Model]:
    """Parse, check, and find (or make) the model. Exits with a sentence where something is wrong."""
    args = parser.parse_args()
    if args.precision not in ENGINES[args.engine].precisions:
        parser.error(f"engine {args.engine} has the precisions {', '.join(ENGINES[args.engine].precisions)}")
    if args.runs < 1 or args.prompt_tokens < 1:
        parser.error("--runs and --prompt-tokens must be at least 1")
    if args.new_tokens < 2:
        parser.error("--new-tokens must be at least 2")
    return args, find_model(args.model, args.like, args.models_dir)


def find_model(name: str | None, like: str, models_dir: Path) -> Model:
    """Find a model on this disk; without a name make random weights of the shapes `like`, unless they are there.

    Exits with a sentence where there is none.
    """
    try:
        model = Catalogue(models_dir, default_hub_cache()).find(name or ensure_model(like, models_dir))
    except Gpt2dError as e:
        sys.exit(str(e))
    if model.folder is None:
        sys.exit(
            f"{model.name} is not on this disk: load it once with the daemon, which downloads it, or measure random "
            "weights with --like"
        )
    if model.base:
        sys.exit(f"{model.name} is an adapter, which the daemon alone adds to its base: measure {model.base.name}")
    return model


def start_daemon(args: argparse.Namespace, *more: str) -> Daemon:
    """Start a daemon with the user's caches, with `args.models_dir`, `args.threads` and `more` flags.

    Exits with its log where it fails.
    """
    try:
        return Daemon(None, f"--models-dir={args.models_dir}", f"--threads={args.threads}", *more)
    except RuntimeError as e:
        sys.exit(str(e))
