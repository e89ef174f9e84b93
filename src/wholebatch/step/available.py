"""How much memory a process may still take."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_NO_LIMIT = 1 << 60  # what systems write for none is above this


def available(device: torch.device) -> int | None:
    """Return the bytes that are left on ``device`` for this process; None where nobody says.

    On a GPU: what is free, and what PyTorch's allocator holds without using it. On a CPU: the least of what the kernel
    calls available, what the control group leaves, and what the process's own limits leave. What is left on a CPU is
    divided by the processes that share the machine (``LOCAL_WORLD_SIZE``).
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    sharing = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))
    of_machine = [size // sharing for size in (_of_kernel(), *_of_groups()) if size is not None]
    of_process = left_by_limits()
    found = of_machine if of_process is None else [*of_machine, of_process]
    return max(0, min(found)) if found else None


def left_by_limits() -> int | None:
    """Return what ``ulimit -v`` and ``ulimit -d`` leave of the address space; None where they are off."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    left = []
    for limit, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most = resource.getrlimit(limit)[0]
        if most in (resource.RLIM_INFINITY, -1):
            continue
        now = _kilobytes(Path("/proc/self/status"), used)
        if now is not None:
            left.append(most - now)
    return min(left) if left else None


def resident() -> tuple[int, int]:
    """Return the bytes of memory that this process holds, and the most it ever held; 0 where nobody says."""
    status = Path("/proc/self/status")
    return _kilobytes(status, "VmRSS") or 0, _kilobytes(status, "VmHWM") or 0


def _of_kernel() -> int | None:
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _of_groups(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What each control group that this process is in leaves, version 2 and version 1, and those around it."""
    found = []
    for line in _read(proc).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            top = root / "memory"
        else:
            continue
        for place in dict.fromkeys((top / path.strip("/"), top)):
            limit, used = _number(place / names[0]), _number(place / names[1])
            if limit is not None and used is not None and limit < _NO_LIMIT:
                found.append(limit - used + _row(place / "memory.stat", names[2]))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _row(path: Path, name: str) -> int:
    """The number behind a name in lines of "name number"; 0 where there is none."""
    rows = (line.split() for line in _read(path).splitlines())
    return next((int(row[1]) for row in rows if len(row) == 2 and row[0] == name), 0)


def _kilobytes(path: Path, name: str) -> int | None:
    """The bytes behind a name in lines of "name:  number kB"."""
    rows = (line.split() for line in _read(path).splitlines())
    return next((int(row[1]) * 1024 for row in rows if len(row) >= 2 and row[0] == f"{name}:"), None)
