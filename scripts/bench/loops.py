"""Inner loops of the kernels' products as a compiler has made them: they must keep their sums in registers.

Read from a library by objdump (Debian: binutils). A function says by the first argument of its template how many bits
its weights have; a loop is recognised by what it contains: dot products, or fused multiply-adds and no other
arithmetic. How many rows a tile has is left to the kernels.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

OBJDUMP_S = 60
FUNCTION = re.compile(r"[0-9a-f]+ <(.*)>:")
INSTRUCTION = re.compile(r" *([0-9a-f]+):\s+(.*?)\s*(?:#.*)?")
JUMP = re.compile(r"j\w+ +([0-9a-f]+)\b.*")
STORE = re.compile(r"vmov\w* +%[xyz]mm\d+,[^,]*\(.*\)(?:\{%k\d\})?")
BITS = re.compile(r"\w<(32|8|4)[,>]")
STRIPS = re.compile(r"\w<8, true[,>]")
DOT = re.compile(r"(?:{vex} )?vpdpbusd|vpmaddubsw|vpmaddwd")
NO_ARITHMETIC = re.compile(r"v(?:mov|broadcast|insert|extract)\w*")
MOST_SPILLS = 4
"""Stores in a block of AVX512. Tiles of 6 rows, with 12 sums and 12 products, leave registers free and need none."""


@dataclass(frozen=True)
class Loop:
    """Inner loop of a product by weights of `bits` bits."""

    bits: int
    instructions: tuple[str, ...]
    strips: bool = False
    """Whether the weights are strips of a head, which lie apart."""

    @property
    def wide(self) -> bool:
        """Whether its registers are those of AVX512."""
        return any("%zmm" in text for text in self.instructions)

    @property
    def rows(self) -> int:
        """Number of rows: each has 32 outputs, of which a register holds 16, or 8."""
        return sum(text.startswith("vfmadd") for text in self.instructions) // (2 if self.wide else 4)

    @property
    def dots(self) -> list[int]:
        """Places of the dot products."""
        return [i for i, text in enumerate(self.instructions) if DOT.match(text)]

    @property
    def stores(self) -> list[int]:
        """Places of the stores of vector registers: a general one holds a counter or a bound, never a sum."""
        return [i for i, text in enumerate(self.instructions) if STORE.fullmatch(text)]

    @property
    def fetches(self) -> int:
        """Number of instructions that fetch memory ahead."""
        return sum(text.startswith("prefetch") for text in self.instructions)

    def __str__(self) -> str:
        kind = f"{'avx512' if self.wide else 'avx2'}, {self.bits} bits"
        return f"{kind}: {self.rows} rows, {len(self.dots)} dot products, {len(self.stores)} stores"


def product_loops(library: Path) -> list[Loop]:
    """Return the inner loops of all products in a library that has the names of its functions.

    Raises: OSError, subprocess.SubprocessError.
    """
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=OBJDUMP_S, check=True)
    found = []
    for name, code in functions(done.stdout):
        if bits := BITS.search(name):
            strips = bool(STRIPS.search(name))
            loops = [Loop(int(bits[1]), body, strips) for body in inner_loops(code)]
            found += [loop for loop in loops if is_product(loop)]
    return found


def functions(text: str) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """Yield the name of each function, and its instructions with their addresses."""
    name = ""
    code: list[tuple[int, str]] = []
    for line in text.splitlines():
        if match := FUNCTION.fullmatch(line):
            yield name, code
            name, code = match[1], []
        elif match := INSTRUCTION.fullmatch(line):
            code.append((int(match[1], 16), match[2]))
    yield name, code


def inner_loops(code: Sequence[tuple[int, str]]) -> Iterator[tuple[str, ...]]:
    """Yield what lies between a jump back and its target, where no other such pair that computes is inside.

    A loop that only fetches memory is a part of the one around it: the block of a product of several tiles has one.
    """
    index = {address: i for i, (address, _) in enumerate(code)}
    loops = []
    for end, (_, text) in enumerate(code):
        if match := JUMP.fullmatch(text):
            start = index.get(int(match[1], 16), len(code))
            loops += [(start, end)] if start <= end else []
    loops = [(a, b) for a, b in loops if any(text.startswith("v") for _, text in code[a : b + 1])]
    for start, end in loops:
        if not any((a, b) != (start, end) and start <= a and b <= end for a, b in loops):
            yield tuple(text for _, text in code[start : end + 1])


def is_product(loop: Loop) -> bool:
    if loop.bits != 32:
        return bool(loop.dots)
    arithmetic = [t for t in loop.instructions if t.startswith("v") and not NO_ARITHMETIC.match(t)]
    return bool(arithmetic) and all(text.startswith("vfmadd") for text in arithmetic) and loop.rows > 0


def problem(loop: Loop) -> str:
    """Return what is wrong with a loop; empty if it keeps its sums in registers.

    AVX2 has 16 registers, which one row of blocks leaves free and two more than fill.
    """
    between = [i for i in loop.stores if loop.dots and loop.dots[0] < i < loop.dots[-1]]
    if loop.bits == 32:
        return f"{loop}, and none may be" if loop.stores else ""
    if not loop.wide:
        most = MOST_SPILLS if loop.rows == 1 else len(loop.dots) - 1
        return f"{loop}, and at most {most} may be" if len(loop.stores) > most else ""
    if between or len(loop.stores) > MOST_SPILLS:
        return f"{loop}, {len(between)} of these between products; at most {MOST_SPILLS} may be, and none there"
    return ""
