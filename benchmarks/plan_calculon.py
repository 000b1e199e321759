"""Calculon's forecast of the measured rows that it can say something about, beside the planner's.

    python benchmarks/plan_calculon.py CHECKOUT

CHECKOUT is https://github.com/calculon-ai/calculon (measured at caa4b11, Apache-2.0). It is for dense decoders with
plain attention and feed-forward layers in 16 bits, with tensor, pipeline and data ranks and sharded optimiser states;
its A100 and H100 systems are used as they are, but for the links that a row's machine has.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

from glassformer.plan.calibration import left_out, misses, timed
from glassformer.plan.layout import Job, Recompute
from glassformer.plan.rows import Row, measured_rows

SYSTEMS = {"A100-SXM-80GB": "a100_80g", "H100-SXM-80GB": "h100_80g_nvl8"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    print("\n".join(table(parser.parse_args().checkout)))


def table(checkout: Path) -> list[str]:
    """Median |forecast / measured - 1| by group, in Markdown."""
    sys.path.insert(0, str(checkout))
    rows = timed(measured_rows())
    without = left_out(rows)
    lines = ["| group | rows | planner | Calculon |", "|---|---|---|---|"]
    both = []
    for group in dict.fromkeys(row.group for row in rows):
        own = [row for row in rows if row.group == group and speaks_of(row)]
        theirs = [calculon(checkout, row) for row in own]
        kept = [(row, seconds) for row, seconds in zip(own, theirs, strict=True) if seconds]
        if not kept:
            continue
        missed = [abs(seconds / (row.seconds or 1.0) - 1) for row, seconds in kept]
        ours = np.abs(np.exp(misses([row for row, _ in kept], without[group])) - 1)
        both.append((float(np.median(ours)), float(np.median(missed))))
        lines.append(f"| {group} | {len(kept)} | {both[-1][0]:.1%} | {both[-1][1]:.1%} |")
    whole = " | ".join(f"{np.median(side):.1%}" for side in zip(*both, strict=True))
    return [*lines, f"| median of the groups | {len(both)} | {whole} |"]


def speaks_of(row: Row) -> bool:
    """Whether Calculon's inputs can say what was run."""
    job = row.job
    assert job is not None
    a, lay = job.architecture, job.layout
    plain = a.kind == "decoder" and a.ff_matrices == 2 and a.kv_heads == a.heads and not a.experts
    divided = lay.sharding <= 1 and lay.context == 1 and a.layers % (lay.pipeline * lay.interleave) == 0
    return (
        plain and bool(divided) and job.precision.peak in ("fp16", "bf16") and job.trained is None
        and job.accelerator.name in SYSTEMS
    )  # fmt: skip


def calculon(checkout: Path, row: Row) -> float | None:
    """Its seconds; None where it refuses."""
    from calculon.llm.llm import Llm
    from calculon.system import System

    job = row.job
    assert job is not None
    system: dict[str, Any] = json.loads(
        (checkout / "systems" / f"{SYSTEMS[job.accelerator.name]}.json").read_text()
    )
    system["networks"][1]["bandwidth"] = job.accelerator.scale_out / 1e9
    system["mem1"]["GiB"] = 10_000  # whether it fits is not asked
    silent = logging.getLogger("calculon")
    silent.setLevel(logging.CRITICAL)
    try:
        model = Llm(Llm.Application(application(job)), silent)
        machine = System(system)
        model.compile(machine, Llm.Execution.from_json(execution(job)))
        model.run(machine)
    except (Llm.Error, AssertionError):
        return None
    return float(model.get_total_time())


def application(job: Job) -> dict[str, Any]:
    """Its model."""
    a = job.architecture
    return {
        "name": a.name, "hidden": a.width, "feedforward": a.ff_width, "seq_size": job.length, "attn_heads": a.heads,
        "attn_size": a.head_width, "num_blocks": a.layers,
    }  # fmt: skip


def execution(job: Job) -> dict[str, Any]:
    """Its layout."""
    lay = job.layout
    mode = {Recompute.NONE: "none", Recompute.SELECTIVE: "attn_only", Recompute.FULL: "full"}
    rows_each = int(lay.data * lay.micro_batch)
    apart = bool(lay.sequence_parallel) and lay.tensor > 1
    return {
        "num_procs": int(lay.accelerators), "tensor_par": int(lay.tensor), "pipeline_par": int(lay.pipeline),
        "data_par": int(lay.data), "tensor_par_net": 0, "pipeline_par_net": 1 if lay.accelerators > 8 else 0,
        "data_par_net": 1 if lay.accelerators > 8 else 0, "batch_size": job.batch // rows_each * rows_each,
        "microbatch_size": int(lay.micro_batch), "datatype": "float16", "fused_activation": True,
        "attention_type": "multihead", "activation_recompute": mode[Recompute(int(lay.recompute))],
        "pipeline_interleaving": int(lay.interleave), "optimizer_sharding": bool(lay.sharding and lay.data > 1),
        "tensor_par_comm_type": "rs_ag" if apart else "ar", "tensor_par_overlap": "none", "seq_par_ag_redo": apart,
        "data_par_overlap": bool(job.software.year > 2023), "weight_offload": False, "activations_offload": False,
        "optimizer_offload": False, "training": True,
    }  # fmt: skip


if __name__ == "__main__":
    main()
