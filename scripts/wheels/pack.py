"""Writing a wheel: the same bytes for the same files, whenever and wherever it is written."""

from __future__ import annotations

import base64
import hashlib
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from scripts.wheels.targets import Target
from server.build import SOURCES, digest

PACKAGE = "gpt2d_kernels"
LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The time of every file: the first that a zip can say."""
FILE, PROGRAM = 0o100644, 0o100755


def files_of(library: Path) -> dict[str, bytes]:
    """Return what a wheel installs for a library, by its place. As CMakeLists.txt has it, `built_from` is beside it."""
    sources = sorted(file for file in (SOURCES / PACKAGE).iterdir() if file.is_file())
    return {
        **{f"{PACKAGE}/{file.name}": file.read_bytes() for file in sources},
        f"{PACKAGE}/built_from": digest().encode(),
        f"{PACKAGE}/{library.name}": library.read_bytes(),
    }


def write_wheel(folder: Path, target: Target, files: Mapping[str, bytes]) -> Path:
    """Write a wheel of these files into the folder. Raises: OSError."""
    project = tomllib.loads((SOURCES / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = project["version"]
    about = f"{PACKAGE}-{version}.dist-info"
    tags = "".join(f"Tag: py3-none-{tag}\n" for tag in target.tag.split("."))
    metadata = (
        f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {version}\nSummary: {project['description']}\n"
        f"License-Expression: {project['license']}\nRequires-Python: {project['requires-python']}\n"
    )
    wheel = f"Wheel-Version: 1.0\nGenerator: gpt2d\nRoot-Is-Purelib: false\n{tags}"
    every = {**files, f"{about}/METADATA": metadata.encode(), f"{about}/WHEEL": wheel.encode()}
    record = "".join(f"{name},sha256={_sum(data)},{len(data)}\n" for name, data in every.items())
    every[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{PACKAGE}-{version}-py3-none-{target.tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in every.items():
            entry = zipfile.ZipInfo(name, LONG_AGO)
            entry.create_system = 3  # Unix, whatever this one is: else the modes below mean nothing
            entry.external_attr = (PROGRAM if name.endswith(target.library) else FILE) << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return path


def _sum(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
