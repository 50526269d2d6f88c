"""Which engines and precisions there are, and everything else that is known of an engine before it is loaded.

Loads no model library: the gateway imports it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from protocol.errors import BadModel
from protocol.programs import command, install, typed

KERNELS_VERSION = 7
"""Version of the package gpt2d-kernels that the native engine works with."""
BLOCK = 32
"""Weights that share a scale."""
BITS = {"fp32": 32, "int8": 8, "int4": 4}
"""Bits of a weight in the blocks' matrices, for the engines whose files we build."""
HEAD_BITS = 8
"""Bits of the token table and the LM head at every quantised precision (docs/decisions/head-at-8-bits.md)."""
COARSE_HEAD = 4 / 8 + 2 / BLOCK + 2 / BLOCK**2
"""Bytes of each weight of the native engine's coarse head: 4 bits, scales, and what they leave out of each block."""
CACHE_BITS = {"int8": 8, "fp16": 16, "bf16": 16, "fp32": 32}
"""Bits of an element of the KV cache, by what the cache is called."""
CACHE_SCALE_BYTES = 4
"""Bytes of the scale that the elements of a head have at each position, where they are integers."""
BUILD_FORMAT = 6
"""Raised whenever the same weights are built into something else (convert/, or the export of engines/optimum.py)."""
SUMS_FILE = "SHA256SUMS"
"""The file that makes a folder of the cache one built model."""
CALIBRATED = "-calibrated"
"""What follows the name of a built int4 whose weights were rounded by calibration (engines/calibration.py)."""
SOURCE_FILE = "calibrated_with"
"""The file in it that says what with: OWN_TEXTS, or a given text's digest."""
OWN_TEXTS = "texts of its own"
CALIBRATES = ("native", "int4")
"""Engine and precision that a calibration is for."""
TRIES, PACE_S = 4, 1.45e-3
"""How often `pace` measures, and what it found on a core of the machine of `Architecture.calibration_seconds`."""
LOCK_SUFFIX = ".lock"
"""In the cache: the file of those that wait for a build."""
INSTRUCTION_SET = "GPT2D_INSTRUCTION_SET"
"""The variable of the environment that forces one of the native engine's instruction sets."""
COMPILED_FOLDER = "torch"
"""The folder of the cache where torch's compiler keeps its own."""


def native_problem(forced: str | None = None) -> str:
    """Return why the native engine cannot be used, with that instruction set if one is forced; empty if it can."""
    install = TRAITS["native"].install
    try:
        import gpt2d_kernels
    except ImportError:
        return f"the native kernels are not built; {install} builds them"
    if gpt2d_kernels.library() is None:
        return f"the native kernels were installed without a C++ compiler; {install} builds them"
    if gpt2d_kernels.VERSION != KERNELS_VERSION:
        versions = f"version {gpt2d_kernels.VERSION} instead of {KERNELS_VERSION}"
        return f"the native kernels have {versions}; {install} builds that"
    try:
        instruction_set(forced)
    except OSError as e:
        return f"the native kernels cannot be loaded ({e}); {install} builds them for this machine"
    except ValueError as e:
        return str(e)
    return ""


@cache
def instruction_sets() -> list[str]:
    """Return what this processor has and the native kernels know, best first.

    Raises: ImportError if there are no kernels, OSError if they cannot be loaded here.
    """
    import gpt2d_kernels

    names = ctypes.CDLL(str(gpt2d_kernels.library())).gpt2d_instruction_sets
    names.restype = ctypes.c_char_p
    return bytes(names()).decode().split(",")


def instruction_set(forced: str | None = None) -> str:
    """Return the one that is used: what is forced, else what the environment wants, else the best.

    Raises: ImportError and OSError as `instruction_sets`, ValueError if this processor or the kernels do not have it.
    """
    known, wanted = instruction_sets(), forced or os.environ.get(INSTRUCTION_SET)
    if wanted and wanted not in known:
        name = "the instruction set" if forced else INSTRUCTION_SET
        raise ValueError(f"{name} is {wanted}, and here there are {', '.join(known)}")
    return wanted or known[0]


def force_instruction_set(name: str) -> None:
    """Let this process, and those that it starts, use an instruction set instead of the best.

    Raises: BadModel if the native engine cannot be used with it, saying why.
    """
    if problem := native_problem(name):
        raise BadModel(problem)
    os.environ[INSTRUCTION_SET] = name
    found = usable()
    ENGINES.clear()
    ENGINES.update(found)


@cache
def pace() -> float:
    """Return how many times as long as where calibration was measured arithmetic takes here: tried once, for some ms.

    Raises: ImportError and OSError as `instruction_sets`.
    """
    import gpt2d_kernels

    inputs, outputs = 192, 64
    calibrate = ctypes.CDLL(str(gpt2d_kernels.library())).gpt2d_calibrate
    weights, values = (ctypes.c_float * (outputs * inputs))(), (ctypes.c_uint8 * (outputs * inputs))()
    scales = (ctypes.c_uint16 * (outputs * inputs // BLOCK))()
    took = []
    for _ in range(TRIES):  # the shortest: others may have had the core
        products = (ctypes.c_double * inputs**2)()
        for i in range(inputs):
            products[i * inputs + i] = 1
        began = time.perf_counter()
        calibrate(outputs, inputs, products, weights, 1, values, scales)
        took.append(time.perf_counter() - began)
    return min(took) / PACE_S


def onnx_problem() -> str:
    """Return why the engine onnx cannot be used; empty if it can."""
    if any(Path(folder, "onnxruntime").is_dir() for folder in sys.path):  # not loaded: the gateway does without it
        return ""
    if sys.version_info >= (3, 15):
        return "there is no ONNX Runtime for this Python; take 3.14"
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        return "ONNX Runtime is no longer made for Macs with Intel processors"
    return f"ONNX Runtime is not installed; {TRAITS['onnx'].install} adds it"


def _no_problem() -> str:
    """Return nothing: what such an engine lacks shows when a worker imports its libraries."""
    return ""


@dataclass(frozen=True)
class Stored:
    """Bytes in memory at one precision, for each weight of a part of the model."""

    blocks: float
    """A weight of the blocks' matrices."""
    head: float
    """A weight of the token table: all copies of it, where the LM head has one of its own."""
    rest: float = 4
    """A bias, a norm's weight or a position's."""
    coarse: float = 0
    """More of a weight of the LM head, for a first pass over it."""
    caches: tuple[str, ...] = ("fp32",)
    """What the KV cache can be made of (CACHE_BITS); the first is the default."""
    loading_copies: int = 0
    """Times that all weights are in memory as float32 while the engine is made, where that is more than what stays."""


def _in_blocks(
    bits: int, scale_bytes: int, *, head_copies: int = 1, coarse: float = 0, caches: tuple[str, ...] = ("fp32",)
) -> Stored:
    """Return the sizes of a model quantised in blocks, each with a scale."""
    scale = scale_bytes / BLOCK
    return Stored(bits / 8 + scale, head_copies * (HEAD_BITS / 8 + scale), coarse=coarse, caches=caches)


@dataclass(frozen=True)
class Traits:
    """One engine, as it is known before it is loaded."""

    precisions: Mapping[str, Stored]
    """The first is the default."""
    install: str
    """The command that installs what the engine needs."""
    needs: str = ""
    """The packages that a worker imports for this engine alone, for people."""
    problem: Callable[[], str] = _no_problem
    """Returns why the engine cannot be used; empty if it can."""
    compiles: tuple[str, ...] = ()
    """The precisions at which it can be compiled."""
    most_rows: int | None = None
    """Sequences that it can run together; None: as many as there is memory for."""
    head_multiple: int = 1
    """What the width of an attention head must be a multiple of."""
    prefix_cache: bool = True
    """Whether the keys and values of a row can be copied out and in again."""
    libraries_bytes: int = 0
    """Memory that its libraries take beside that of every worker."""
    build_unit: str = "layers"
    """Unit of a build's progress; empty: the checkpoint itself is opened."""

    @property
    def default_precision(self) -> str:
        return next(iter(self.precisions))

    def rows(self, asked: int | None) -> int | None:
        """Return the rows that the engine gets where `asked` are wanted; None: as many as fit."""
        return asked if self.most_rows is None else self.most_rows

    def missing(self, name: str, module: str | None) -> str:
        """Return the sentence for a worker where a package is missing."""
        return f"engine {name} needs {self.needs} ({module} is missing); {self.install} adds them"


KERNELS_INSTALL = f"`{command('gpt2d-server')} --build-kernels`"
SERVER_INSTALL = f"in the checkout, `{install('server')}`"
REFERENCES_INSTALL = f"in the checkout, `{typed(sys.executable, '-m', 'pip', 'install', '-r', 'requirements.txt')}`"
REFERENCE_BYTES = 420 << 20
"""Memory that the libraries of the reference engines take."""

TRAITS = {
    "native": Traits(
        {
            "int8": _in_blocks(8, 2, coarse=COARSE_HEAD, caches=("int8", "fp16")),  # scales are fp16
            "int4": _in_blocks(4, 2, coarse=COARSE_HEAD, caches=("int8", "fp16")),
            "fp32": Stored(4, 4),
        },
        install=KERNELS_INSTALL,
        problem=native_problem,
    ),
    "onnx": Traits(
        {
            "int8": _in_blocks(8, 4, head_copies=2),  # the runtime keeps a packed copy of the head
            "int4": _in_blocks(4, 4, head_copies=2),
            "fp32": Stored(4, 4),
        },
        install=SERVER_INSTALL,
        problem=onnx_problem,
        head_multiple=8,  # of its GroupQueryAttention, whatever the precision (ONNX Runtime 1.32)
    ),
    "torch": Traits(
        {
            "fp32": Stored(4, 4),
            "bf16": Stored(2, 2, 2, caches=("bf16",)),
            # Made of fp32, whose memory is not given back; the head is parted from the token table.
            "int8": Stored(5, 9),
        },
        install=REFERENCES_INSTALL,
        needs="torch and transformers",
        compiles=("fp32", "bf16"),
        most_rows=1,
        prefix_cache=False,
        libraries_bytes=REFERENCE_BYTES,
        build_unit="",
    ),
    "optimum": Traits(
        {
            # The head is stored apart from the token table; the runtime copies what it rearranges: half as much again.
            "fp32": Stored(6, 12, 6, loading_copies=6),
            "int8": Stored(1.5, 3, 1.5, loading_copies=8),
        },
        install=REFERENCES_INSTALL,
        needs="optimum and optimum-onnx",
        most_rows=1,
        prefix_cache=False,
        libraries_bytes=REFERENCE_BYTES,
        build_unit="steps",
    ),
}
"""Every engine by name, the default first. Torch and optimum are references: there to compare the others with."""


def usable() -> dict[str, Traits]:
    """Return the engines that can be used here, the default first."""
    found = {name: traits for name, traits in TRAITS.items() if not traits.problem()}
    if "native" in found and instruction_set() == "plain":
        found["native"] = found.pop("native")
    return found


def _plain() -> str:
    """Return why native is slow here, as a part of a sentence."""
    if instruction_sets() == ["plain"]:
        return "this processor has none of the instructions that make native fast (AVX2, VNNI or Arm's dot products)"
    return "native is made to do without the instructions that make it fast (its instruction set is plain)"


def notices() -> list[str]:
    """Return what a user of this server should know about its engines: a sentence each."""
    if problem := native_problem():
        if without_onnx := onnx_problem():
            return [f"only reference engines can be used, where they are installed: {problem}; {without_onnx}"]
        return [f"the slower engine {next(iter(ENGINES))} is the default: {problem}"]
    if "native" not in ENGINES:
        since = f"the native kernels were built after this server was started (process {os.getpid()})"
        return [f"the slower engine {next(iter(ENGINES))} is the default: {since}; they are used once it is restarted"]
    if next(iter(ENGINES)) != "native":
        promise = "the same text on every processor is native's promise alone (docs/kernels.md)"
        return [f"{next(iter(ENGINES))} is the default engine: {_plain()}; {promise}"]
    return []


ENGINES = usable()
"""Those that can be used here, the default first."""
REFERENCE = (next(iter(ENGINES)), "fp32")
"""Engine and precision that the others are measured against."""


def choose_engine(engine: str | None, precision: str | None) -> tuple[str, str]:
    """Fill in what a load request left out.

    Raises: BadModel, naming what there is.
    """
    engine = engine or next(iter(ENGINES))
    if engine not in ENGINES:
        problem = TRAITS[engine].problem() if engine in TRAITS else ""
        because = f" here ({problem})" if problem else ""
        raise BadModel(f"no engine {engine!r}{because}; there are: {', '.join(ENGINES)}")
    traits = ENGINES[engine]
    precision = precision or traits.default_precision
    if precision not in traits.precisions:
        raise BadModel(f"engine {engine} has no precision {precision!r}; it has: {', '.join(traits.precisions)}")
    return engine, precision


def choose_cache(engine: str, precision: str, cache: str | None) -> str:
    """Fill in what the KV cache is made of, where a load left it out. Raises: BadModel, naming what there is."""
    caches = TRAITS[engine].precisions[precision].caches
    cache = cache or caches[0]
    if cache not in caches:
        raise BadModel(f"{engine} at {precision} has no KV cache of {cache!r}; it can be: {', '.join(caches)}")
    return cache


def check_compiled(engine: str, precision: str) -> None:
    """Raise BadModel where there is nothing to compile."""
    if precision not in TRAITS[engine].compiles:
        there = ", ".join(f"{name} at {' and '.join(t.compiles)}" for name, t in ENGINES.items() if t.compiles)
        raise BadModel(f"{engine} at {precision} cannot be compiled; what can: {there}")
