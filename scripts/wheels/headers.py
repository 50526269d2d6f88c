"""What a library's headers say of it, and what is wrong with that: it must load on all systems that its wheel names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.wheels.targets import Target
from server.build import SOURCES

MACHINES = {"x86_64": {"X86_64", "AMD64"}, "aarch64": {"AARCH64", "ARM64"}}
"""Processors as zig names them -> as the formats do."""
LIBRARIES = {
    "Linux": ("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-*.so.?"),
    "Darwin": ("/usr/lib/libSystem.B.dylib", "/usr/lib/libc++.1.dylib"),
    "Windows": ("kernel32.dll", "ntdll.dll", "api-ms-win-crt-*.dll"),
}
"""Libraries that are on every such system."""
SHARED = re.compile(r"_Z(na|nw|da|dl)\w+|__dso_handle|_?mh_dylib_header")
"""What zig's linker lets out on macOS whatever it is told: operators new and delete, of which a process shares one."""
INTERFACE = re.compile(r"\bGPT2D_API\b[^;]*?\b(gpt2d_\w+)\(")


@dataclass(frozen=True)
class Facts:
    machine: str
    exports: frozenset[str]
    libraries: frozenset[str]
    oldest: tuple[int, ...] = ()
    """The version of glibc or macOS that it wants; empty on Windows."""
    signed: bool = False


def interface() -> frozenset[str]:
    """Return the functions of the C interface, as its header declares them."""
    return frozenset(INTERFACE.findall((SOURCES / "include" / "gpt2d_kernels.h").read_text(encoding="utf-8")))


def problems(target: Target, facts: Facts) -> Iterator[str]:
    """Yield what is wrong with a library for this system."""
    if facts.machine not in MACHINES[target.zig.split("-")[0]]:
        yield f"is for {facts.machine}"
    if missing := sorted(interface() - facts.exports):
        yield f"does not export {', '.join(missing)}"
    others = sorted(facts.exports - interface())
    if others := [name for name in others if not (target.system == "Darwin" and SHARED.fullmatch(name))]:
        yield f"exports more than the interface: {', '.join(others)}"
    for library in sorted(facts.libraries):
        if not any(fnmatch.fnmatch(library.lower(), known.lower()) for known in LIBRARIES[target.system]):
            yield f"wants {library}, which not every such system has"
    if target.oldest and facts.oldest > target.oldest:
        yield f"wants version {_dotted(facts.oldest)}, and the wheel promises {_dotted(target.oldest)}"
    if target.system == "Darwin" and target.processor == "arm64" and not facts.signed:
        yield "is not signed, and no such Mac loads what is not"


def read(library: Path) -> Facts:
    """Read the headers of a library. Raises: ImportError without the package lief; ValueError."""
    import lief

    lief.logging.disable()  # it says that empty tables of a library for macOS cannot be read
    binary = lief.parse(str(library))
    match binary:
        case lief.ELF.Binary():
            needs = [aux.name for need in binary.symbols_version_requirement for aux in need.get_auxiliary_symbols()]
            exports = {symbol.name for symbol in binary.exported_symbols}
            libraries, machine = binary.libraries, binary.header.machine_type.name
            oldest = max((_version(name) for name in needs if name.startswith("GLIBC_")), default=())
            return Facts(machine, frozenset(exports), frozenset(libraries), oldest)
        case lief.MachO.Binary():
            exports = {symbol.name.removeprefix("_") for symbol in binary.exported_symbols}
            own = {command.name for command in binary.libraries if command.command.name == "ID_DYLIB"}
            libraries = {command.name for command in binary.libraries} - own
            oldest = tuple(binary.build_version.minos)[:2]
            machine = binary.header.cpu_type.name
            return Facts(machine, frozenset(exports), frozenset(libraries), oldest, binary.has_code_signature)
        case lief.PE.Binary():
            exports = {str(entry.name) for entry in binary.get_export().entries}
            libraries = {entry.name for entry in binary.imports}
            return Facts(binary.header.machine.name, frozenset(exports), frozenset(libraries))
    raise ValueError(f"{library} is not a library")


def _version(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.removeprefix("GLIBC_").split(".")))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
