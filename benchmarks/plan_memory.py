"""How well bytes are forecast: on steps that others have measured, and on this machine.

    python benchmarks/plan_memory.py           the measured rows, by group, beside two rules of thumb
    python benchmarks/plan_memory.py --here    real training processes here: forecast and peak resident set
    python benchmarks/plan_memory.py --out docs/plan-accuracy.md       the first as a section of that page

The constants of plan/memory.py are fitted again with each group left out
(`left_out`): the error of a group is that of constants which have not seen it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from glassformer.model.config import ModelConfig
from glassformer.plan import memory as planned
from glassformer.plan.architecture import Architecture
from glassformer.plan.hardware import Accelerator
from glassformer.plan.layout import Job, Layout, Recompute
from glassformer.plan.memory import memory
from glassformer.plan.precision import PRECISIONS
from glassformer.plan.rows import Row, measured_rows
from glassformer.plan.software import GLASSFORMER

CHOICES = {
    "FRAGMENTATION": (0.0, 0.01, 0.02, 0.03, 0.04, 0.05),
    "COMMUNICATORS": (0.4e9, 0.8e9, 1.0e9, 1.2e9, 1.4e9),
}


def forecast(row: Row) -> float:
    """What the row's column measures: all of it, or without context and fragments."""
    assert row.job is not None
    found = memory(row.job)
    return float(found.total if row.bytes_are == "device" else getattr(found, row.bytes_are))


def table(rows: list[Row] | None = None) -> list[dict[str, Any]]:
    """By rule and group, and over all: how many rows, the median, signed median and 90th percentile of computed /
    measured - 1, and how many that ran out of memory the rule would let fit."""
    groups = grouped(measured_rows() if rows is None else rows)
    unseen = errors_left_out(groups)
    found = []
    for name, rule in RULES.items():
        every: list[float] = []
        for group, mine in groups.items():
            if rule is not forecast and mine[0].job and mine[0].job.trained is not None:
                continue  # the rules know no frozen weights
            errors = unseen[group] if rule is forecast else _errors(mine, rule)
            found.append(_line(name, group, errors, false_fits(mine, rule)))
            every += errors
        every_row = [row for mine in groups.values() for row in mine] if rule is forecast else []
        found.append(_line(name, "all rows", every, false_fits(every_row, rule)))
    return found


def grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows that say what a whole rank took, or that it was too much, by group."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.job and (row.bytes or row.ran_out) and row.bytes_are != "activations":
            found[row.group].append(row)
    return found


def errors_left_out(groups: dict[str, list[Row]]) -> dict[str, list[float]]:
    """Computed / measured - 1 of each group, with the constants that are best for the other groups: those with the
    least mean of their medians."""
    before = {name: getattr(planned, name) for name in CHOICES}
    tried = []
    for values in itertools.product(*CHOICES.values()):
        for name, value in zip(CHOICES, values, strict=True):
            setattr(planned, name, value)
        tried.append({group: _errors(mine, forecast) for group, mine in groups.items()})
    for name, value in before.items():
        setattr(planned, name, value)

    def others(errors: dict[str, list[float]], group: str) -> float:
        return float(np.mean([np.median(np.abs(e)) for name, e in errors.items() if e and name != group]))

    return {group: min(tried, key=lambda errors: others(errors, group))[group] for group in groups}


def ratios(groups: dict[str, list[Row]]) -> list[float]:
    """Measured / computed of all rows, with constants that have not seen their group: what `INTERVAL` is made of."""
    return [1 / (1 + error) for errors in errors_left_out(groups).values() for error in errors]


def _errors(rows: list[Row], rule: Callable[[Row], float]) -> list[float]:
    return [rule(row) / row.bytes - 1 for row in rows if row.bytes]


def false_fits(rows: list[Row], rule: Callable[[Row], float]) -> str:
    """Of the rows that ran out of memory, how many the rule lets fit."""
    out = [row for row in rows if row.ran_out and row.job]
    wrong = sum(
        bool(planned.fits(row.job).fits) if rule is forecast else rule(row) <= row.job.accelerator.memory  # type: ignore[union-attr, arg-type]
        for row in out
    )
    return f"{wrong} of {len(out)}"


def _line(name: str, group: str, errors: list[float], wrong: str) -> dict[str, Any]:
    absolute = np.abs(errors) if errors else np.array([np.nan])
    return {
        "rule": name, "group": group, "n": len(errors), "median": float(np.median(absolute)),
        "signed": float(np.median(errors)) if errors else float("nan"), "p90": float(np.quantile(absolute, 0.9)),
        "false_fits": wrong,
    }  # fmt: skip


def sixteen_bytes(row: Row) -> float:
    """16 bytes a parameter over all accelerators: mixed precision with Adam (ZeRO, 1910.02054, section 3.1), all of
    it divided, nothing else."""
    assert row.job is not None
    return 16 * row.job.architecture.parameters.total / float(row.job.layout.accelerators)


def eleutherai(row: Row) -> float:
    """EleutherAI's cookbook, calc/calc_transformer_mem.py (827ee3b, 2026-03, Apache-2.0), from its formulas: weights /
    (t p), and by all GPUs again in ZeRO-3; float32 gradients, undivided below ZeRO-2; optimiser 12, by all GPUs from
    ZeRO-1; activations of all layers, 34 s b d and 5 h s^2 b without recomputation, divided by t alone (its option
    --partition-activations); buckets of 5e8 numbers, and 1e9 live ones in ZeRO-3."""
    assert row.job is not None
    a, layout = row.job.architecture, row.job.layout
    d, s, gpus, stage = a.width, row.job.length, float(layout.accelerators), int(layout.sharding)
    matrices = (2 * (1 + a.kv_heads / a.heads) * d + a.ff_matrices * a.ff_width) * d * a.layers
    parameters = 2 * a.vocab * d + d * s + 8 * d * a.layers + 2 * d + matrices
    weights = 2 * parameters / (float(layout.tensor) * float(layout.pipeline)) / (gpus if stage == 3 else 1)
    gradients = 4 * parameters / (gpus if stage >= 2 else 1)
    optimizer = 12 * parameters / (gpus if stage >= 1 else 1)
    buckets = 2 * ((stage >= 1) * 5e8 + (stage == 3) * 1e9) if gpus > 1 else 0.0
    each = 34 if layout.recompute != Recompute.NONE else 34 + 5 * a.heads * s / d
    activations = s * float(layout.micro_batch) * d * a.layers * each / float(layout.tensor)
    return weights + gradients + optimizer + buckets + activations


RULES: dict[str, Callable[[Row], float]] = {
    "glassformer": forecast, "EleutherAI calculator": eleutherai, "16 bytes x N / accelerators": sixteen_bytes,
}  # fmt: skip

_BASE = {
    "model.heads": 4,
    "tokenizer.kind": "characters", "train.steps": 3, "train.checkpoint_every": 2, "train.validate_every": 100,
    "train.sample_every": 100, "train.validation_tokens": 2000, "engine.compile": "off", "optimizer.kind": "adamw",
}  # fmt: skip
HERE: dict[str, tuple[int, dict[str, Any]]] = {
    "small": (64, {"train.batch": 16, "model.width": 256, "model.layers": 4, "model.context": 128}),
    "deep": (64, {"train.batch": 16, "model.width": 256, "model.layers": 12, "model.context": 128}),
    "wide": (64, {"train.batch": 2, "model.width": 640, "model.layers": 4, "model.context": 64}),
    "explicit": (64, {"train.batch": 8, "model.width": 192, "model.layers": 4, "model.context": 256,
                      "engine.attention": "explicit"}),
    "vocabulary": (16000, {"train.batch": 8, "model.width": 192, "model.layers": 2, "model.context": 128}),
    "autocast": (64, {"train.batch": 16, "model.width": 256, "model.layers": 4, "model.context": 128,
                      "engine.precision": "autocast"}),
    "bf16": (64, {"train.batch": 16, "model.width": 256, "model.layers": 4, "model.context": 128,
                  "engine.precision": "bf16"}),
    "lion": (64, {"train.batch": 2, "model.width": 512, "model.layers": 5, "model.context": 64,
                  "optimizer.kind": "lion", "faults.remember_every": 2}),
    "recomputed": (64, {"train.batch": 16, "model.width": 256, "model.layers": 12, "model.context": 128,
                        "engine.activation_memory": 0.0}),
}  # fmt: skip
"""Name -> (size of the vocabulary, what the recipe says)."""


def here(names: list[str]) -> list[dict[str, Any]]:
    """Train each of these recipes in a process of its own; its peak resident set beside the forecast."""
    found = []
    for name in names:
        vocab, says = HERE[name]
        with tempfile.TemporaryDirectory() as folder:
            peak = _train(
                Path(folder),
                vocab,
                {"engine.precision": "fp32", "engine.attention": "fused", **_BASE, **says},
            )
        computed = memory(job_of(vocab, says))
        error = float(computed.total) / peak - 1
        found.append({"recipe": name, "measured": peak, "computed": float(computed.total), "error": error})
        parts = ", ".join(
            f"{row['name']} {row['bytes'] / 1e6:.0f}" for row in computed.rows() if row["bytes"]
        )
        print(f"{name:12} measured {peak / 1e6:6.0f} MB, error {error:+.1%} ({parts})", flush=True)
    return found


def job_of(vocab: int, says: dict[str, Any]) -> Job:
    """Such a recipe as a job on this machine's processor."""
    shape = {key.removeprefix("model."): value for key, value in says.items() if key.startswith("model.")}
    config = ModelConfig(vocab=vocab + 1, heads=4, **shape)
    rows = says["train.batch"]
    precision = PRECISIONS[says.get("engine.precision", "fp32")]
    recompute = Recompute.FULL if says.get("engine.activation_memory") == 0 else Recompute.NONE
    return Job(
        Architecture.of(config), THIS, precision, Layout(micro_batch=rows, recompute=recompute), batch=rows,
        length=config.context, optimizer=says.get("optimizer.kind", "adamw"), software=GLASSFORMER,
        fused_attention=says.get("engine.attention", "fused") != "explicit",
    )  # fmt: skip


THIS = Accelerator("this CPU", "CPU", "", {"fp32": 1e11}, {}, 8e9, 1e10, 0.0, 1, 0.0, 100.0, "")


CHILD = """
import json, sys
from glassformer.train.launch import prepare_process
prepare_process()
from glassformer.train.bench import peak_bytes
from glassformer.train.loop import train
text, run, says, peaks = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), []
train(text, run=run, overrides=says, on_event=lambda event: peaks.append(peak_bytes("cpu")))
print(peaks[-1])
"""
"""Trains as `glassformer train` does, and tells the largest resident set up to the last event: before the report."""


def _train(folder: Path, vocab: int, says: dict[str, Any]) -> float:
    """Bytes of the largest resident set of one training process."""
    draw = random.Random(0)
    letters = [chr(0x4E00 + place) for place in range(vocab)]
    (folder / "text.txt").write_text("".join(letters) + "".join(draw.choices(letters, k=200_000)))
    command = [sys.executable, "-c", CHILD, str(folder / "text.txt"), str(folder / "run"), json.dumps(says)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--here", nargs="*", metavar="RECIPE")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.here is not None:
        found = here(asked.here or list(HERE))
        errors = [abs(one["error"]) for one in found]
        print(f"median {np.median(errors):.1%}, worst {max(errors):.1%}")
        return
    found = table()
    for line in found:
        print(f"{line['rule']:28} {line['group']:42} n {line['n']:3}  median {line['median']:6.1%}  "
              f"signed {line['signed']:+7.1%}  p90 {line['p90']:7.1%}  false fits {line['false_fits']}")  # fmt: skip
    every = ratios(grouped(measured_rows()))
    print("middle 80 % of measured / computed:", np.round(np.quantile(every, [0.1, 0.9]), 3))
    if asked.out:
        write(asked.out, found)


def write(page: Path, found: list[dict[str, Any]]) -> None:
    """The table by group as a section of a page: ours, and the median of each rule of thumb."""
    import section  # beside this file

    by_rule = {rule: {line["group"]: line for line in found if line["rule"] == rule} for rule in RULES}
    ours, *others = by_rule.values()
    rows = []
    for group, line in ours.items():
        beside = [f"{other[group]['median']:.0%}" if group in other else "" for other in others]
        rows.append([group, str(line["n"]), f"{line['median']:.1%}", f"{line['signed']:+.1%}", f"{line['p90']:.1%}",
                     line["false_fits"], *beside])  # fmt: skip
    said = (
        "Bytes on the fullest accelerator: median, signed median and 90th percentile of |forecast / measured - 1|, "
        "each group by constants fitted to the others. False fits: rows that ran out of memory and would be said to "
        "fit, of how many. Beside: EleutherAI's calculator and 16 bytes a parameter over all accelerators, medians."
    )
    return [
        said,
        "",
        *section.table(
            ["group", "rows", "median", "signed", "90 % within", "false fits", *list(RULES)[1:]], rows
        ),
    ]


if __name__ == "__main__":
    main()
