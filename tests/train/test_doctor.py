"""doctor's rows, on machines made of files and environments (fault 43)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from glassformer.cli.main import main
from glassformer.train.doctor import Check, checkup

ALONE: dict[str, str] = {}


def make_machine(
    root: Path, *, memory_kb: int = 16_000_000, flags: str = "avx2", cgroup: dict[str, str] | None = None
) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {memory_kb} kB\n")
    (root / "proc/cpuinfo").write_text(f"model name\t: Some CPU\nflags\t\t: fpu {flags}\n")
    (root / "proc/self/cgroup").write_text("0::/box\n")
    group = root / "sys/fs/cgroup/box"
    group.mkdir(parents=True)
    for name, value in (cgroup or {}).items():
        (group / name).write_text(value)
    return root


def row(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_this_machine_passes_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    checks = checkup()
    assert not [check for check in checks if check.status == "fail"]
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert all(check.name in shown for check in checks)


def test_whatever_is_amiss_comes_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler
    monkeypatch.delenv("CXX", raising=False)
    machine = make_machine(tmp_path / "m", memory_kb=500_000, flags="sse2")
    checks = checkup(machine, {"OMP_NUM_THREADS": "512", "RANK": "3", "WORLD_SIZE": "2"})
    for name in ("memory", "arithmetic", "cores", "compiler", "processes"):
        assert row(checks, name).status != "ok", name
    assert all(check.do for check in checks if check.status != "ok")
    assert "RANK is not below WORLD_SIZE" in row(checks, "processes").found


def test_limits_of_a_control_group_count_not_the_size_of_the_machine(tmp_path: Path) -> None:
    limits = {"cpu.max": "100000 100000", "memory.max": str(3 * 2**30)}
    checks = checkup(make_machine(tmp_path, cgroup=limits), ALONE)
    assert row(checks, "cores").found.startswith("1 of ") or row(checks, "cores").found == "1"
    assert row(checks, "memory").found == "3.0 GiB"


@pytest.mark.parametrize(("flags", "found"), [("avx2", "AVX2"), ("avx2 avx512f amx_bf16", "AMX")])
def test_vector_units_are_named(tmp_path: Path, flags: str, found: str) -> None:
    check = row(checkup(make_machine(tmp_path, flags=flags), ALONE), "arithmetic")
    assert found in check.found and (check.status == "ok") == ("amx" in flags)


def test_a_driver_that_torch_cannot_use_is_a_warning(tmp_path: Path) -> None:
    driver = make_machine(tmp_path) / "proc/driver/nvidia/version"
    driver.parent.mkdir(parents=True)
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27\n")
    check = row(checkup(tmp_path, ALONE), "gpu")
    assert "470.82.01" in check.found and check.status == "warn" and "driver" in check.do


def test_torchrun_s_variables_belong_together() -> None:
    complete = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "29500"}
    assert row(checkup(environment=complete), "processes").status == "ok"
    for name in complete:
        missing = {key: value for key, value in complete.items() if key != name}
        assert name in row(checkup(environment=missing), "processes").found.split(":")[-1]
    assert row(checkup(environment={**complete, "RANK": "one"}), "processes").status == "fail"


def test_folders_that_cannot_be_written_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("GLASSFORMER_HOME", str(file))
    assert row(checkup(), "cache").status == "fail"
    assert main(["doctor", "--json"]) == 3
    assert '"ready": false' in capsys.readouterr().out


def test_without_the_extra_plots_charts_become_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vl_convert", raising=False)
    monkeypatch.setattr(sys, "path", [])
    check = row(checkup(), "charts")
    assert check.status == "warn" and "plots" in check.do
