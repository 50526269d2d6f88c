"""How many threads a worker gets where nobody says it: one for each fast core that this process may use.

A step waits for its slowest thread. Two threads on one core have no more of it together than one has alone, a slow core
holds up fast ones, and where a container's share is used up, all its threads stand still for the rest of a period.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from server.groups import groups, text

SLOW = 0.6
"""Part of the fastest core's capacity below which a core is a slow one: Arm's small ones have a half or less."""
SLOW_CLOCK = 0.85
"""The same of its clock, where nothing else is known of it: a core's design makes more difference than its clock."""
SYSCTL_S = 5.0
CORES = 0
"""Windows' RelationProcessorCore."""
EFFICIENCY = 9
"""Where a core's class is, after its kind and size and a byte of flags."""


@dataclass(frozen=True)
class Threads:
    number: int
    reason: str
    """Why so many, for people: what follows a comma."""


def threads(
    *,
    allowed: Collection[int] | None = None,
    machine: str = platform.machine(),
    physical: int | None = None,
    fast: int | None = None,
    root: Path = Path("/"),
) -> Threads:
    """Return the number, and why it is that.

    `allowed` are the CPUs that this process may use, as it says itself; None: all. `physical` and `fast` are what is
    said of cores by a system whose `root` has no folder /sys; 0 or None: nothing.
    """
    cpus = sorted(_online(root) if allowed is None else allowed)
    cores = _cores(root, cpus)
    if cores:
        quick = _fast(root, cores, machine)
        hyper_threads = sum(map(len, cores)) > len(cores)
        found = Threads(len(quick), "one for each physical core" if hyper_threads else "one for each core")
        if len(quick) < len(cores):
            found = Threads(len(quick), f"one for each fast core, {len(quick)} of {len(cores)}")
    else:
        found = Threads(physical or len(cpus) or 1, "one for each physical core" if physical else "one for each CPU")
        if fast and fast < found.number:
            found = Threads(fast, f"one for each fast core, {fast} of {found.number}")
        if allowed is not None and len(cpus) < found.number:
            found = Threads(len(cpus), "one for each CPU that it may use")
    share = min(_shares(root), default=None)
    if share is not None and share < found.number:
        return Threads(max(1, int(share)), f"its cgroup allows {share:g} CPUs")
    return found


def threads_here() -> Threads:
    """Return what `threads` says of this machine and this process."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    return threads(allowed=allowed, physical=psutil.cpu_count(logical=False), fast=_apples_fast() or _windows_fast())


def _online(root: Path) -> list[int]:
    return _list(root / "sys/devices/system/cpu/online") or list(range(os.cpu_count() or 1))


def _cores(root: Path, cpus: Collection[int]) -> list[list[int]]:
    """Return the CPUs of each core; empty where the system says nothing of one of them."""
    found: dict[str, list[int]] = {}
    for cpu in cpus:
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        siblings = text(folder / "core_cpus_list") or text(folder / "thread_siblings_list")
        if not siblings:
            return []
        found.setdefault(siblings, []).append(cpu)
    return list(found.values())


def _fast(root: Path, cores: list[list[int]], machine: str) -> list[list[int]]:
    """Leave out the slow ones of cores that differ. What is left is all of them where the system says nothing."""
    if performance := set(_list(root / "sys/devices/cpu_core/cpus")):  # Intel's, beside cpu_atom
        return [core for core in cores if performance.issuperset(core)] or cores
    folder = root / "sys/devices/system/cpu"
    for name, limit, arm_alone in (("cpu_capacity", SLOW, False), ("cpufreq/cpuinfo_max_freq", SLOW_CLOCK, True)):
        speeds = [_number(folder / f"cpu{core[0]}" / name) or 0 for core in cores]
        if all(speeds) and (not arm_alone or machine.lower() in {"aarch64", "arm64"}):
            return [core for core, speed in zip(cores, speeds, strict=True) if speed >= limit * max(speeds)]
    return cores


def _shares(root: Path) -> Iterator[float]:
    """Yield the CPUs that each of the groups allows in which this process is."""
    for version, folder in groups("cpu", root):
        if version == 2:
            yield from _share(*(text(folder / "cpu.max") or "").split())
        else:
            yield from _share(*(text(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")))


def _share(quota: str = "", period: str = "") -> Iterator[float]:
    """Yield a quota's part of a period; nothing for "max", -1 or no file."""
    if quota.isdigit() and period.isdigit() and int(period):
        yield int(quota) / int(period)


def _apples_fast() -> int | None:
    """Return the number of an Apple processor's fast cores; None elsewhere."""
    if platform.system() != "Darwin":
        return None
    command = ["/usr/sbin/sysctl", "-n", "hw.perflevel0.physicalcpu"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=SYSCTL_S, check=True).stdout
        return int(said)
    except (OSError, subprocess.SubprocessError, ValueError):  # Macs with Intel's have no such levels
        return None


def _windows_fast() -> int | None:
    """Return the number of fast cores as Windows says it; None elsewhere."""
    if sys.platform != "win32":
        return None
    query, size = ctypes.WinDLL("kernel32").GetLogicalProcessorInformationEx, ctypes.c_uint32(0)
    query(CORES, None, ctypes.byref(size))
    found = ctypes.create_string_buffer(size.value)
    return fastest(found.raw[: size.value]) if query(CORES, found, ctypes.byref(size)) else None


def fastest(cores: bytes) -> int:
    """Return how many cores have the highest class, of an array of SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX.

    Each begins with its kind and its size in bytes, of 32 bits. The faster a core is, the higher its EfficiencyClass.
    """
    classes, at = list[int](), 0
    while at < len(cores):
        kind, size = struct.unpack_from("<II", cores, at)
        if kind == CORES:
            classes.append(cores[at + EFFICIENCY])
        at += size
    return classes.count(max(classes, default=0))


def _list(file: Path) -> list[int]:
    """Return the numbers of a list such as 0-3,8."""
    found: list[int] = []
    for part in (text(file) or "").split(","):
        ends = [int(end) for end in part.split("-") if end.isdigit()]
        if ends:
            found += range(ends[0], ends[-1] + 1)
    return found


def _number(file: Path) -> int | None:
    found = text(file) or ""
    return int(found) if found.isdigit() else None
