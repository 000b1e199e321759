"""Steps that others have measured, as jobs: what the planner is calibrated on and held against.

They are in data/measured_steps.csv, their sources in data/SOURCES.md.

A row says what was run (`job`) and what came of it: seconds a step, bytes at the fullest accelerator, or that memory
ran out. Rows whose shape nobody published have no job.

Seconds that a source does not print are computed from what it prints: tokens a second, or TFLOP/s in the row's own
convention (`flops`): full attention, causal, or hardware FLOPs with the layers computed twice.

What a row leaves open is assumed (`row_layout`), and listed in `Row.assumed`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from glassformer.errors import UsageError
from glassformer.plan.architecture import Architecture, Kind, Latent
from glassformer.plan.flops import training
from glassformer.plan.hardware import data_rows
from glassformer.plan.layout import Job, Recompute
from glassformer.plan.row_layout import layout_of
from glassformer.plan.row_machine import known, machine_of, precision_of
from glassformer.plan.row_software import as_it_was_run, completed, measured_as
from glassformer.plan.row_times import as_it_was_timed

SHAPES: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "DeepSeekV3": {
            "head_width": 192, "latent": Latent(1536, 512, 64, 128), "ff_width": 18432, "expert_width": 2048,
            "shared_experts": 1, "dense_layers": 3, "tied": False,
        },
        "Qwen3": {"head_width": 128, "qk_norm": True, "tied": False},
        "GPT OSS": {"head_width": 64, "window": 128, "window_layers": 18, "tied": False},
        "T5-v1.1": {"head_width": 64, "tied": False},
        "LLAMA3": {"tied": False},
        "llama": {"tied": False},
        "Llama": {"tied": False},
        "LLAMA": {"tied": False},
    }
)  # fmt: skip
"""What the table's columns cannot say, by how a model's name begins: of its config.json (DeepSeek-V3, Qwen3, gpt-oss)
or paper (T5: 1910.10683)."""


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
    assumed: tuple[str, ...] = ()
    """What nobody published and is assumed."""


def measured_rows(path: Path | None = None) -> list[Row]:
    """All rows; of another table with the same columns, where `path` names one. Columns it lacks are open."""
    shipped = data_rows("measured_steps")
    if path is None:
        return [read_row(line) for line in shipped]
    blank = dict.fromkeys(shipped[0], "")
    found = []
    for number, line in enumerate(csv.DictReader(path.read_text(encoding="utf-8").splitlines()), start=2):
        full = blank | OWN
        full |= {name: value for name, value in line.items() if name in blank and value}
        try:
            found.append(read_row(full))
        except ValueError as error:
            raise UsageError(
                f"{path}, line {number}: {error}.", expected="The columns of data/measured_steps.csv."
            ) from error
    return found


OWN = {"source": "own", "group": "own", "arch": "decoder", "precision": "bf16", "date": "2026-01"}
"""What a table of one's own need not say."""


def read_row(line: Mapping[str, str]) -> Row:
    """One line of such a table."""
    job, why = _job(completed(line))
    assumed = tuple(
        name for name in ("tp", "pp", "dp", "micro_batch", "zero_stage", "recompute")
        if line[name] in ("", "unknown")
    )  # fmt: skip
    return Row(
        line["id"], line["group"], line["source"], line["date"], line["task"], job, why, _seconds(line, job),
        _memory(line), measured_as(line), line["oom"] == "yes",
        line["recompute"] in ("none", "full") or "selective" in line["recompute"], dict(line), assumed,
    )  # fmt: skip


def _seconds(line: Mapping[str, str], job: Job | None) -> float | None:
    if line["step_time_s"]:
        return float(line["step_time_s"])
    if job is None:
        return None
    ranks = float(line["n_accel"])
    if line["tokens_per_s_per_accel"]:
        return job.tokens / (float(line["tokens_per_s_per_accel"]) * ranks)
    if line["tflops_per_accel_reported"]:
        return reported_flops(line, job) / (float(line["tflops_per_accel_reported"]) * 1e12 * ranks)
    return None


def reported_flops(line: Mapping[str, str], job: Job) -> float:
    """Of a step, in the convention in which the row's TFLOP/s are printed."""
    said = line["flop_convention"].lower()
    again = Recompute.FULL if "hardware" in said else Recompute.NONE
    convention = "causal" if "causal half" in said and "not causal" not in said else "full"
    one = training(job.architecture, job.length, convention=convention, recompute=again, trained=job.trained)  # type: ignore[arg-type]
    return one * job.tokens


def _job(line: Mapping[str, str]) -> tuple[Job | None, str]:
    needed = ["layers", "d_model", "vocab", "seq_len", "global_batch_seqs", "n_accel"]
    shape = _shape(line["model"])
    if "ff_width" not in shape:
        needed += ["d_ff", "ffn_matrices"]
    if "head_width" not in shape and line["arch"] != "decoder":
        needed += ["heads"]
    missing = [name for name in needed if not line[name]]
    if missing:
        return None, f"nobody published {', '.join(missing)}"
    if line["arch"] not in ("decoder", "decoder-moe", "prefix-LM (GLM)", "encoder-decoder"):
        return None, f"its architecture is {line['arch']}"
    if not known(line["accelerator"]):
        return None, f"{line['accelerator']} is not in the table"
    architecture = _architecture(line, shape)
    accelerator = machine_of(line)
    batch = int(float(line["global_batch_seqs"]))
    precision = precision_of(line, accelerator)
    tuned = "lora" in line["task"] or "adapter" in line["task"]
    trained = int(0.0007 * architecture.parameters.total) if tuned else None
    if found := re.search(r"trainable ([\d,]+)", line["sharding_note"]):
        trained = int(found[1].replace(",", ""))
    layout = layout_of(line, architecture, accelerator, batch, tuned)
    written, read = _lengths(line)
    job = Job(
        architecture, accelerator, precision, layout, batch=batch, length=written, read_length=read, trained=trained,
    )  # fmt: skip
    return as_it_was_timed(as_it_was_run(job, line), line), ""


def _shape(model: str) -> Mapping[str, object]:
    return next((extra for begin, extra in SHAPES.items() if model.startswith(begin)), {})


def _architecture(line: Mapping[str, str], shape: Mapping[str, object]) -> Architecture:
    kind: Kind = "encoder-decoder" if line["arch"] == "encoder-decoder" else "decoder"
    layers, width = _int(line, "layers", 1), _int(line, "d_model", 1)
    heads = _int(line, "heads", max(1, width // 128))
    sparse = bool(line["moe_experts"])
    made = Architecture(
        name=line["model"], kind=kind, layers=layers, width=width, heads=heads, kv_heads=_int(line, "kv_heads", heads),
        head_width=width // heads, ff_width=_int(line, "d_ff", 0), ff_matrices=_int(line, "ffn_matrices", 2),
        vocab=_int(line, "vocab", 1), encoder_layers=layers if kind == "encoder-decoder" else 0,
        experts=_int(line, "moe_experts", 0), active=_int(line, "moe_topk", 0),
        expert_width=_int(line, "d_ff", 0) if sparse else 0,
    )  # fmt: skip
    return replace(made, **shape)  # type: ignore[arg-type]


def _lengths(line: Mapping[str, str]) -> tuple[int, int]:
    """Tokens written and read; an encoder-decoder's row reads `seq_len` and its note says how many it writes."""
    length = int(float(line["seq_len"]))
    if line["arch"] != "encoder-decoder":
        return length, 0
    found = re.search(r"(\d+) decoder tokens", line["note"])
    return int(found[1]) if found else length, length


def _int(line: Mapping[str, str], name: str, otherwise: int) -> int:
    return int(float(line[name])) if line.get(name) else otherwise


def _memory(line: Mapping[str, str]) -> float | None:
    """Bytes; the column is GiB for logs of PyTorch and GB where the note says so."""
    if not line["mem_gib"]:
        return None
    return float(line["mem_gib"]) * (1e9 if "GB" in line["mem_note"] else 2**30)
