"""What the measured rows say in words or not at all, and time depends on: the program's year, kernels and schedules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from glassformer.plan.layout import Job

VENDOR = ("nemo", "mbridge", "megatron", "mlperf", "llama3", "maxtext", "t5x")
"""Programs of those who make the accelerators, or of Megatron's line, by the sources that measured them."""


def as_it_was_timed(job: Job, line: Mapping[str, str]) -> Job:
    """The job with what is known of its program's kernels and schedules."""
    year, source, note = year_of(line), line["source"], line["sharding_note"].lower()
    vendor = source.startswith(VENDOR)
    by_hand = source.startswith(("narayanan", "korth", "bloom", "bigscience", "mtnlg", "megascale", "glm"))
    compiled = source.startswith(("torchtitan", "nanogpt")) and not line["note"].startswith("none-compile")
    compiled = compiled or (source == "mleng" and job.software.fused_kernels)
    overlaps = source.startswith(("nemo", "mbridge", "mlperf", "megatron_h")) and year > 2023.3
    software = replace(
        job.software, year=year, engine=_engine(line), graphs=_graphs(line),
        fixed_capacity="tokendrop" in line["model"], native_attention=_native(line, vendor),
        biased_attention=source == "llmfoundry", fused_kernels=vendor or by_hand or compiled,
        tensor_overlap="async" in note or overlaps,
        selective="operations" if source.startswith(("torchtitan", "maxtext")) else job.software.selective,
    )  # fmt: skip
    # T5 adds a learned bias to its scores, which no fused kernel of its time did
    fused = job.fused_attention and job.architecture.kind != "encoder-decoder"
    return replace(job, software=software, fused_attention=fused)


def year_of(line: Mapping[str, str]) -> float:
    """When the software was made: years and parts of them; 2024 where the row does not say."""
    if found := re.match(r"(\d\d)\.(\d\d)", line["date"]):
        return 2000 + int(found[1]) + (int(found[2]) - 1) / 12
    found = re.match(r"(\d{4})(?:-(\d\d)(?!\d))?", line["date"])
    if not found:
        return 2024.0
    return int(found[1]) + ((int(found[2]) - 1) / 12 if found[2] else 0.5)


def _engine(line: Mapping[str, str]) -> Literal["megatron", "deepspeed", "torch", "jax"]:
    """BLOOM, MT-NLG and GLM ran Megatron's layers in DeepSpeed's pipeline; Narayanan et al. compare with its ZeRO."""
    source = line["source"]
    zero = source == "narayanan2021_t2" and line["zero_stage"] == "3"
    if zero or source.startswith(("bloom", "bigscience", "mtnlg", "glm", "mleng")):
        return "deepspeed"
    if source.startswith(("maxtext", "t5x")):
        return "jax"
    return "megatron" if source.startswith((*VENDOR, "narayanan", "korth", "megascale")) else "torch"


def _graphs(line: Mapping[str, str]) -> bool:
    """Megatron-Bridge records whole steps of models with experts since 26.06, on Blackwell."""
    blackwell = line["accelerator"].startswith(("B", "GB"))
    return line["source"] == "mbridge" and year_of(line) > 2026.4 and line["moe_experts"] != "" and blackwell


def _native(line: Mapping[str, str], vendor: bool) -> bool:
    """FlashAttention 2 is written for A100; vendors have kernels for H100 since 2024, others since late in 2025."""
    hopper = line["accelerator"].startswith(("H", "GH"))
    return not hopper or (vendor and year_of(line) >= 2024.4) or year_of(line) >= 2025.5
