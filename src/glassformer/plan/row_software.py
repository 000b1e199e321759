"""What the measured rows say in words or not at all, and memory depends on: the program, and shapes it is known by.

    Megatron-DeepSpeed (BLOOM)   explicit attention, no sequence parallelism, 16-bit gradients, DeepSpeed's ZeRO-1
    torchtitan                   selective recomputation by operations; FSDP2; its loss compiled since 2025; one
                                 micro-batch for each pipeline stage, where the table does not say
    litgpt, 1 GPU                bfloat16 throughout, plain eager code, adapters by name
    ml-engineering (2026)        DeepSpeed ZeRO-3, the optimiser on the host, fused loss and kernels (Liger)

Shapes are those of the models' own `config.json`, as litgpt pads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from glassformer.plan.layout import Job
from glassformer.plan.precision import PRECISIONS
from glassformer.plan.software import Software

SHAPES: dict[str, dict[str, str]] = {
    "phi-1.5 1.3 B": {"d_ff": "8192", "ffn_matrices": "2", "vocab": "51200"},
    "StableLM Alpha 3 B": {"d_ff": "16384", "ffn_matrices": "2", "vocab": "50688"},
    "Llama 2 7 B": {"d_ff": "11008", "ffn_matrices": "3", "vocab": "32000"},
    "Llama 2 13 B": {"d_ff": "13824", "ffn_matrices": "3", "vocab": "32000"},
    "Falcon 40 B": {"d_ff": "32768", "ffn_matrices": "2", "vocab": "65024", "kv_heads": "8"},
}
BIT_WIDTHS = {"bnb.nf4-dq": 0.5 + 1 / 64 + 4 / 64 / 256, "bnb.nf4": 0.5 + 4 / 64, "bnb.int8": 1.0}
"""Bytes a number with its scales: 4 bits, a float32 for each 64, or a byte for each 64 and a float32 for each 256 of
those (QLoRA, 2305.14314)."""


def completed(line: Mapping[str, str]) -> dict[str, str]:
    """The line with the shape that its model is known to have, where the table leaves it out."""
    full = dict(line)
    if line["source"] == "litgpt":
        full |= SHAPES.get(line["model"], {})
        full["global_batch_seqs"] = line["global_batch_seqs"] or line["micro_batch"]
    if line["source"].startswith("torchtitan") and not line["micro_batch"] and line["pp"] not in ("", "1"):
        local = int(line["global_batch_seqs"] or 1) // int(line["dp"] or 1)
        full["micro_batch"] = str(max(1, local // int(line["pp"])))
        if "interleaved" in line["sharding_note"]:
            full["vp"] = line["vp"] or "2"
    return full


def as_it_was_run(job: Job, line: Mapping[str, str]) -> Job:
    """The job with what is known of the program that ran it."""
    source, note = line["source"], line["sharding_note"].lower()
    changes: dict[str, Any] = {}
    layout, software, architecture = job.layout, Software(), job.architecture
    if line["date"] < "2022-06":  # before FlashAttention; sequence parallelism is of May 2022
        changes["fused_attention"] = False
        layout = replace(layout, sequence_parallel=int("sequence parallel" in note))
        architecture = replace(architecture, norm="layernorm", bias=True, learned_positions=job.length)
    if source == "bloom_prequel":
        changes["precision"] = PRECISIONS["bf16-grads16"]
        software = Software(engine="deepspeed")
        architecture = replace(architecture, learned_positions=0)
    if source == "korthikanti2022":
        software = Software(dropout=True)
    if source.startswith("torchtitan"):
        software = Software(
            selective="operations", loss="fused" if line["date"] >= "2025" else "torch",
            fused_kernels="none-compile" not in line["note"],
        )  # fmt: skip
        architecture = replace(architecture, tied=False)
    if source == "mleng":
        liger = "fused CE" in line["sharding_note"]
        changes |= {"precision": PRECISIONS["bf16-grads16"], "chunked_loss": liger}
        software = Software(fused_kernels=liger, offload_optimizer="offload" in note, engine="deepspeed")
        architecture = replace(architecture, tied=False)
    if source == "litgpt":
        llama = "Llama" in line["model"]
        architecture = replace(
            architecture, tied=False, parallel=not llama, norm="rmsnorm" if llama else "layernorm", bias=not llama,
        )  # fmt: skip
        trained = re.search(r"trainable ([\d,]+)", line["sharding_note"])
        bits = next((size for name, size in BIT_WIDTHS.items() if name in line["sharding_note"]), 2.0)
        changes |= {
            "precision": PRECISIONS["bf16-pure"], "frozen_bytes": bits,
            "trained": int(trained[1].replace(",", "")) if trained else None,
        }  # fmt: skip
        software = Software(fused_kernels=False, adapter=_adapter(line, changes["trained"]))
    return replace(job, architecture=architecture, layout=layout, software=software, **changes)


def measured_as(line: Mapping[str, str]) -> str:
    """What the memory column of a row is: `allocated` by the program's tensors, `reserved` by its allocator, `device`
    with the context, or `activations` alone."""
    if line["source"] == "litgpt":
        return "allocated"
    if line["source"].startswith("torchtitan") or line["source"] == "mleng":
        return "reserved"
    return "activations" if "activation bytes" in line["mem_note"] else "device"


def _adapter(line: Mapping[str, str], trained: int | None) -> Any:
    """litgpt's Adapter has vectors for each layer and head, its Adapter v2 a scale and a bias on each product too."""
    if line["task"] == "finetune-lora":
        return "lora"
    prefix = int(line["layers"]) * (10 * int(line["d_model"]) + int(line["heads"]))
    return "scale" if (trained or 0) > 1.5 * prefix else "prefix"
