"""Steps that others have measured, as jobs: what the planner is calibrated on and held against.

They are in data/measured_steps.csv, their sources in data/SOURCES.md.

A row says what was run (`job`) and what came of it: seconds a step, bytes at the fullest accelerator, or that memory
ran out. Rows whose shape nobody published have no job.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from glassformer.plan.architecture import Architecture, Kind
from glassformer.plan.hardware import accelerators, data_rows
from glassformer.plan.layout import Job, Layout, Recompute
from glassformer.plan.precision import PRECISIONS, Precision
from glassformer.plan.row_software import as_it_was_run, completed, measured_as

_RECOMPUTE = {"none": Recompute.NONE, "full": Recompute.FULL, "unknown": Recompute.NONE, "": Recompute.NONE}


@dataclass(frozen=True, slots=True)
class Row:
    """One measured configuration."""

    id: str
    group: str
    """Rows of one source, machine and date."""
    source: str
    date: str
    task: str
    job: Job | None
    why_none: str
    """Why it has no job."""
    seconds: float | None
    """A step."""
    bytes: float | None
    """At the fullest accelerator, as `bytes_are` says."""
    bytes_are: str
    """`allocated`, `reserved`, `device` or `activations`: see `measured_as`."""
    ran_out: bool
    recompute_known: bool
    fields: Mapping[str, str]
    """As published."""


def measured_rows(path: Path | None = None) -> list[Row]:
    """All rows; of another table with the same columns, where `path` names one."""
    lines = (
        list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        if path
        else data_rows("measured_steps")
    )
    return [read_row(line) for line in lines]


def read_row(line: Mapping[str, str]) -> Row:
    """One line of such a table."""
    job, why = _job(completed(line))
    seconds = float(line["step_time_s"]) if line["step_time_s"] else None
    if seconds is None and job is not None and line["tokens_per_s_per_accel"]:
        seconds = job.tokens / (float(line["tokens_per_s_per_accel"]) * float(line["n_accel"]))
    return Row(
        line["id"], line["group"], line["source"], line["date"], line["task"], job, why, seconds,
        _memory(line), measured_as(line), line["oom"] == "yes",
        line["recompute"] in ("none", "full") or "selective" in line["recompute"], dict(line),
    )  # fmt: skip


def _job(line: Mapping[str, str]) -> tuple[Job | None, str]:
    needed = (
        "layers",
        "d_model",
        "heads",
        "d_ff",
        "ffn_matrices",
        "vocab",
        "seq_len",
        "global_batch_seqs",
        "n_accel",
    )
    missing = [name for name in needed if not line[name]]
    if missing:
        return None, f"nobody published {', '.join(missing)}"
    if line["arch"] not in ("decoder", "decoder-moe", "prefix-LM (GLM)", "encoder-decoder"):
        return None, f"its architecture is {line['arch']}"
    if line["accelerator"] not in accelerators():
        return None, f"{line['accelerator']} is not in the table"
    kind: Kind = "encoder-decoder" if line["arch"] == "encoder-decoder" else "decoder"
    whole = {name: int(float(line[name])) for name in needed}
    heads = whole["heads"]
    architecture = Architecture(
        name=line["model"], kind=kind, layers=whole["layers"], width=whole["d_model"], heads=heads,
        kv_heads=_int(line, "kv_heads", heads), head_width=whole["d_model"] // heads, ff_width=whole["d_ff"],
        ff_matrices=whole["ffn_matrices"], vocab=whole["vocab"],
        encoder_layers=whole["layers"] if kind == "encoder-decoder" else 0,
        experts=_int(line, "moe_experts", 0), active=_int(line, "moe_topk", 0),
        expert_width=whole["d_ff"] if line["moe_experts"] else 0,
    )  # fmt: skip
    tensor, pipeline, context = (_int(line, name, 1) for name in ("tp", "pp", "cp"))
    data = _int(line, "dp", max(1, whole["n_accel"] // (tensor * pipeline * context)))
    layout = Layout(
        data=data, tensor=tensor, pipeline=pipeline, interleave=_int(line, "vp", 1), context=context,
        expert=_int(line, "ep", 1), sharding=_int(line, "zero_stage", 0),
        micro_batch=_int(line, "micro_batch", max(1, whole["global_batch_seqs"] // data)),
        recompute=_RECOMPUTE.get(line["recompute"], Recompute.SELECTIVE),
    )  # fmt: skip
    job = Job(
        architecture, accelerators()[line["accelerator"]], _precision(line["precision"]), layout,
        batch=whole["global_batch_seqs"], length=whole["seq_len"],
    )  # fmt: skip
    return as_it_was_run(job, line), ""


def _int(line: Mapping[str, str], name: str, otherwise: int) -> int:
    return int(float(line[name])) if line[name] else otherwise


def _precision(text: str) -> Precision:
    words = text.lower()
    for name in ("fp32", "fp4", "fp8", "bf16-pure", "fp16"):
        if name in words:
            return PRECISIONS[name]
    return PRECISIONS["bf16"]


def _memory(line: Mapping[str, str]) -> float | None:
    """Bytes; the column is GiB for logs of PyTorch and GB where the note says so."""
    if not line["mem_gib"]:
        return None
    return float(line["mem_gib"]) * (1e9 if "GB" in line["mem_note"] else 2**30)
