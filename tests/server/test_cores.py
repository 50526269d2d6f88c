"""The number of threads by default, in made-up folders /sys and /proc of machines that are not here."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from server.cores import Threads, fastest, threads
from server.launch.local import ROOT


def tree(root: Path, siblings: list[str], **files: str) -> Path:
    """Write a machine: what `siblings` says for each CPU, and other files by their paths."""
    cpu = root / "sys/devices/system/cpu"
    contents = {f"cpu{n}/topology/core_cpus_list": text for n, text in enumerate(siblings)}
    contents["online"] = f"0-{len(siblings) - 1}"
    for path, text in contents.items():
        write(cpu / path, text)
    for path, text in files.items():
        write(root / path, text)
    return root


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n", encoding="ascii")


PAIRS = [f"{n},{n + 4}" for n in range(4)] * 2
"""Four cores of two hyper-threads, as servers number them."""
ALDER_LAKE = [f"{n - n % 2}-{n - n % 2 + 1}" for n in range(16)] + [str(n) for n in range(16, 20)]
"""Eight fast cores of two hyper-threads and four slow ones."""
HYBRID = {"sys/devices/cpu_core/cpus": "0-15", "sys/devices/cpu_atom/cpus": "16-19"}
SINGLE = [str(n) for n in range(8)]


def capacities(*values: int) -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{n}/cpu_capacity": str(value) for n, value in enumerate(values)}


def clocks(*values: int) -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{n}/cpufreq/cpuinfo_max_freq": str(v) for n, v in enumerate(values)}


@pytest.mark.parametrize(
    ("siblings", "files", "allowed", "expected"),
    [
        pytest.param(SINGLE, {}, None, Threads(8, "one for each core"), id="no hyper-threads"),
        pytest.param(PAIRS, {}, None, Threads(4, "one for each physical core"), id="hyper-threads"),
        pytest.param(PAIRS, {}, {0, 4}, Threads(1, "one for each physical core"), id="both threads of a core"),
        pytest.param(PAIRS, {}, {0, 1, 2}, Threads(3, "one for each core"), id="three cores of four"),
        pytest.param(ALDER_LAKE, HYBRID, None, Threads(8, "one for each fast core, 8 of 12"), id="Alder Lake"),
        pytest.param(ALDER_LAKE, HYBRID, {0, 2, 16}, Threads(2, "one for each fast core, 2 of 3"), id="some of each"),
        pytest.param(ALDER_LAKE, HYBRID, {17, 18}, Threads(2, "one for each core"), id="slow ones alone"),
        pytest.param(
            SINGLE,
            capacities(530, 530, 530, 530, 1024, 1024, 1024, 1024),
            None,
            Threads(4, "one for each fast core, 4 of 8"),
            id="RK3588",
        ),
        pytest.param(
            SINGLE,
            capacities(325, 325, 325, 325, 828, 828, 828, 1024),
            None,
            Threads(4, "one for each fast core, 4 of 8"),
            id="three kinds",
        ),
        pytest.param(SINGLE, capacities(*[1024] * 8), None, Threads(8, "one for each core"), id="Graviton"),
        pytest.param(
            SINGLE,
            clocks(*[1_800_000] * 4, *[2_400_000] * 4),
            None,
            Threads(4, "one for each fast core, 4 of 8"),
            id="by clock",
        ),
    ],
)
def test_threads_are_fast_physical_cores(
    tmp_path: Path, siblings: list[str], files: dict[str, str], allowed: set[int] | None, expected: Threads
) -> None:
    assert threads(root=tree(tmp_path, siblings, **files), machine="aarch64", allowed=allowed) == expected


def test_cores_of_one_design_may_differ_in_clock(tmp_path: Path) -> None:
    """A desktop's favoured cores, and AMD's dense ones, which compute as the others do."""
    root = tree(tmp_path, SINGLE, **clocks(*[5_100_000] * 4, *[3_300_000] * 4))
    assert threads(root=root, machine="x86_64") == Threads(8, "one for each core")


V1 = "12:memory:/docker/f00\n4:cpu,cpuacct:/docker/f00\n0::/"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/fs/cgroup/cpu.max": "300000 100000"}, Threads(3, "its cgroup allows 3 CPUs")),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, Threads(1, "its cgroup allows 1.5 CPUs")),
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, Threads(1, "its cgroup allows 0.5 CPUs")),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, Threads(4, "one for each physical core")),
        ({"sys/fs/cgroup/cpu.max": "1600000 100000"}, Threads(4, "one for each physical core")),
        ({"sys/fs/cgroup/cpu.max": ""}, Threads(4, "one for each physical core")),
        (  # a service with CPUQuota, in a slice with more
            {
                "proc/self/cgroup": "0::/system.slice/gpt2d.service",
                "sys/fs/cgroup/system.slice/cpu.max": "300000 100000",
                "sys/fs/cgroup/system.slice/gpt2d.service/cpu.max": "200000 100000",
            },
            Threads(2, "its cgroup allows 2 CPUs"),
        ),
        (  # v1: a container sees its own group at the top
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            Threads(2, "its cgroup allows 2 CPUs"),
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/docker/f00/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu,cpuacct/docker/f00/cpu.cfs_period_us": "100000",
            },
            Threads(3, "its cgroup allows 3 CPUs"),
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            Threads(4, "one for each physical core"),
        ),
    ],
)
def test_threads_keep_to_a_containers_share(tmp_path: Path, files: dict[str, str], expected: Threads) -> None:
    assert threads(root=tree(tmp_path, PAIRS, **files)) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"physical": 8, "fast": 6}, Threads(6, "one for each fast core, 6 of 8")),
        ({"physical": 8, "fast": None}, Threads(8, "one for each physical core")),
        ({"physical": 8, "fast": 8}, Threads(8, "one for each physical core")),
        ({"physical": 8, "allowed": {0, 1}}, Threads(2, "one for each CPU that it may use")),
    ],
)
def test_systems_without_such_folders_say_it_themselves(
    tmp_path: Path, said: dict[str, int | None], expected: Threads
) -> None:
    assert threads(root=tmp_path, **said) == expected  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize("pointer", ["I", "Q"], ids=["32 bits", "64 bits"])
def test_windows_says_how_fast_cores_are(pointer: str) -> None:
    """As 32 and 64 bits have it: the mask of a group is a pointer's size, and a core may have several groups."""

    def core(efficiency: int, groups: int = 1, kind: int = 0) -> bytes:
        masks = struct.pack(f"<{pointer}HHHH", 1, 0, 0, 0, 0) * groups
        return struct.pack("<IIBB20xH", kind, 32 + len(masks), 1, efficiency, groups) + masks

    assert fastest(core(0) * 4) == 4
    assert fastest(core(1) * 2 + core(0) * 8) == 2
    assert fastest(core(0) + core(1) + core(2, groups=2) * 3) == 3  # Intel's since Meteor Lake have three
    assert fastest(core(1) * 2 + core(5, kind=3)) == 2  # a package
    assert fastest(b"") == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="there is no affinity")
def test_a_process_of_one_cpu_takes_one_thread() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from server.config import Config; "
    code += "print(Config().threads)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=os.environ | {"PYTHONPATH": ROOT}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.stdout == "1\n", done.stderr
