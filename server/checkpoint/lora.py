"""A LoRA adapter merged into its base, tensor by tensor, when it is read. Used in workers only.

The result is the model that peft's PeftModel runs, whose head stays the base's table where only the table was trained;
merge_and_unload changes both, which are one tensor, and is another model there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.errors import BadModel
from server.catalogue import adapters
from server.catalogue.adapters import Adapter, read_adapter
from server.catalogue.architecture import Architecture, read_architecture
from server.catalogue.files import ADAPTER_CONFIG, model_files
from server.checkpoint.tensors import (
    HEAD,
    PREFIX,
    STORED,
    TABLE,
    Tensors,
    Weights,
    as_float32,
    expected_shapes,
    open_stored,
)

LINEAR = ("c_attn", "c_proj", "c_fc", "lm_head")
EMBEDDINGS = ("wte", "wpe")
PEFT_HEAD = f"{adapters.PREFIX}lm_head."
MASK = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
"""Buffers that transformers before 4.31 stored, and bias="all" with them; they are no parameters."""
MERGED = "an adapter, which is added to its base in float32"


@dataclass(frozen=True)
class Update:
    """What is added to a tensor: `scale` times the product of two matrices, or times one vector (`a` is None)."""

    scale: float
    b: str
    b_shape: tuple[int, ...]
    a: str = ""
    a_shape: tuple[int, ...] = ()
    transposed: bool = False
    """Whether the tensor is [inputs, outputs]."""


class Changes:
    """What an adapter changes in a base of the shape `arch`, which is that of the result.

    Raises: BadModel, at once, if a tensor is missing that its configuration asks for, or there is another; OSError.
    """

    def __init__(self, folder: Path, arch: Architecture) -> None:
        self._adapter = read_adapter(folder)
        self._path = model_files(folder).weights[0]
        self._file = open_stored(self._path)
        self.shapes = expected_shapes(arch)
        self._names = self._named()
        self._replaced: dict[str, str] = {}
        self._updates: dict[str, Update] = {}
        targets = {m for m in self._modules() if m.endswith((*LINEAR, *EMBEDDINGS)) and targeted(self._adapter, m)}
        self._find_replaced(targets, {HEAD: self.shapes[TABLE]} | self.shapes)
        for module in sorted(targets):
            self._find_updates(module)
        if rest := [name for name in self._names if not MASK.fullmatch(name)]:
            raise BadModel(f"{self._path.name} has {rest[0]}, which {ADAPTER_CONFIG} does not ask for")

    @property
    def divides_head(self) -> bool:
        """Return whether head and table differ in the result where the base has one tensor for both."""
        differ = self._replaced.get(HEAD) != self._replaced.get(TABLE)
        return differ or HEAD in self._updates or TABLE in self._updates

    def check_vocabulary(self) -> None:
        """Check that both table and head are stored, where they are larger than the base's. Raises: BadModel."""
        if not {HEAD, TABLE} <= self._replaced.keys():
            size = self.shapes[TABLE][0]
            raise BadModel(f"{self._path.name} must have both the token table and the head of {size} tokens")

    def _named(self) -> dict[str, str]:
        """Return {name without peft's prefix: name}, of what is not used yet."""
        names = self._file.names()
        if other := [name for name in names if not name.startswith((f"{adapters.PREFIX}{PREFIX}", PEFT_HEAD))]:
            raise BadModel(
                f"{self._path.name} has {other[0]}: names must begin with {adapters.PREFIX}{PREFIX} or {PEFT_HEAD}"
            )
        return {name.removeprefix(adapters.PREFIX): name for name in names}

    def _modules(self) -> list[str]:
        return ["lm_head", *dict.fromkeys(PREFIX + tensor.rpartition(".")[0] for tensor in self.shapes)]

    def _find_replaced(self, targets: set[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Find the tensors that stand for the base's: saved modules, biases, and the table where it was enlarged."""
        for tensor, shape in shapes.items():
            module, kind = tensor.rsplit(".", 1)
            module = module if module == "lm_head" else PREFIX + module
            name = f"{module}.base_layer.{kind}" if module in targets else f"{module}.{kind}"
            if name in self._names:
                self._replaced[tensor] = self._take(name, shape, "the model has")
            elif self._adapter.saves(module):
                raise BadModel(f"{self._path.name} has no {name}, which modules_to_save asks for")

    def _find_updates(self, module: str) -> None:
        """Find what is added to a module's weight, and to its bias."""
        tensor = module.removeprefix(PREFIX)
        shape = self.shapes[TABLE] if tensor == "lm_head" else self.shapes[f"{tensor}.weight"]
        embedding = tensor in EMBEDDINGS
        part, end = ("lora_embedding_", "") if embedding else ("lora_", ".weight")
        conv = not embedding and tensor != "lm_head"
        inputs, outputs = shape if conv or embedding else shape[::-1]
        rank, scale = rank_and_scale(self._adapter, module)
        a_shape, b_shape = (rank, inputs), (outputs, rank)
        a = self._take(f"{module}.{part}A{end}", a_shape, f"its rank of {rank} asks for")
        b = self._take(f"{module}.{part}B{end}", b_shape, f"its rank of {rank} asks for")
        self._updates[f"{tensor}.weight"] = Update(scale, b, b_shape, a, a_shape, transposed=conv or embedding)
        if self._adapter.lora_bias:
            if not conv:
                raise BadModel(f"{ADAPTER_CONFIG} has lora_bias=true for {module}, which has no bias to add it to")
            bias = self._take(f"{module}.lora_B.bias", (outputs,), "the model has")
            self._updates[f"{tensor}.bias"] = Update(scale, bias, (outputs,))

    def _take(self, name: str, shape: tuple[int, ...], says: str) -> str:
        """Check a tensor and return its name in the file. Raises: BadModel."""
        if name not in self._names:
            raise BadModel(f"{self._path.name} has no {name}, which {ADAPTER_CONFIG} asks for")
        stored = self._names.pop(name)
        if (dtype := self._file.dtype(stored)) not in STORED:
            raise BadModel(f"{self._path.name} stores {name} as {dtype}: quantised weights are not read")
        self._file.check(stored, shape, says)
        return stored

    def share(self) -> None:
        """Let what is stored of a tensor that is both table and head be both, but for modules that are saved."""
        one = {HEAD: "lm_head", TABLE: adapters.TABLE}
        shared = [tensor for tensor, module in one.items() if not self._adapter.saves(module)]
        stored = next((self._replaced[tensor] for tensor in shared if tensor in self._replaced), None)
        if stored:
            self._replaced |= dict.fromkeys(shared, stored)

    def instead(self, name: str) -> NDArray[np.float32] | None:
        """Return what stands for a tensor of the base, if anything does."""
        stored = self._replaced.get(name)
        like = TABLE if name == HEAD else name
        return self._read(stored, self.shapes[like]) if stored else None

    def added(self, name: str) -> NDArray[np.float32] | None:
        """Return what is added to a tensor, if anything is."""
        update = self._updates.get(name)
        return self._value(update) if update else None

    def _value(self, update: Update) -> NDArray[np.float32]:
        value = self._read(update.b, update.b_shape)
        if update.a:
            value = value @ self._read(update.a, update.a_shape)
        value *= np.float32(update.scale)
        return value.T if update.transposed else value

    def _read(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return as_float32(self._file.read(name, shape), self._file.dtype(name))


class Adapted(Tensors):
    """The tensors of a base and its adapter: as `Weights`, and each is merged when it is asked for."""

    def __init__(self, changes: Changes, base: Weights, base_arch: Architecture) -> None:
        """Raises: BadModel."""
        self._changes = changes
        self._base = base
        self._shapes = dict(changes.shapes)
        if base_arch.tied and not base.has_head:
            changes.share()
        if self._shapes[TABLE][0] != base_arch.vocabulary:
            changes.check_vocabulary()
        if base.has_head or changes.divides_head:
            self._shapes[HEAD] = self._shapes[TABLE]

    @property
    def notices(self) -> tuple[str, ...]:
        return (*self._base.notices, MERGED)

    def _tensor(self, name: str) -> NDArray[np.float32]:
        tensor = self._changes.instead(name)
        if tensor is None:
            tensor = self._base[TABLE if name == HEAD and not self._base.has_head else name]
        added = self._changes.added(name)
        if added is not None:
            tensor += added
        return tensor


def open_weights(folder: Path, arch: Architecture, base: Path | None) -> Tensors:
    """Return the tensors of the model in a folder; of an adapter's, merged into its base. Raises: BadModel, OSError."""
    if base is None:
        return Weights(folder, arch)
    base_arch = read_architecture(base)
    return Adapted(Changes(folder, arch), Weights(base, base_arch), base_arch)


def targeted(adapter: Adapter, module: str) -> bool:
    """Return whether the adapter has matrices for a module, by its whole name; as peft's check_target_module_exists."""
    excluded = adapter.exclude_modules
    if re.fullmatch(excluded, module) if isinstance(excluded, str) else _ends(module, excluded):
        return False
    if any(re.match(rf"(^|.*\.){saved}($|\..*)", module) for saved in adapter.modules_to_save):
        return False
    targets = adapter.target_modules
    if targets is None:
        return module.endswith(LINEAR) and module != "lm_head"
    if isinstance(targets, str):
        return bool(re.fullmatch(targets, module))
    return module in targets or (_ends(module, targets) and _transformed(adapter, module))


def _ends(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _transformed(adapter: Adapter, module: str) -> bool:
    """Return whether a module's layer is among those that are transformed."""
    if not adapter.layers_to_transform:
        return True
    for pattern in adapter.layers_pattern or (r"[^.]*",):
        lead = r"(?:^|.*?\.)" if adapter.layers_pattern else r".*?\."
        if found := re.match(rf"{lead}{pattern}\.(\d+)\.", module):
            return int(found[1]) in adapter.layers_to_transform
    return False


def rank_and_scale(adapter: Adapter, module: str) -> tuple[int, float]:
    """Return the rank of a module's matrices, and what their product is multiplied by."""
    rank = adapter.rank_pattern.get(_key(adapter.rank_pattern, module), adapter.r)
    alpha = adapter.alpha_pattern.get(_key(adapter.alpha_pattern, module), adapter.lora_alpha)
    return rank, alpha / (sqrt(rank) if adapter.use_rslora else rank)


def _key(patterns: Mapping[str, object], module: str) -> str:
    """Return the first pattern that a module's name ends with; as peft's get_pattern_key."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)
