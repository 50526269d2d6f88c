"""Reads the tensors of a file of torch.save (`pytorch_model.bin`) without torch and without executing anything.

Such a file is a program for Python's unpickling machine, which can call whatever Python can import. Here a machine of
its own runs the few opcodes that torch.save writes for a state dict; it knows six names, makes strings, numbers,
tuples, lists, dicts and views of storages, and refuses all else by name. What it may take is bounded: bytes,
operations, stack, memo. Rejected: the standard library's Unpickler with a `find_class` of ours (its REDUCE and BUILD
act on whatever they are given), and torch's own loader with `weights_only=True` (the daemon does without torch, and it
admits more than a state dict needs).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.errors import BadModel
from server.checkpoint.torch_zip import entries

SAYS = "config.json says"
MAX_PROGRAM_BYTES = 16 << 20
MAX_OPERATIONS, MAX_MEMO = 1 << 20, 1 << 18
MAX_STACK, MAX_MARKS = 4096, 32
MAX_TUPLE, MAX_NAME = 16, 256
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What the format before torch 1.6 begins with."""
ZIP = b"PK\x03\x04"
STORAGES = {
    "FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2), "DoubleStorage": ("F64", 8),
    "LongStorage": ("I64", 8), "IntStorage": ("I32", 4), "ShortStorage": ("I16", 2), "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1), "BoolStorage": ("BOOL", 1),
}  # fmt: skip
"""torch's class -> the name that safetensors has for its type, and the bytes of one number."""


class Function(Enum):
    """What REDUCE may be asked for."""

    ORDERED = "collections.OrderedDict"
    TENSOR = "torch._utils._rebuild_tensor"
    TENSOR_2 = "torch._utils._rebuild_tensor_v2"
    PARAMETER = "torch._utils._rebuild_parameter"


@dataclass(frozen=True)
class Kind:
    """A storage's class."""

    dtype: str
    itemsize: int


@dataclass(frozen=True)
class Storage:
    """Numbers that lie in the file one after another."""

    kind: Kind
    key: str
    numel: int


@dataclass(frozen=True)
class View:
    """A tensor: some of a storage's numbers in some order. Nothing of it is checked yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Ordered(dict[str, Any]):
    """An OrderedDict: the one thing that BUILD may be applied to."""


class TorchFile:
    """The tensors of a file by name. `read` gives their numbers as they are stored.

    Raises: BadModel, which says what the file has that a state dict has not.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}  # storage's key -> first byte and number of bytes
        try:
            with file.open("rb") as stream:
                begins = stream.read(len(ZIP))
            found = self._zip() if begins == ZIP else self._old()
        except (OSError, struct.error, IndexError, UnicodeDecodeError) as e:
            raise self._refused(f"cannot be read: it is damaged or cut ({type(e).__name__}: {e})") from None
        self.views = {name: value for name, value in found.items() if isinstance(value, View)}

    def names(self) -> list[str]:
        return list(self.views)

    def dtype(self, name: str) -> str:
        """Return the type by its name in safetensors."""
        return self.views[name].storage.kind.dtype

    def read(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a tensor of this shape, bfloat16 as uint16, mapped from the file. Raises: BadModel."""
        view = self.views[name]
        self.check(name, shape)
        begin, size = self._places[view.storage.key]
        kind = view.storage.kind
        dtype = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}[kind.dtype]
        whole = np.memmap(self._file, dtype, "r", begin, (size // kind.itemsize,))
        strides = [stride * kind.itemsize for stride in view.strides]
        return np.lib.stride_tricks.as_strided(whole[view.offset :], view.shape, strides, writeable=False)

    def check(self, name: str, shape: tuple[int, ...], says: str = SAYS) -> None:
        """Check that a tensor has this shape, as `says` says, and lies inside its storage. Raises: BadModel."""
        view = self.views[name]
        storage = view.storage
        if view.shape != shape:
            raise self._refused(f"{name} has shape {list(view.shape)}, {says} {list(shape)}")
        if len(view.strides) != len(shape) or view.offset < 0 or any(stride <= 0 for stride in view.strides):
            raise self._refused(f"{name} does not lie in its storage as a tensor does")
        last = view.offset + sum((size - 1) * stride for size, stride in zip(shape, view.strides, strict=True))
        if last >= storage.numel or int(np.prod(shape, dtype=object)) > storage.numel:
            raise self._refused(f"{name} does not lie in its storage of {storage.numel} numbers")
        if storage.key not in self._places:
            raise self._refused(f"the numbers of {name} are missing")
        if self._places[storage.key][1] != storage.numel * storage.kind.itemsize:
            raise self._refused(f"{name} has {storage.numel} numbers, and the file has room for another number of them")

    def _zip(self) -> Mapping[str, Any]:
        """Since torch 1.6: a zip, with the program in data.pkl and each storage in an entry of its own."""
        found = entries(self._file)
        programs = [name for name in found if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(programs) != 1:
            raise self._refused(f"is a zip with {len(programs)} data.pkl: torch.save did not write it")
        program, folder = programs[0], programs[0].removesuffix("data.pkl")
        if self._bytes(found.get(f"{folder}byteorder", (0, 0))) not in {b"", b"little"}:
            raise self._refused("was written on a big-endian machine, which is not read")
        content = self._bytes(found[program])
        self._places = {n.removeprefix(f"{folder}data/"): p for n, p in found.items() if n.startswith(f"{folder}data/")}
        return self._state(Machine(content, self._file.name, old=False).run())

    def _old(self) -> Mapping[str, Any]:
        """Before torch 1.6: five programs one after another, then the storages, each after its number of numbers."""
        with self._file.open("rb") as stream:
            content = stream.read(MAX_PROGRAM_BYTES)
        machine = Machine(content, self._file.name, old=True)
        if content[:2] != b"\x80\x02" or machine.run() != MAGIC or machine.run() != PROTOCOL:
            raise self._refused("is not a file of torch.save")
        system = machine.run()
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise self._refused("was written on a big-endian machine, which is not read")
        found, keys = self._state(machine.run()), machine.run()
        storages = machine.storages
        if not isinstance(keys, list) or not all(type(key) is str and key in storages for key in keys):
            raise self._refused("lists storages that no tensor has")
        at, end = machine.at, self._file.stat().st_size
        with self._file.open("rb") as stream:
            for key in keys:
                stream.seek(at)
                (numel,) = struct.unpack("<q", stream.read(8))
                size = numel * storages[key].kind.itemsize
                if numel < 0 or at + 8 + size > end or key in self._places:
                    raise self._refused("is damaged or cut: a storage does not lie in it")
                self._places[key] = (at + 8, size)
                at += 8 + size
        return found

    def _bytes(self, place: tuple[int, int]) -> bytes:
        begin, size = place
        if size > MAX_PROGRAM_BYTES:
            raise self._refused(f"has a data.pkl of {size} bytes, more than any model's")
        with self._file.open("rb") as stream:
            stream.seek(begin)
            return stream.read(size)

    def _state(self, value: object) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self._refused("holds no state dict")
        return value

    def _refused(self, why: str) -> BadModel:
        return BadModel(f"{self._file.name} {why}")


class Machine:
    """Runs the programs in `content`, one after another."""

    def __init__(self, content: bytes, name: str, *, old: bool) -> None:
        self.at = 0
        self.storages: dict[str, Storage] = {}
        self._content = content
        self._name = name
        self._old = old
        self._operations = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> object:
        """Run one program; return what it leaves. Raises: BadModel, IndexError, struct.error, UnicodeDecodeError."""
        self._stack, self._marks = [], []
        self._memo = {}
        while (code := self._take(1)) != b".":
            self._operations += 1
            step = STEPS.get(code)
            if step is None:
                raise self._refused(f"has the opcode 0x{code.hex()}, which torch.save does not write for a state dict")
            step(self)
            if self._operations > MAX_OPERATIONS or len(self._stack) > MAX_STACK or len(self._marks) > MAX_MARKS:
                raise self._refused("is a longer program than any model's")
        if len(self._stack) != 1 or self._marks:
            raise self._refused("is not a whole program")
        return self._stack[0]

    def _take(self, size: int) -> bytes:
        begin = self.at
        self.at += size
        if self.at > len(self._content):
            raise self._refused(f"ends in the middle of its data.pkl, or that is over {MAX_PROGRAM_BYTES} bytes")
        return self._content[begin : self.at]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self._content.find(b"\n", self.at, self.at + MAX_NAME)
        if end < 0:
            raise self._refused("has a name that does not end")
        return self._take(end + 1 - self.at)[:-1].decode()

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise self._refused("takes from an empty stack")
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise self._refused("takes from an empty stack")
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _tuple(self, items: list[Any]) -> None:
        """Tuples hold at most a tuple of whole numbers, a shape: nothing can be nested deeper."""
        inner = (i for item in items if isinstance(item, tuple) for i in item)
        if len(items) > MAX_TUPLE or not all(type(i) is int for i in inner):
            raise self._refused("has a tuple that no state dict has")
        self._push(tuple(items))

    def _put(self, index: int) -> None:
        if not self._stack or len(self._memo) >= MAX_MEMO:
            raise self._refused("remembers more than any model's file")
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise self._refused("recalls what it has not remembered")
        self._push(self._memo[index])

    def _global(self) -> None:
        module, name = self._line(), self._line()
        if module == "torch" and name in STORAGES:
            return self._push(Kind(*STORAGES[name]))
        try:
            return self._push(Function(f"{module}.{name}"))
        except ValueError:
            hint = " (float8 or unsigned integers)" if name == "_rebuild_tensor_v3" else ""
            raise self._refused(
                f"asks for {f'{module}.{name}'!a}{hint}, which no GPT-2's state dict needs; nothing of the file was "
                "run. Save the model with transformers' save_pretrained"
            ) from None

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        match function, arguments:
            case Function.ORDERED, ():
                self._push(Ordered())
            case Function.PARAMETER, (View() as view, bool(), Ordered()):
                self._push(view)
            case Function.TENSOR, (Storage() as storage, int(offset), tuple(shape), tuple(strides)):
                self._push(View(storage, offset, shape, strides))
            case (
                Function.TENSOR_2,
                (Storage() as storage, int(offset), tuple(shape), tuple(strides), bool(), Ordered() | None),
            ):
                self._push(View(storage, offset, shape, strides))
            case Function(), _:
                raise self._refused(f"calls {function.value} with what torch.save does not give it")
            case _:
                raise self._refused("calls what is not a function")

    def _build(self) -> None:
        state, target = self._pop(), self._stack[-1]
        if type(target) is not Ordered or type(state) is not dict or set(state) != {"_metadata"}:
            raise self._refused("sets attributes of something that is not a state dict")

    def _persistent(self) -> None:
        match self._pop():
            case ("storage", Kind() as kind, str(key), str(), int(numel), *rest) if (
                rest == ([None] if self._old else []) and numel >= 0
            ):
                storage = Storage(kind, key, numel)
                if self.storages.setdefault(key, storage) != storage:
                    raise self._refused("has one storage as two kinds of number")
                self._push(storage)
            case _:
                raise self._refused("has a persistent id that is not a storage of its own")

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1] if self._stack else None
        if not isinstance(target, dict) or len(items) % 2 or not all(type(key) is str for key in items[::2]):
            raise self._refused("fills something that is not a dict of names")
        target.update(zip(items[::2], items[1::2], strict=True))

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1] if self._stack else None
        if not isinstance(target, list):
            raise self._refused("appends to something that is not a list")
        target.extend(items)

    def _popped(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _protocol(self) -> None:
        if (version := self._number("<B")) != 2:
            raise self._refused(f"is of protocol {version}; save it with torch.save's own, which is 2")

    def _long(self) -> None:
        self._push(int.from_bytes(self._take(self._number("<B")), "little", signed=True))

    def _refused(self, why: str) -> BadModel:
        return BadModel(f"{self._name} {why}")


def _pushes(make: Callable[[], object]) -> Callable[[Machine], None]:
    return lambda machine: machine._push(make())


def _number(form: str) -> Callable[[Machine], None]:
    return lambda machine: machine._push(machine._number(form))


def _tuples(count: int) -> Callable[[Machine], None]:
    return lambda machine: machine._tuple(machine._popped(count))


STEPS: dict[bytes, Callable[[Machine], None]] = {
    b"\x80": Machine._protocol,
    b"(": Machine._mark,
    b"}": _pushes(dict),
    b"]": _pushes(list),
    b")": _pushes(tuple),
    b"N": _pushes(lambda: None),
    b"\x88": _pushes(lambda: True),
    b"\x89": _pushes(lambda: False),
    b"K": _number("<B"),
    b"M": _number("<H"),
    b"J": _number("<i"),
    b"G": _number(">d"),
    b"\x8a": Machine._long,
    b"X": lambda machine: machine._push(machine._take(machine._number("<I")).decode("utf-8", "surrogatepass")),
    b"t": lambda machine: machine._tuple(machine._since_mark()),
    b"\x85": _tuples(1),
    b"\x86": _tuples(2),
    b"\x87": _tuples(3),
    b"s": lambda machine: machine._set(machine._popped(2)),
    b"u": lambda machine: machine._set(machine._since_mark()),
    b"a": lambda machine: machine._append(machine._popped(1)),
    b"e": lambda machine: machine._append(machine._since_mark()),
    b"q": lambda machine: machine._put(machine._number("<B")),
    b"r": lambda machine: machine._put(machine._number("<I")),
    b"h": lambda machine: machine._get(machine._number("<B")),
    b"j": lambda machine: machine._get(machine._number("<I")),
    b"c": Machine._global,
    b"R": Machine._reduce,
    b"b": Machine._build,
    b"Q": Machine._persistent,
}
"""Opcode -> what it does."""
