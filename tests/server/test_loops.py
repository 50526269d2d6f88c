"""The products' inner loops keep their sums in registers, and fetch: they are half as fast where a compiler differs."""

from __future__ import annotations

import platform
import shutil

import pytest

from scripts.bench.loops import Loop, functions, inner_loops, is_product, problem, product_loops
from server.catalogue.engines import native_problem


@pytest.mark.skipif(bool(native_problem()), reason="needs the native kernels")
@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="the loops of other processors are plain C++")
@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump (Debian: apt-get install binutils)")
def test_products_of_the_installed_kernels_keep_their_sums_in_registers() -> None:
    import gpt2d_kernels

    path = gpt2d_kernels.library()
    assert path
    loops = product_loops(path)
    found = {(loop.wide, loop.bits) for loop in loops}
    assert found == {(wide, bits) for wide in (True, False) for bits in (32, 8, 4)}, "are the names of functions in it?"
    assert max(loop.rows for loop in loops if loop.wide) >= 4
    assert all(loop.fetches for loop in loops if loop.wide and loop.bits < 32 and loop.rows > 3), "memory waits"
    few = [loop for loop in loops if loop.bits < 32 and 1 <= loop.rows <= 3 and not loop.strips]
    fetches = {(loop.wide, loop.bits, loop.rows, min(loop.fetches, 2)) for loop in few}
    ways = {(*tile, of_one) for *tile, _ in fetches for of_one in (0, 1, 2)}
    assert fetches == ways, "few rows leave fetching to the processor, share it among tiles, and fetch ahead"
    assert not [wrong for loop in loops if (wrong := problem(loop))]


HEAD = "vmovups (%rax),%zmm1"
BOUND = "mov %rax,(%rsp)"
"""A general register: where a loop ends, say."""
END = ("add $0x80,%rax", "cmp %rax,%rdx", "jne 400 <f>")
FMA = "vfmadd231ps %zmm1,%zmm2,%zmm3"
DOT = "vpdpbusd %zmm1,%zmm2,%zmm3"
STACK = "vmovdqa64 %zmm3,0x40(%rsp)"
DOT2, STACK2 = "vpmaddubsw %ymm1,%ymm2,%ymm3", "vmovdqa %ymm3,0x40(%rsp)"
ROW2 = ["vfmadd231ps %ymm1,%ymm2,%ymm3"] * 4
"""One row of AVX2."""


@pytest.mark.parametrize(
    ("bits", "body", "wrong"),
    [
        (32, [HEAD, FMA, FMA, *END], ""),
        (32, [HEAD, FMA, "vmovups %zmm3,(%rcx,%rbx,4)", FMA, *END], "32 bits: 1 rows, 0 dot products, 1 stores"),
        (32, [HEAD, FMA, BOUND, FMA, *END], ""),
        (8, [HEAD, DOT, DOT, *[STACK] * 4, FMA, FMA, *END], ""),
        (8, [HEAD, DOT, *[BOUND] * 5, DOT, FMA, FMA, *END], ""),
        (8, [HEAD, DOT, STACK, DOT, FMA, FMA, *END], "1 of these between products"),
        (4, [HEAD, DOT, DOT, *[STACK] * 5, FMA, FMA, *END], "5 stores"),
        (8, [DOT2, STACK2, DOT2, *ROW2, *END], ""),
        (8, [DOT2, *[STACK2] * 5, DOT2, *ROW2, *END], "at most 4 may be"),
        (4, [DOT2, *[STACK2] * 7, *[DOT2] * 7, *ROW2, *ROW2, *END], ""),
        (4, [DOT2, *[STACK2] * 8, *[DOT2] * 7, *ROW2, *ROW2, *END], "at most 7 may be"),
    ],
)
def test_what_is_wrong_with_a_loop(bits: int, body: list[str], wrong: str) -> None:
    loop = Loop(bits, tuple(body))
    assert is_product(loop)
    assert wrong in problem(loop) and bool(wrong) == bool(problem(loop))


def test_loops_are_found_in_a_disassembly() -> None:
    """The innermost, whatever is around it; activations, which have other arithmetic, are not products."""
    text = """
kernels.so:     file format elf64-x86-64

0000000000000400 <void gpt2d::(anonymous namespace)::matmul_of<32>(gpt2d::Matrix const&)>:
     400:	vmovups (%rax),%zmm1
     406:	vfmadd231ps (%rcx){1to16},%zmm1,%zmm3
     40c:	vfmadd231ps (%rcx){1to16},%zmm2,%zmm4
     412:	jne    406 <void gpt2d::(anonymous namespace)::matmul_of<32>(gpt2d::Matrix const&)+0x6>
     418:	vmulps %zmm1,%zmm1,%zmm1
     41e:	vfmadd231ps %zmm1,%zmm1,%zmm1        # 2000 <table>
     424:	jne    418 <void gpt2d::(anonymous namespace)::matmul_of<32>(gpt2d::Matrix const&)+0x18>
     42a:	jb     400 <void gpt2d::(anonymous namespace)::matmul_of<32>(gpt2d::Matrix const&)>
     430:	ret
"""
    (_, nothing), (name, code) = functions(text)
    assert not nothing and "matmul_of<32>" in name and code[-1] == (0x430, "ret")
    bodies = list(inner_loops(code))
    assert [len(body) for body in bodies] == [3, 3]
    assert [is_product(Loop(32, body)) for body in bodies] == [True, False]


def test_a_loop_that_only_fetches_is_part_of_the_block_around_it() -> None:
    """A tile that shares a panel with others fetches every second line, say, of the next one's block."""
    body = [
        "prefetcht1 (%rcx)",
        "add $0x80,%rcx",
        "jbe 400 <f>",
        *[DOT] * 2,
        *[FMA] * 2,
        STACK,
        "jg 400 <f>",
        "jne 300 <f>",
    ]
    code = [(0x300, "vmovups (%rax),%zmm1"), *((0x400 + i, text) for i, text in enumerate(body))]
    (block,) = (Loop(8, found) for found in inner_loops(code))
    assert block.instructions == tuple(body[:-1]) and is_product(block)
    assert block.fetches == 1 and block.rows == 1 and len(block.dots) == 2 and len(block.stores) == 1
