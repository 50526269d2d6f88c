"""The memory that a service or a container may have, in made-up folders /sys and /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.launch.local import group_memory


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (  # a container sees its own group at the top; copies of files fill it; those that are not mapped make room
            {
                "memory.max": "1000",
                "memory.current": "990",
                "memory.stat": "anon 50\nactive_file 600\ninactive_file 300\nfile_mapped 20\n",
            },
            [(1000, 110)],
        ),
        ({"memory.max": "1000", "memory.current": "50"}, [(1000, 50)]),
        ({"memory.max": "max", "memory.current": "50"}, []),
        (  # a service with MemoryMax, in a slice with less
            {
                "/proc/self/cgroup": "0::/gpt2d.slice/gpt2d.service",
                "gpt2d.slice/memory.max": "700",
                "gpt2d.slice/memory.current": "600",
                "gpt2d.slice/gpt2d.service/memory.max": "800",
                "gpt2d.slice/gpt2d.service/memory.current": "500",
                "gpt2d.slice/gpt2d.service/memory.stat": "slab_reclaimable 7",
            },
            [(800, 493), (700, 600)],
        ),
        (
            {
                "/proc/self/cgroup": "4:memory:/docker/f00\n0::/",
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "900",
                "memory/memory.stat": "active_file 1\ntotal_active_file 200\ntotal_inactive_file 100\n"
                "mapped_file 1\ntotal_mapped_file 30\n",
            },
            [(1000, 630)],
        ),
    ],
)  # fmt: skip
def test_what_a_group_leaves(tmp_path: Path, files: dict[str, str], expected: list[tuple[int, int]]) -> None:
    for name, content in files.items():
        file = tmp_path / name[1:] if name.startswith("/") else tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    assert list(group_memory(tmp_path)) == expected
