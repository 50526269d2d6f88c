"""What the peers need, in build/peers: their environments, llama.cpp compiled, and their own forms of a model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from scripts.bench.engine import ROOT
from scripts.bench.machine import processor

HERE = Path(__file__).parent
BUILD = ROOT / "build" / "peers"
LLAMA = "llama-cpp-python"
NATIVE_BUILD = '-DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS="-fno-tree-dse -fno-dse"'
"""How llama.cpp is compiled for this processor: without what gcc 12 takes for dead stores of AMX's configuration."""
AVX2_BUILD = "-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON"
SET_BUILDS = {"avx2": AVX2_BUILD, "avxvnni": f"{AVX2_BUILD} -DGGML_AVX_VNNI=ON"}
"""How llama.cpp is compiled for an instruction set of our kernels."""
INSTALL_S = 3600


@cache
def environment(name: str, requirements: str) -> str:
    """Return the Python of an environment that has these requirements. Raises: SubprocessError."""
    folder, file = BUILD / name, HERE / requirements
    python, stamp = folder / "bin" / "python", folder / "installed"
    made_for = f"{processor()}\n{file.read_text()}"
    if not stamp.exists() or stamp.read_text() != made_for:
        print(f"installing {requirements} into {folder} (once; minutes)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=INSTALL_S)
        install(str(python), "-r", str(file), flags=NATIVE_BUILD)
        # Some of them bring it along, for another torch than this one, and then nothing can be imported.
        subprocess.run(
            [str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], check=True, timeout=INSTALL_S
        )
        stamp.write_text(made_for)
    return str(python)


@cache
def llama_for(instruction_set: str, python: str) -> Path:
    """Return the folder with the environment's llama.cpp compiled for an instruction set. Raises: SubprocessError."""
    ask = f"from importlib.metadata import version; print(version({LLAMA!r}))"
    said = subprocess.run([python, "-P", "-c", ask], check=True, timeout=INSTALL_S, capture_output=True, text=True)
    wanted, flags = f"{LLAMA}=={said.stdout.strip()}", SET_BUILDS[instruction_set]
    folder = BUILD / f"llama.cpp-{instruction_set}"
    stamp, made_for = folder / "installed", f"{wanted} {flags}\n"
    if not stamp.exists() or stamp.read_text() != made_for:
        print(f"compiling {wanted} for {instruction_set} into {folder} (once; minutes)", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        install(python, "--no-deps", "--target", str(folder), wanted, flags=flags)
        stamp.write_text(made_for)
    return folder


def install(python: str, *arguments: str, flags: str) -> None:
    """Install by pip, llama.cpp compiled with these flags of CMake. Raises: SubprocessError."""
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # What pip keeps of an earlier build was compiled with other flags, or on another processor.
    compiled = {"CMAKE_ARGS": flags, "PIP_NO_BINARY": LLAMA, "PIP_NO_CACHE_DIR": "1"}
    subprocess.run([*pip, *arguments], check=True, timeout=INSTALL_S, env=os.environ | compiled, stdout=sys.stderr)


def convert(engine: str, precision: str, folder: Path, built: Path) -> None:
    """Make a peer's own form of the model, where it has one. Raises: SubprocessError."""
    target = built / f"{engine}-{precision}"
    if target.exists() or engine not in {"openvino", "ctranslate2"}:
        return
    tools = Path(environment("convert", "requirements-peers-convert.txt")).parent
    if engine == "openvino":
        command = [str(tools / "optimum-cli"), "export", "openvino", "--model", str(folder)]
        command += ["--task", "text-generation-with-past", "--weight-format", precision, str(target)]
    else:
        kind = {"fp32": "float32", "int8": "int8"}[precision]
        command = [str(tools / "ct2-transformers-converter"), "--model", str(folder)]
        command += ["--output_dir", str(target), "--quantization", kind]
    try:
        # OpenVINO's tools report their use to Google Analytics unless they believe that they run on a build server.
        silent = os.environ | {"CI": "true"}
        subprocess.run(command, check=True, timeout=INSTALL_S, env=silent, stdout=sys.stderr)
    except subprocess.SubprocessError:
        shutil.rmtree(target, ignore_errors=True)
        raise
