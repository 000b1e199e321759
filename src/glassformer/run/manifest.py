"""What made a run: the code, the libraries, the machine, and the digests of data and tokenizer.

A container may use fewer cores and less memory than the machine has; what counts is the smallest of the
machine, the process's affinity and every control group above it (cgroup v2 `cpu.max`, `memory.max`; v1
`cpu.cfs_quota_us`, `memory.limit_in_bytes`). No absolute paths go in, so that a run can be moved and shown.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "pyarrow", "pydantic")


def describe(**digests: Any) -> dict[str, Any]:
    """The content of a run's manifest.json; `digests` are added as they are (`data=`, `tokenizer=`)."""
    return {
        "glassformer": _version("glassformer"),
        "commit": _commit(),
        "python": platform.python_version(),
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
        "machine": machine(),
        **digests,
    }


def machine() -> dict[str, Any]:
    """This machine as this process may use it."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": num_cores(),
        "memory_bytes": memory_bytes(),
        "accelerators": accelerators(),
    }


def cpu_model(root: Path = Path("/")) -> str:
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def num_cores(root: Path = Path("/")) -> int:
    """Cores this process may keep busy, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota, period in [*_limits(root, "cpu.max"), *_v1_quota(root)]:
        if quota.isdigit() and int(period) > 0:
            allowed = min(allowed, math.ceil(int(quota) / int(period)))
    return max(1, allowed)


def memory_bytes(root: Path = Path("/")) -> int | None:
    """Memory this process may use; None when the system does not say."""
    limits = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        limits.append(int((root / "proc/meminfo").read_text().split()[1]) * 1024)  # MemTotal comes first
    for (limit,) in [*_limits(root, "memory.max"), *_limits(root, "memory.limit_in_bytes", "memory")]:
        if limit.isdigit():
            limits.append(int(limit))
    return min(limits, default=None)


def free_memory_bytes(root: Path = Path("/")) -> int | None:
    """Memory that is free now, or would be if asked for; None when the system does not say. Of a control group's limit,
    what its processes hold is taken off, but for files that are only cached."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
        return max(0, min([free, *_left_in_groups(root)]))
    return None


def oom_kills(root: Path = Path("/")) -> int | None:
    """How many processes of this one's control group the kernel has killed so far because memory ran out; None when it
    does not say (v2 `memory.events`, v1 `memory.oom_control`)."""
    for file, controller in (("memory.events", ""), ("memory.oom_control", "memory")):
        for folder in _groups(root, controller):
            count = _numbers(folder / file).get("oom_kill")
            if count is not None:
                return count
    return None


def accelerators() -> list[str]:
    """Names of the accelerators, if torch is loaded already; asking is no reason to load it."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _limits(root: Path, file: str, controller: str = "") -> list[list[str]]:
    """The words of `file` in this process's control group and all groups above it."""
    found = []
    for folder in _groups(root, controller):
        with contextlib.suppress(OSError):
            found.append((folder / file).read_text().split())
    return found


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's control group and all above it; v2's without a controller."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                # Inside a container the named path may not exist, and the mount's own top is the group.
                top = root / "sys/fs/cgroup" / controller
                group = top / path.lstrip("/")
                for folder in [group, *group.parents]:
                    yield folder
                    if folder == top:
                        break


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes left below each group's limit."""
    names = (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for controller, most, held, cached in names:
        for folder in _groups(root, controller):
            with contextlib.suppress(OSError, ValueError):  # a limit may be the word `max`
                limit, usage = int((folder / most).read_text()), int((folder / held).read_text())
                yield limit - usage + min(usage, _numbers(folder / "memory.stat").get(cached, 0))


def _numbers(file: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    with contextlib.suppress(OSError, ValueError):
        pairs = [line.split() for line in file.read_text().splitlines()]
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
    return {}


def _v1_quota(root: Path) -> list[tuple[str, str]]:
    quotas = _limits(root, "cpu.cfs_quota_us", "cpu")
    return [
        (quota[0], period[0])
        for quota, period in zip(quotas, _limits(root, "cpu.cfs_period_us", "cpu"), strict=False)
    ]


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this code, with `+changes` when edited since; None outside a checkout of ours."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # installed inside somebody else's checkout: not ours
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", "..") else "")
    except (OSError, subprocess.SubprocessError):
        return None
