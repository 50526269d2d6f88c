"""Files of torch.save: read as torch reads them, without torch and without running anything, or refused."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from protocol.errors import BadModel
from server.checkpoint import torch_file
from server.checkpoint.torch_file import STEPS, TorchFile

torch = pytest.importorskip("torch")
FEW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
PROGRAM = b"\x80\x02%s."
VIEW = (
    b"\x80\x02ccollections\nOrderedDict\n)RX\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00"
    b"\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ%s\x89NtRs."
)
"""A state dict of one tensor, w, of a storage of four numbers; what is put in: its offset, shape and strides."""


def saved(tensors: dict[str, Any], *, old: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def zipped(program: bytes, numbers: bytes = bytes(16), method: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in {"data.pkl": program, "data/0": numbers, **more}.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def opened(folder: Path, content: bytes) -> TorchFile:
    file = folder / "pytorch_model.bin"
    file.write_bytes(content)
    return TorchFile(file)


def bits(tensor: Any) -> Any:
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def state() -> OrderedDict[str, Any]:
    """What a checkpoint has: a tied head, a buffer of bools, a view, every type, `_metadata`."""
    torch.manual_seed(1)
    tensors = OrderedDict((name, torch.randn(3, 4).to(dtype)) for name, dtype in DTYPES.items())
    tensors |= {"tied": tensors["F32"], "turned": tensors["F16"].T, "part": torch.randn(100)[3:9]}
    tensors |= {"mask": torch.ones(2, 2, dtype=torch.bool), "ids": torch.arange(7)}
    tensors["parameter"] = torch.nn.Parameter(torch.randn(2, 2))
    tensors._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    return tensors


@pytest.mark.parametrize("old", [False, True])
def test_what_torch_saved_is_read(tmp_path: Path, old: bool) -> None:
    tensors = state()
    file = opened(tmp_path, saved(tensors, old=old))
    assert list(file.views) == list(tensors)
    assert file.views["mask"].storage.kind.dtype == "BOOL" and file.views["ids"].storage.kind.dtype == "I64"
    assert file.views["tied"].storage == file.views["F32"].storage
    for name in tensors.keys() - {"mask", "ids"}:
        tensor = tensors[name].detach()
        np.testing.assert_array_equal(file.read(name, tuple(tensor.shape)).view(bits(tensor).dtype), bits(tensor))
        with pytest.raises(BadModel, match=f"{name} has shape .* config.json says"):
            file.read(name, (7, 7))


@FEW
@given(st.data())
def test_any_view_is_read_as_torch_reads_it(tmp_path: Path, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    tensor = torch.arange(256, dtype=DTYPES[data.draw(st.sampled_from(sorted(DTYPES)))])[: int(np.prod(shape))]
    tensor = tensor.reshape(shape).permute(data.draw(st.permutations(range(len(shape)))))
    tensor = tensor[data.draw(st.integers(0, len(tensor) - 1)) :: data.draw(st.integers(1, 2))]
    file = opened(tmp_path, saved({"w": tensor}, old=data.draw(st.booleans())))
    np.testing.assert_array_equal(file.read("w", tuple(tensor.shape)).view(bits(tensor).dtype), bits(tensor))


def try_all(folder: Path, content: bytes) -> None:
    """Whatever the bytes are: tensors of their own shape, or BadModel."""
    try:
        file = opened(folder, content)
    except BadModel:
        return
    for name in ("w", "F32", "BF16", "part"):
        if name in file.views and file.views[name].storage.kind.dtype in DTYPES:
            for shape in ((2, 2), (3, 4), (6,)):
                try:
                    assert file.read(name, shape).copy().shape == shape
                except BadModel:
                    continue


@FEW
@given(
    st.booleans(), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6), st.floats(0, 1)
)
def test_a_damaged_file_is_read_or_refused(
    tmp_path: Path, old: bool, changes: list[tuple[float, int]], end: float
) -> None:
    content = bytearray(saved(state(), old=old))
    for place, byte in changes:
        content[int(place * (len(content) - 1))] = byte
    try_all(tmp_path, bytes(content))
    try_all(tmp_path, bytes(content[: int(end * len(content))]))


PIECES = [
    b"(", b"}", b"]", b")", b"N", b"\x88", b"K\x00", b"K\x02", b"J\xff\xff\xff\xff",
    b"\x8a\x09" + b"\xff" * 8 + b"\x7f",
    b"X\x01\x00\x00\x00w", b"X\x07\x00\x00\x00storage", b"X\x01\x00\x00\x000", b"t", b"\x85", b"\x86", b"\x87", b"s",
    b"u", b"a", b"e", b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"R", b"b", b"Q", b"ctorch\nFloatStorage\n", b".",
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n",
    b"cposix\nsystem\n", b"0", b"\x93", b"\x95" + bytes(8), b"K\x02K\x02\x86K\x00K\x01\x86",
]  # fmt: skip


@FEW
@given(st.lists(st.sampled_from(PIECES), max_size=40), st.booleans())
def test_any_program_is_read_or_refused(tmp_path: Path, pieces: list[bytes], old: bool) -> None:
    program = PROGRAM % b"".join(pieces)
    begin = pickle.dumps(torch_file.MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    try_all(tmp_path, begin + program + pickle.dumps(["0"], 2) + struct.pack("<q", 4) if old else zipped(program))


@FEW
@given(*[st.integers(-3, 5) for _ in range(5)])
def test_a_view_outside_its_storage_is_never_read(tmp_path: Path, offset: int, a: int, b: int, c: int, d: int) -> None:
    numbers = [b"J" + struct.pack("<i", n) for n in (offset, a, b, c, d)]
    program = VIEW % (numbers[0] + numbers[1] + numbers[2] + b"\x86" + numbers[3] + numbers[4] + b"\x86")
    file = opened(tmp_path, zipped(program, np.arange(4, dtype="<f4").tobytes()))
    inside = offset >= 0 and c > 0 and d > 0 and offset + (a - 1) * c + (b - 1) * d < 4 and 0 < a * b <= 4
    if a <= 0 or b <= 0:  # no shape of a model
        return
    if not inside:
        with pytest.raises(BadModel, match="storage"):
            file.read("w", (a, b))
        return
    expected = [[offset + i * c + j * d for j in range(b)] for i in range(a)]
    np.testing.assert_array_equal(file.read("w", (a, b)), expected)


GOOD = VIEW % b"K\x00K\x02K\x02\x86K\x02K\x01\x86"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (zipped(PROGRAM % b"cposix\nsystem\nX\x02\x00\x00\x00id\x85R"), r"asks for 'posix.system'.*nothing .* was run"),
        (zipped(PROGRAM % b"cbuiltins\neval\n"), "'builtins.eval'"),
        (zipped(PROGRAM % b"ctorch._utils\n_rebuild_tensor_v3\n"), "_rebuild_tensor_v3.*float8"),
        (zipped(PROGRAM % b"ccollections\nOrderedDict\nK\x01\x85R"), "calls collections.OrderedDict with"),
        (zipped(PROGRAM % b"ctorch\nFloatStorage\n)R"), "not a function"),
        (zipped(PROGRAM % b"}}X\x01\x00\x00\x00aK\x01sb"), "sets attributes"),
        (zipped(PROGRAM % b"X\x01\x00\x00\x00a\x85Q"), "persistent id"),
        (zipped(GOOD.replace(b"K\x04tQ", b"K\x04NtQ")), "persistent id"),
        (zipped(PROGRAM % b"\x93"), "opcode 0x93"),
        (zipped(PROGRAM % b"\x82\x01"), "opcode 0x82"),
        (zipped(b"\x80\x04K\x01."), "protocol 4"),
        (zipped(b"\x80\x02" + b"N" * 5000), "longer program"),
        (zipped(b"\x80\x02" + b"(" * 40), "longer program"),
        (zipped(b"\x80\x02" + b"\x80\x02" * 1_100_000), "longer program"),
        (zipped(PROGRAM % (b"(" + b"K\x01" * 20 + b"t")), "tuple"),
        (zipped(PROGRAM % b")\x85\x85"), "tuple"),
        (zipped(PROGRAM % b"K\x01"), "no state dict"),
        (zipped(bytes(17 << 20)), "data.pkl of 17825792 bytes"),
        (zipped(b"\x80\x02c" + b"a" * 300), "name that does not end"),
        (zipped(GOOD, method=zipfile.ZIP_DEFLATED), "compressed entry"),
        (zipped(GOOD, byteorder=b"big"), "big-endian"),
        (zipped(GOOD).replace(b"archive/data/0", b"archive/data.pkl"[:14]), "damaged|two entries|numbers"),
        (zipped(GOOD)[:-30], "does not end as one"),
        (b"\x80\x02K\x01.", "not a file of torch.save"),
        (b"version https://git-lfs", "not a file of torch.save"),
        (b"", "not a file of torch.save"),
    ],
)  # fmt: skip
def test_what_torch_does_not_save_is_refused_by_name(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(BadModel, match=f"pytorch_model.bin .*({says})"):
        opened(tmp_path, content).read("w", (2, 2))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (zipped(GOOD, bytes(12)), "room for another number"),
        (zipped(GOOD, bytes(20)), "room for another number"),
        (zipped(GOOD.replace(b"X\x01\x00\x00\x000X", b"X\x01\x00\x00\x001X")), "numbers of w are missing"),
        (zipped(VIEW % b"K\x00K\x02K\x02\x86K\x00K\x00\x86"), "as a tensor does"),
        (zipped(VIEW % b"K\x00K\x02K\x02\x86K\x02\x85"), "as a tensor does"),
        (zipped(VIEW % b"K\x01K\x02K\x02\x86K\x02K\x01\x86"), "storage of 4 numbers"),
    ],
)
def test_a_tensor_without_its_numbers_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    file = opened(tmp_path, content)
    with pytest.raises(BadModel, match=says):
        file.read("w", (2, 2))


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO(zipped(GOOD))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(BadModel, match="two entries 'archive/data/0'"):
        opened(tmp_path, buffer.getvalue())


def test_one_storage_has_one_kind_of_number(tmp_path: Path) -> None:
    tensor = GOOD[GOOD.index(b"X\x01\x00\x00\x00w") : -1]
    other = tensor.replace(b"00w", b"00v").replace(b"FloatStorage", b"HalfStorage")
    with pytest.raises(BadModel, match="two kinds of number"):
        opened(tmp_path, zipped(GOOD[:-1] + other + b"."))


def test_nothing_of_pickle_and_torch_is_used(tmp_path: Path) -> None:
    """In a fresh process: torch is not imported, and nothing is looked up by pickle."""
    for old in (False, True):
        (tmp_path / f"{old}.bin").write_bytes(saved(state(), old=old))
    code = """if True:
        import sys
        from pathlib import Path
        from server.checkpoint.torch_file import TorchFile
        def watch(event, arguments):
            assert event not in ("pickle.find_class", "exec", "os.system", "subprocess.Popen", "import"), arguments
        import mmap, struct, numpy.lib.stride_tricks
        sys.addaudithook(watch)
        for file in sys.argv[1:]:
            assert TorchFile(Path(file)).read("F32", (3, 4)).shape == (3, 4)
        assert not {"torch", "ml_dtypes", "transformers"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code, *map(str, tmp_path.iterdir())], check=True, timeout=60)


def test_no_opcode_makes_an_object_of_another_kind() -> None:
    """What the table has is no more than data, six names and REDUCE, BUILD and BINPERSID, which are checked."""
    import pickletools

    names = {op.code.encode("latin-1"): op.name for op in pickletools.opcodes}
    kinds = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "PERSID", "BYTEARRAY8"}
    assert STEPS.keys() <= names.keys() and not {names[code] for code in STEPS} & kinds
