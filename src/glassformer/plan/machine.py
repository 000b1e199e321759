"""This machine, as `glassformer bench` measured it: `--hardware here`. Read without torch.

The profile is one file, `machine.json`, among what this user keeps (`files.data_folder`); `plan/cpu.py` makes step
times of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glassformer.errors import GlassformerError
from glassformer.files import data_folder, write_json
from glassformer.plan.hardware import Accelerator

SCHEMA, VERSION = "glassformer.machine", 1
Profile = Mapping[str, Any]


def profile_path() -> Path:
    """Where the profile is kept."""
    return data_folder() / "machine.json"


def save_profile(profile: Profile) -> Path:
    """Keep it for the planner, in place of an older one."""
    path = profile_path()
    write_json(path, dict(profile))
    return path


def read_profile() -> Profile:
    """What was measured; GlassformerError where nothing was, or it cannot be read."""
    path, again = profile_path(), "Run `glassformer bench`; it takes about half a minute."
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GlassformerError("This machine has not been measured yet.", do=again) from None
    except (OSError, ValueError) as error:
        raise GlassformerError(f"{path} cannot be read: {error}.", do=again) from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or found.get("version") != VERSION:
        raise GlassformerError(
            f"{path} is no profile of this version.", expected=f"{SCHEMA}, version {VERSION}.", do=again
        )
    return found


def this_machine(profile: Profile | None = None) -> Accelerator:
    """This machine as hardware: the best rate that any of its products reached is both its peak and achievable."""
    found = read_profile() if profile is None else profile
    machine, on_gpu = found["machine"], found["device"] != "cpu"
    named = (
        ", ".join(machine["accelerators"][:1])
        if on_gpu
        else f"{machine['cpu']}, {found['threads']} thread{'s' * (found['threads'] != 1)}"
    )
    peaks = {name: float(rate) for name, rate in found["best_flops_per_second"].items()}
    return Accelerator(
        name=f"here: {named}", vendor="" if on_gpu else "CPU", release="", peaks=peaks,
        achievable=dict.fromkeys(peaks, 1.0), memory=float(found["memory_bytes"] or 0),
        bandwidth=float(found["copy_bytes_per_second"]), scale_up=0.0, domain=1, scale_out=0.0, power=0.0,
        source=f"measured by glassformer bench, {found['date']}", as_of=found["date"],
        unverified=frozenset({"power"}),
    )  # fmt: skip
