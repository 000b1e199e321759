"""A run that never was, made through the public API: for looking at the report and for testing it.

python tests/run/made_up_run.py FOLDER      makes the run there and writes its report
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any

import torch

from glassformer.run import checkpoints
from glassformer.run.exports import save_model
from glassformer.run.folder import Run
from glassformer.run.manifest import describe
from glassformer.run.report import write_report

RECIPE: dict[str, Any] = {
    "name": "demo",
    "model": {"width": 256, "layers": 6, "heads": 4, "context": 256, "activation": "relu_squared"},
    "train": {"steps": 1500, "batch": 16, "seed": 1, "optimizer": {"name": "muon", "learning_rate": 0.02}},
    "data": {"sources": [{"path": "python-standard-library", "weight": 1.0}]},
    "tokenizer": {"kind": "bpe", "vocab": 8192},
}
CODE = '''def {name}(self, path, mode="r"):
    """Return the {what} of the given path."""
    if not os.path.exists(path):
        raise FileNotFoundError(path)
    with open(path, mode) as handle:
        return handle.read().split("\\n")
'''


DAMAGE = (
    "step-00000750/model.safetensors, tensor blocks.3.attn.q: its CRC-32 is 1f2e3d4c, its manifest says ab3d"
)


def make(path: Path, *, steps: int = 1500) -> Run:
    chance = random.Random(7)
    run = Run.create(path, RECIPE, describe(data="9f2c" * 16, tokenizer="51ab" * 16), fresh=path.exists())
    with run.lock():
        add = run.events.append
        add("start", recipe=RECIPE, parameters=6_840_320)
        add("text_report", report=text_report())
        tried = candidates()
        add("engine", choice=tried[3]["choice"], candidates=tried)
        for step in range(1, steps + 1):
            if step == steps // 2:
                add("resumed", step=step - 10, lost_steps=25, findings=[DAMAGE])
            loss = 1.75 + 7.2 * math.exp(-step / 90) + 1.1 * math.exp(-step / 700) + chance.gauss(0, 0.06)
            add("step", **row(step, steps, loss + (1.6 if step == 620 else 0), chance))
            if step % 100 == 0:
                add(
                    "validation", step=step, loss=loss + 0.09, bits_per_byte=(loss + 0.09) / math.log(2) / 3.4
                )
            if step % 300 == 0:
                add(
                    "sample",
                    step=step,
                    prompt="def ",
                    text=CODE.format(name="read_lines", what="<lines> & ends"),
                )
                state = {
                    "model": {"weight": torch.randn(64, 64)},
                    "optimizer": {"moment": torch.zeros(64, 64)},
                }
                saved = checkpoints.save(run.checkpoints, step, state, {"step": step})
                add("checkpoint", step=step, path=saved.name, seconds=0.2, bytes=33_000)
        add("warning", message="The learning rate was lowered once: a loss of 3.9 at step 620 is a spike.")
        add("attention", layer=3, head=1, **attention())
        cost = {"flops": 2.1e14, "seconds": 203.4, "tokens": steps * 4096}
        add("cost", **cost, joules=9_150.0)
        add("done", **cost, steps=steps, tokens_per_second=31_500.0, utilisation=0.47, train_loss=1.93,
            val_loss=2.02, val_bits_per_byte=0.857)  # fmt: skip
        save_model(run.model, config=RECIPE["model"], tensors={"weight": torch.zeros(2)}, tokenizer=b"{}")
        write_report(run)
    return run


def row(step: int, steps: int, loss: float, chance: random.Random) -> dict[str, float]:
    rate = 0.02 * min(1, step / 60) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
    pace = 31_500 * (1 - 0.3 * (400 < step < 440)) + chance.gauss(0, 350)
    return {
        "step": step,
        "loss": loss,
        "grad_norm": 0.6 + 3 * math.exp(-step / 50) + abs(chance.gauss(0, 0.08)) + 4 * (step == 620),
        "learning_rate": rate,
        "tokens": step * 4096,
        "tokens_per_second": pace,
        "utilisation": pace / 67_000,
        "seconds": step * 0.1356,
    }


def text_report() -> dict[str, Any]:
    sources = [
        {"source": "Lib", "documents": 612, "bytes": 11_203_998, "lines": 301_220, "empty": 9, "giant": 0,
         "exact_duplicates": 3, "validation_documents": 31, "tokens": 3_290_112, "bytes_per_token": 3.405},
        {"source": "docs/*.md", "documents": 48, "bytes": 804_112, "lines": 21_877, "empty": 0, "giant": 0,
         "exact_duplicates": 0, "validation_documents": 2, "tokens": 199_801, "bytes_per_token": 4.025},
    ]  # fmt: skip
    return {
        "sources": sources,
        "repeated_lines": 0.0823,
        "repeated_stretches": 0.031,
        "overlap_stretches": 0.0122,
        "warnings": [
            "9 of 660 documents are empty.",
            "3 of 660 documents are exact copies of an earlier one.",
        ],
    }


def candidates() -> list[dict[str, Any]]:
    ways = {
        "fp32, eager": (9_120.0, 0.449),
        "bf16 autocast, eager": (14_870.0, 0.2755),
        "bf16 autocast, compiled": (26_400.0, 0.1552),
        "bf16 masters, compiled": (31_480.0, 0.1301),
    }
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "choice": {"device": "cpu", "name": name},
            "tokens_per_second": speed,
            "step_seconds": step,
        }
        for name, (speed, step) in ways.items()
    ]
    failed = "fp32, compiled"
    error = "took longer than 60 s to compile"
    return [*found, {"name": failed, "choice": {"device": "cpu", "name": failed}, "error": error}]


def attention() -> dict[str, Any]:
    tokens = [
        "def",
        " read",
        "_",
        "lines",
        "(",
        "self",
        ",",
        " path",
        "):",
        "\n",
        "    ",
        "with",
        " open",
        "(",
        "path",
    ]
    chance, pattern = random.Random(3), []
    for query in range(len(tokens)):
        same = [token.strip() == tokens[query].strip() for token in tokens[: query + 1]]
        weights = [math.exp(2.2 * alike + chance.gauss(0, 1)) for alike in same]
        pattern.append([weight / sum(weights) for weight in weights] + [0.0] * (len(tokens) - query - 1))
    return {"tokens": tokens, "pattern": pattern}


if __name__ == "__main__":
    print(make(Path(sys.argv[1])).path / "report.html")
