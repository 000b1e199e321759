"""Is this machine ready? One row for each thing that training hangs on, and what to do where it is amiss.

`ok` is as it should be, `warn` works but costs speed or comfort, `fail` does not work. Limits are read from
control groups and affinity, not from the size of the machine (see run/manifest.py).
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from glassformer.errors import GlassformerError
from glassformer.files import cache_folder, free_bytes
from glassformer.run.manifest import accelerators, cpu_model, memory_bytes, num_cores
from glassformer.units import show_bytes

Status = Literal["ok", "warn", "fail"]

OLDEST_PYTHON, OLDEST_TORCH = (3, 11), (2, 11)
ENOUGH_MEMORY = 2 * 2**30
"""The demo peaks at about half of this."""
ENOUGH_DISK, LITTLE_DISK = 2 * 2**30, 200 * 2**20
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing, how it is, and what to do about it."""

    name: str
    status: Status
    found: str
    do: str = ""


def checkup(root: Path = Path("/"), environment: Mapping[str, str] | None = None) -> list[Check]:
    """Every check, in the order in which one would mend things. `root` is where /proc and /sys are."""
    variables = os.environ if environment is None else environment
    checks: list[Callable[[], Check]] = [
        _python,
        lambda: _cores(root, variables),  # before torch, which may bind this process to one core
        lambda: _memory(root),
        lambda: _arithmetic(root),
        _torch,
        lambda: _gpu(root),  # after torch, which knows them
        _compiler,
        lambda: _ranks(variables),
        lambda: _folder("run folder", Path.cwd()),
        _cache,
        _temporary,
        _plots,
    ]
    return [check() for check in checks]


def _python() -> Check:
    found = f"{platform.python_version()} ({platform.python_implementation()})"
    if sys.version_info < OLDEST_PYTHON:
        return Check("python", "fail", found, "Install Python 3.11 or newer.")
    return Check("python", "ok", found)


def _torch() -> Check:
    install = "Install it with: pip install torch==2.13.0"
    try:
        found = metadata.version("torch")
        import torch  # noqa: F401 # whether it loads is the question
    except metadata.PackageNotFoundError:
        return Check("torch", "fail", "not installed", install)
    except (ImportError, OSError) as error:
        return Check("torch", "fail", f"{found} does not load: {error}", install)
    major, minor = (int(number) for number in found.split(".")[:2])
    return (
        Check("torch", "ok", found)
        if (major, minor) >= OLDEST_TORCH
        else Check("torch", "fail", found, install)
    )


def _cores(root: Path, variables: Mapping[str, str]) -> Check:
    usable, there = num_cores(root), os.cpu_count() or 1
    found = f"{usable} of {there} usable" if usable < there else f"{usable}"
    asked = variables.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > usable:
        do = "Unset OMP_NUM_THREADS: more threads than cores wait for each other."
        return Check("cores", "warn", f"{found}; OMP_NUM_THREADS is {asked}", do)
    return Check("cores", "ok", found)


def _memory(root: Path) -> Check:
    limit = memory_bytes(root)
    if limit is None:
        return Check("memory", "warn", "the system does not say how much there is")
    if limit < ENOUGH_MEMORY:
        return Check(
            "memory", "warn", show_bytes(limit), "Lower train.batch or model.width, or allow more memory."
        )
    return Check("memory", "ok", show_bytes(limit))


def _arithmetic(root: Path) -> Check:
    flags = _cpu_flags(root)
    telling = {
        "amx_bf16": "AMX (bfloat16)",
        "avx512_bf16": "AVX-512 (bfloat16)",
        "avx512f": "AVX-512",
        "avx2": "AVX2",
        "bf16": "bfloat16",
        "asimd": "NEON",
    }
    found = (
        ", ".join(words for flag, words in telling.items() if flag in flags) or "no vector units known to us"
    )
    fast = flags & {"amx_bf16", "avx512_bf16", "bf16"}
    name = f"{cpu_model(root)}: {found}"
    if fast:
        return Check("arithmetic", "ok", name)
    return Check("arithmetic", "warn", name, "Training works, in fp32; bfloat16 is not fast here.")


def _cpu_flags(root: Path) -> set[str]:
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {
        flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()[2:]
    }


def _compiler() -> Check:
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if compiler and header.exists():
        return Check("compiler", "ok", Path(compiler).name)
    missing = "no C++ compiler" if not compiler else "a C++ compiler, but no Python.h"
    package = "g++" if not compiler else "python3-dev"
    do = f"Training works, uncompiled. For speed: apt install {package}, or what your system calls it."
    return Check("compiler", "warn", missing, do)


def _gpu(root: Path) -> Check:
    driver = root / "proc/driver/nvidia/version"
    if names := accelerators():
        return Check("gpu", "ok", ", ".join(names))
    if not driver.exists():
        return Check("gpu", "ok", "none; the CPU is used")
    words = driver.read_text().split()
    version = next((word for word in words if word[0].isdigit() and "." in word), "of unknown version")
    found = f"driver {version}, but torch sees no GPU"
    return Check(
        "gpu", "warn", found, "Install a CUDA build of torch that fits the driver, or update the driver."
    )


def _ranks(variables: Mapping[str, str]) -> Check:
    given = {name: variables[name] for name in _RANKS if name in variables}
    if not given:
        return Check("processes", "ok", "one (not started by torchrun)")
    shown = ", ".join(f"{name}={value}" for name, value in given.items())
    problems = list(_rank_problems(given))
    if problems:
        return Check(
            "processes", "fail", f"{shown}: {'; '.join(problems)}", "Unset them, or start with torchrun."
        )
    return Check("processes", "ok", shown)


def _rank_problems(given: Mapping[str, str]) -> Iterator[str]:
    if missing := [name for name in _RANKS if name not in given]:
        yield f"{', '.join(missing)} not set"
    numbers = {name: value for name, value in given.items() if name != "MASTER_ADDR"}
    if wrong := [name for name, value in numbers.items() if not value.isdigit()]:
        yield f"{', '.join(wrong)} not a number"
    elif int(given.get("RANK", 0)) >= int(given.get("WORLD_SIZE", sys.maxsize)):
        yield "RANK is not below WORLD_SIZE"


def _cache() -> Check:
    try:
        folder = cache_folder()
    except GlassformerError as error:
        return Check("cache", "fail", error.what, error.do)
    if folder.is_relative_to(tempfile.gettempdir()) and "GLASSFORMER_HOME" not in os.environ:
        do = "Set GLASSFORMER_HOME to a folder that lasts; tokens are made again otherwise."
        return Check("cache", "warn", f"{folder}: no home folder can be written", do)
    return _folder("cache", folder)


def _temporary() -> Check:
    try:
        return _folder("temporary", Path(tempfile.gettempdir()))
    except FileNotFoundError:
        return Check(
            "temporary", "fail", "no folder for temporary files can be written", "Set TMPDIR to one."
        )


def _folder(name: str, folder: Path) -> Check:
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = free_bytes(folder)
    except OSError as error:
        return Check(
            name, "fail", f"{folder} cannot be written: {error.strerror}", "Use another folder, or mend that."
        )
    found = f"{folder}, {show_bytes(free)} free"
    if free < ENOUGH_DISK:
        return Check(name, "fail" if free < LITTLE_DISK else "warn", found, "Free some space.")
    return Check(name, "ok", found)


def _plots() -> Check:
    if all(util.find_spec(name) for name in ("altair", "vl_convert")):
        return Check("charts", "ok", "drawn")
    return Check("charts", "warn", "tables instead", "Install with: pip install 'glassformer[plots]'")
