"""Steps that others have measured, as jobs: what the planner is calibrated on and held against.

They are in data/measured_steps.csv, their sources in data/SOURCES.md.

A row says what was run (`job`) and what came of it: seconds a step, bytes at the fullest accelerator, or that memory
ran out. Rows whose shape nobody published have no job.

Seconds that a source does not print are computed from what it prints: tokens a second, or TFLOP/s in the row's own
convention (`flops`): full attention, causal, or hardware FLOPs with the layers computed twice.

What a row leaves open is assumed, and listed in `Row.assumed`: the layout by `layouts_like`, the micro-batch 1 with a
pipeline and all rows without, ZeRO stage 1, no recomputation.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from glassformer.plan.architecture import Architecture, Kind, Latent
from glassformer.plan.flops import training
from glassformer.plan.hardware import Accelerator, accelerators, data_rows
from glassformer.plan.layout import Job, Layout, Recompute, Software
from glassformer.plan.precision import PRECISIONS, Precision

_RECOMPUTE = {"none": Recompute.NONE, "full": Recompute.FULL, "unknown": Recompute.NONE, "": Recompute.NONE}

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
"""What the table's columns cannot say, by how a model's name begins: of its config.json (DeepSeek-V3, Qwen3, gpt-oss) or
paper (T5: 1910.10683)."""

CLUSTERS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "bloom_prequel": {"scale_out": 6.25e9},
        "bigscience_v100": {"scale_out": 12.5e9, "domain": 4},
        "llmfoundry: A100": {"scale_out": 25e9},
    }
)
"""Links of a source's machine where they differ from the accelerator's table: Jean Zay has four of 100 Gb/s for 8 A100
or 4 V100 (data/accelerators.csv); llm-foundry names 1600 Gb/s a node."""


_TWINS = {"H200-NVL-141GB": "H200-SXM-141GB"}
"""Accelerators that the table lacks, and the nearest it has."""


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
    """At the fullest accelerator."""
    ran_out: bool
    recompute_known: bool
    fields: Mapping[str, str]
    """As published."""
    assumed: tuple[str, ...] = ()
    """What nobody published and is assumed."""


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
    job, why = _job(line)
    assumed = tuple(
        name for name in ("tp", "pp", "dp", "micro_batch", "zero_stage", "recompute")
        if line[name] in ("", "unknown")
    )  # fmt: skip
    return Row(
        line["id"], line["group"], line["source"], line["date"], line["task"], job, why, _seconds(line, job),
        _memory(line), line["oom"] == "yes", line["recompute"] in ("none", "full") or "selective" in line["recompute"],
        dict(line), assumed,
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
    if line["accelerator"] not in accelerators() and line["accelerator"] not in _TWINS:
        return None, f"{line['accelerator']} is not in the table"
    architecture = _architecture(line, shape)
    accelerator = _machine(line)
    batch = int(float(line["global_batch_seqs"]))
    precision = _precision(line, accelerator)
    tuned = "lora" in line["task"] or "adapter" in line["task"]
    trained = int(0.0007 * architecture.parameters.total) if tuned else None
    if found := re.search(r"trainable ([\d,]+)", line["sharding_note"]):
        trained = int(found[1].replace(",", ""))
    layout = _layout(line, architecture, accelerator, batch, tuned)
    written, read = _lengths(line)
    return Job(
        architecture, accelerator, precision, layout, batch=batch, length=written, read_length=read, 
        trained=trained, fused_attention=_fused(line),
        causal_half=architecture.kind != "encoder", software=_software(line),
    ), ""  # fmt: skip


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


def _machine(line: Mapping[str, str]) -> Accelerator:
    """The accelerator, with the links of the source's machine; a peak nobody knows is taken from its neighbours."""
    found = accelerators()[_TWINS.get(line["accelerator"], line["accelerator"])]
    for name, links in CLUSTERS.items():
        source, _, part = name.partition(": ")
        if line["source"] == source and part in line["group"]:
            found = replace(found, **links)  # type: ignore[arg-type]
    if "int8" in line["precision"]:
        # 8-bit products (AQT) at twice the peak of 16 bits; the table has no other 8-bit peak for these
        found = replace(found, peaks={**found.peaks, "fp8": 2 * found.peaks["bf16"]})
    if "HBM2e-500W" in found.name:
        near = accelerators()["H100-SXM-80GB"]
        found = replace(found, peaks=near.peaks, achievable=near.achievable)
    return found


def _layout(
    line: Mapping[str, str], a: Architecture, accelerator: Accelerator, batch: int, tuned: bool
) -> Layout:
    ranks = int(float(line["n_accel"]))
    if line["tp"]:
        tensor, pipeline, context = (_int(line, name, 1) for name in ("tp", "pp", "cp"))
    else:
        tensor, pipeline, context = layouts_like(a, accelerator, ranks, batch, tuned)
    data = max(1, ranks // (tensor * pipeline * context))
    alone = max(1, batch // data)
    interleave = _int(line, "vp", 0) or _interleave(line, a, pipeline)
    chosen = Recompute.SELECTIVE
    if line["source"].startswith(("torchtitan", "maxtext")):
        chosen = Recompute.HALF  # every second product, or every second layer
    mode = _RECOMPUTE.get(line["recompute"], chosen)
    length = int(float(line["seq_len"]))
    likely = 1 if tuned else micro_like(a, accelerator, alone, length, (tensor, pipeline, context), mode)
    micro = min(alone, _int(line, "micro_batch", likely))
    return Layout(
        data=data, tensor=tensor, pipeline=pipeline, interleave=interleave, context=context,
        expert=_int(line, "ep", 1), sharding=_int(line, "zero_stage", 1), micro_batch=micro,
        recompute=mode,
        sequence_parallel=int(_year(line) >= 2022.5 or "sequence parallel" in line["sharding_note"]),
    )  # fmt: skip


def layouts_like(
    a: Architecture, accelerator: Accelerator, ranks: int, batch: int, tuned: bool
) -> tuple[int, int, int]:
    """Tensor, pipeline and context ranks that one would choose: the fewest that hold weights and states."""
    bytes_each = 2.3 if tuned else 6.0
    needed = a.parameters.total * bytes_each / (0.55 * accelerator.memory)
    most = min(8, max(1, accelerator.domain), ranks)
    tensor = 1
    while tensor < most and tensor < needed:
        tensor *= 2
    pipeline = 1
    while tensor * pipeline < needed and tensor * pipeline * 2 <= ranks:
        pipeline *= 2
    context = 1
    while ranks // (tensor * pipeline * context) > batch:
        context *= 2
    return tensor, pipeline, context


def micro_like(
    a: Architecture, accelerator: Accelerator, rows: int, length: int, divided: tuple[int, int, int], mode: Recompute
) -> int:
    """Rows at once that one would choose: up to 4, where activations take less than 0.4 of the memory and a pipeline
    has 4 micro-batches for each stage."""
    tensor, pipeline, context = divided
    each = 2.0 if mode == Recompute.FULL else 34.0
    held = each * length / context * a.width / tensor * a.all_layers  # in flight: all stages' layers in all
    for micro in (4, 2):
        whole = rows % micro == 0 and (pipeline == 1 or rows // micro >= 4 * pipeline)
        if whole and held * micro < 0.4 * accelerator.memory:
            return micro
    return 1


def _interleave(line: Mapping[str, str], a: Architecture, pipeline: int) -> int:
    """Parts of a stage, where nobody says: about two layers each, in programs that know how to."""
    if pipeline == 1 or line["source"].startswith(("bigscience", "glm", "mtnlg")):
        return 1
    if line["source"].startswith("torchtitan"):
        return 2 if "interleaved" in line["sharding_note"] else 1
    return max(1, min(8, round(a.all_layers / pipeline / 2)))


def _year(line: Mapping[str, str]) -> float:
    """When the software was made: years and parts of them; 2024 where the row does not say."""
    if found := re.match(r"(\d\d)\.(\d\d)", line["date"]):
        return 2000 + int(found[1]) + (int(found[2]) - 1) / 12
    found = re.match(r"(\d{4})(?:-(\d\d)(?!\d))?", line["date"])
    if not found:
        return 2024.0
    return int(found[1]) + ((int(found[2]) - 1) / 12 if found[2] else 0.5)


def _fused(line: Mapping[str, str]) -> bool:
    """Patterns are fused since FlashAttention reached the frameworks, late in 2022; T5's learned biases prevented it."""
    return _year(line) >= 2022.75 and line["arch"] != "encoder-decoder"


def _software(line: Mapping[str, str]) -> Software:
    year, source, note = _year(line), line["source"], line["sharding_note"].lower()
    vendor = source.startswith(("nemo", "mbridge", "megatron", "mlperf", "llama3", "maxtext", "t5x"))
    by_hand = vendor or source.startswith(("narayanan", "korth", "bloom", "bigscience", "mtnlg", "megascale", "glm"))
    compiled = source.startswith(("torchtitan", "nanogpt")) and not line["note"].startswith("none-compile")
    return Software(
        year=year, engine=_engine(line), graphs=_graphs(line),
        fixed_capacity="tokendrop" in line["model"], native_attention=_native(line, vendor),
        biased_attention=source == "llmfoundry", fused_elements=by_hand or compiled,
        tensor_overlap="async" in note or (source.startswith(("nemo", "mbridge", "mlperf", "megatron_h")) and year > 2023.3),
        offloaded="cpu adam" in note,
    )  # fmt: skip


def _graphs(line: Mapping[str, str]) -> bool:
    """Megatron-Bridge records whole steps of models with experts since 26.06, on Blackwell."""
    blackwell = line["accelerator"].startswith(("B", "GB"))
    return line["source"] == "mbridge" and _year(line) > 2026.4 and line["moe_experts"] != "" and blackwell


def _engine(line: Mapping[str, str]) -> Literal["megatron", "deepspeed", "torch", "jax"]:
    """BLOOM, MT-NLG and GLM ran Megatron's layers in DeepSpeed's pipeline; its authors compare with its ZeRO."""
    source = line["source"]
    if source == "narayanan2021_t2" and line["zero_stage"] == "3":
        return "deepspeed"
    if source.startswith(("bloom", "bigscience", "mtnlg", "glm")):
        return "deepspeed"
    if source.startswith(("maxtext", "t5x")):
        return "jax"
    return "megatron" if source.startswith(("nemo", "mbridge", "meg", "mlperf", "narayanan", "korth", "llama3p")) else "torch"


def _native(line: Mapping[str, str], vendor: bool) -> bool:
    """FlashAttention 2 is written for A100; vendors have kernels for H100 since 2024, others since late in 2025."""
    hopper = line["accelerator"].startswith(("H", "GH"))
    return not hopper or (vendor and _year(line) >= 2024.4) or _year(line) >= 2025.5


def _lengths(line: Mapping[str, str]) -> tuple[int, int]:
    """Tokens written and read; an encoder-decoder's row reads `seq_len` and its note says how many it writes."""
    length = int(float(line["seq_len"]))
    if line["arch"] != "encoder-decoder":
        return length, 0
    found = re.search(r"(\d+) decoder tokens", line["note"])
    return int(found[1]) if found else length, length


def _int(line: Mapping[str, str], name: str, otherwise: int) -> int:
    return int(float(line[name])) if line.get(name) else otherwise


def _precision(line: Mapping[str, str], accelerator: Accelerator) -> Precision:
    words = line["precision"].lower()
    if "fp8/bf16 unknown" in words and _year(line) < 2023.75:
        return PRECISIONS["bf16"]  # Habana's fp8 came with MLPerf 3.1
    named = (("fp32", "fp32"), ("nvfp4", "fp4"), ("fp4", "fp4"), ("fp8", "fp8"), ("int8", "fp8"), ("bf16-pure", "bf16-pure"), ("fp16", "fp16"))
    if line["accelerator"].startswith("TPU-v6") and "unknown" in words:
        return PRECISIONS["bf16"]
    for word, name in named:
        if word in words and (name not in ("fp8", "fp4") or name in accelerator.peaks):
            found = PRECISIONS[name]
            # NVIDIA's recipes of low precision exchange gradients of 16 bits
            return replace(found, gradient=2) if name in ("fp8", "fp4") and _by_vendor(line) else found
    return PRECISIONS["bf16"]


def _by_vendor(line: Mapping[str, str]) -> bool:
    return line["source"].startswith(("nemo", "mbridge", "mlperf"))


def _memory(line: Mapping[str, str]) -> float | None:
    """Bytes; the column is GiB for logs of PyTorch and GB where the note says so."""
    if not line["mem_gib"]:
        return None
    return float(line["mem_gib"]) * (1e9 if "GB" in line["mem_note"] else 2**30)
