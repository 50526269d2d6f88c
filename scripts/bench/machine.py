"""What a machine allows a step of the native engine: L, the shortest time in which memory and arithmetic could do it.

    L = max(bytes of weights / B, products / C) + bytes of keys and values / B + 0.1 ms

B is how fast memory is read, and C how many multiplications the format can do, both measured by `Probe` in the process
of the step, with as many threads: a machine that others share has states that last for seconds and differ by two.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from server.catalogue.architecture import Architecture
from server.catalogue.engines import BITS, TRAITS, instruction_sets
from server.convert.native_layout import PANEL
from server.gateway.status import cpu

SOURCE = Path(__file__).with_name("machine_probe.c")
COMPILE_S = 120
PASSES = 5
"""Passes of a measurement, the best of which counts."""
FORMAT_SHARE = 0.76
"""Share of the dot products that blocks of 32 inputs allow: 4 operations for scales beside 16 products, and loads."""
READ_BYTES = 512 << 20
"""What is read where the weights of others are not at hand: more than any cache holds."""
KNOWN = ("avx512", "avxvnni", "avx2")
"""Instruction sets that machine_probe.c knows."""
MEETINGS_MS = 0.1
"""Time of a step in which threads meet, whatever they compute."""


@dataclass(frozen=True)
class Step:
    """What is computed together: `rows` sequences, each with `tokens` new ones after `past`."""

    rows: int
    past: int
    tokens: int = 1

    @property
    def name(self) -> str:
        return f"{self.rows:4}" if self.tokens == 1 else f"prefill of {self.tokens}"


@dataclass(frozen=True)
class Amount:
    """What a step has to read, and to multiply (a multiplication counts with its addition)."""

    weight_bytes: float
    kv_bytes: float
    macs: float

    def least_ms(self, read_gb_s: float, gmac_s: float) -> float:
        """Return L."""
        read, computed = self.weight_bytes / read_gb_s, self.macs / gmac_s
        return (max(read, computed) + self.kv_bytes / read_gb_s) / 1e6 + MEETINGS_MS


def amount(arch: Architecture, precision: str, step: Step) -> Amount:
    """Return what a step of the native engine has to do; a prefill needs the last token's logits alone."""

    def padded(n: int) -> int:
        return -(-n // PANEL) * PANEL

    width, inner = padded(arch.width), padded(arch.inner)
    block = width * (padded(3 * arch.width) + width + 2 * inner)
    head = padded(arch.vocabulary) * width
    stored = TRAITS["native"].precisions[precision]
    tokens = step.rows * step.tokens
    return Amount(
        arch.layers * block * stored.blocks + head * stored.head,
        step.rows * (step.past + step.tokens) * arch.row_bytes("native", precision) / arch.context,
        tokens * arch.layers * block + step.rows * head,
    )


def compile_probe(folder: Path) -> Path:
    """Compile machine_probe.c for this processor into a folder. Exits with a sentence where that fails."""
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        sys.exit("no C compiler: install gcc (Debian: apt install gcc), which builds what measures this machine")
    library = folder / "machine_probe.so"
    flags = ["-O3", "-march=native", "-pthread", "-shared", "-fPIC"]
    try:
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library)], check=True, timeout=COMPILE_S)
    except subprocess.SubprocessError as e:
        sys.exit(f"{SOURCE.name} cannot be compiled: {e}")
    return library


class Probe:
    """Measurements of this machine by as many threads as a step has, as machine_probe.c does them."""

    def __init__(self, library: Path, threads: int) -> None:
        self._library = ctypes.CDLL(str(library))
        self._threads = threads
        self._library.probe_read.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 2]
        self._library.probe_products.argtypes = [ctypes.c_char_p, *[ctypes.c_int] * 3]
        for function in (self._library.probe_read, self._library.probe_products, self._library.probe_meetings):
            function.restype = ctypes.c_double

    def read_gb_s(self, address: int, size: int, passes: int = PASSES) -> float:
        """Return how fast these bytes are read: B."""
        return self._checked(self._library.probe_read(address, size, self._threads, passes)) / 1e9

    def gmac_s(self, instruction_set: str, precision: str, passes: int = PASSES) -> float:
        """Return C: what the products of a precision come to, at most."""
        bits = BITS[precision]
        peak = self._checked(self._library.probe_products(instruction_set.encode(), bits, self._threads, passes)) / 1e9
        return peak if bits == BITS["fp32"] else FORMAT_SHARE * peak

    def meeting_us(self) -> float:
        """Return what a meeting of the threads takes."""
        return 1e6 / self._checked(self._library.probe_meetings(self._threads, PASSES))

    def _checked(self, found: float) -> float:
        if found <= 0:
            sys.exit(f"{SOURCE.name} measures nothing here: it knows {', '.join(KNOWN)}, and starts up to 256 threads")
        return found


def processor() -> str:
    """Return the processor's name with family and model; the name of a virtual machine's may be the maker's alone."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return cpu()
    numbers = re.search(r"^cpu family\s*: (\d+)\nmodel\s*: (\d+)$", text, re.MULTILINE)
    return f"{cpu()}, family {numbers[1]}, model {numbers[2]}" if numbers else cpu()


def can_measure() -> bool:
    """Return whether `Limits` can be measured here: there is a C compiler, and one of the instruction sets it knows."""
    return bool(shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")) and _known() is not None


def _known() -> str | None:
    return next((name for name in instruction_sets() if name in KNOWN), None)


class Limits:
    """What the machine allows whatever runs on it, to be measured in the same minutes: B, and C by precision."""

    def __init__(self, threads: int, instruction_set: str = "") -> None:
        """Compile the probe; "" measures the products of the best set here. Exits with a sentence where that fails."""
        self._instruction_set = instruction_set or _known() or ""
        with tempfile.TemporaryDirectory() as folder:
            self._probe = Probe(compile_probe(Path(folder)), threads)
        self._memory = np.ones(READ_BYTES // 8)

    def measured(self, passes: int = PASSES) -> dict[str, float]:
        """Return B, and C at int8 and fp32; int4 computes as int8 does. Takes a quarter of a second."""
        return {
            "read_gb_s": self._probe.read_gb_s(self._memory.ctypes.data, self._memory.nbytes, passes),
            "int8_gmac_s": self._probe.gmac_s(self._instruction_set, "int8", passes),
            "fp32_gmac_s": self._probe.gmac_s(self._instruction_set, "fp32", passes),
        }


def allowed(arch: Architecture, precision: str, step: Step, measured: dict[str, float]) -> float:
    """Return the tokens/s of a step that takes L."""
    products = measured["fp32_gmac_s" if precision == "fp32" else "int8_gmac_s"]
    ms = amount(arch, precision, step).least_ms(measured["read_gb_s"], products)
    return 1e3 * step.rows * step.tokens / ms
