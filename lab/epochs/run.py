"""Repeated data stops paying: one model, the same few tokens again and again, against fresh ones; measured here.

    python lab/epochs/run.py [--unique 125000] [--epochs 32] [--seeds 0] [--out lab/epochs] [--work FOLDER]

The text is the code of Python's standard library and its tests, byte by byte. One model is trained on its first U
bytes for 1, 2, 4, ... epochs and, with the same number of updates, on as many fresh bytes; every run decays to its
end, and all are measured on the same held-out files. What a repetition is worth: the fresh bytes D' that the fresh
curve needs for the same loss, over the bytes that were read. R_D* of D' = U + U R_D* (1 - exp(-R_D / R_D*)), with R_D
the repetitions (Muennighoff et al. 2023, 2305.16264), is fitted by least squares. Writes result.json and loss.svg.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

import glassformer as gf
from glassformer import charts

HELD_OUT = 200_000
RECIPE: dict[str, Any] = {
    "name": "epochs",
    "data": {"paths": ["train.txt"], "validation": 0.02, "split": "tail"},
    "tokenizer": {"kind": "bytes"},
    "model": {"width": 48, "layers": 2, "heads": 2, "context": 128},
    "train": {"batch": 16, "checkpoint_every": 100_000, "validate_every": 100_000, "sample_tokens": 0},
    "optimizer": {"kind": "adamw", "learning_rate": 4e-3, "weight_decay": 0.1},
    "schedule": {"kind": "linear", "warmup": 0.05, "final": 0.0},
    "engine": {"precision": "fp32", "compile": "off"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--unique", type=int, default=125_000)
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--work", type=Path, help="keep the runs there, and go on with those that are done")
    given = parser.parse_args()
    passes = [2**k for k in range(given.epochs.bit_length())]
    with tempfile.TemporaryDirectory() as folder:
        work = given.work or Path(folder)
        held = texts(work, given.unique, passes)
        rows = [
            measured(work, held, kind, given.unique, epochs, seed)
            for seed in given.seeds
            for epochs in passes
            for kind in ("repeated", "fresh")
        ]
    result = concluded(rows, given.unique) | {"recipe": RECIPE, "runs": rows}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(rows, given.out)
    print(
        json.dumps({key: value for key, value in result.items() if key not in ("recipe", "runs")}, indent=1)
    )


def texts(work: Path, unique: int, passes: list[int]) -> str:
    """Write what is trained on, one folder for each amount, and give what is held out; files in an order of chance."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in library.rglob("*.py") if "site-packages" not in path.parts]
    files.sort(key=lambda path: hashlib.sha256(path.relative_to(library).as_posix().encode()).digest())
    code = bytearray()
    for path in files:
        content = path.read_bytes()
        if content.isascii():
            code += content
        if len(code) > HELD_OUT + 1.1 * unique * passes[-1]:
            break
    if len(code) < HELD_OUT + unique * passes[-1]:
        raise SystemExit(
            f"The library has {len(code):,} bytes of code; take fewer --epochs or a smaller --unique."
        )
    held, rest = code[:HELD_OUT].decode(), code[HELD_OUT:].decode()
    for epochs in passes:
        folder = work / f"text-{epochs}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.txt").write_text(rest[: unique * epochs], encoding="utf-8", newline="")
    return held


def measured(work: Path, held: str, kind: str, unique: int, epochs: int, seed: int) -> dict[str, Any]:
    """Train one model, or take the run that is done, and score what is held out."""
    amount = epochs if kind == "fresh" else 1
    steps = round(unique * epochs / (RECIPE["train"]["batch"] * RECIPE["model"]["context"]))
    run = gf.train(
        RECIPE, run=work / f"{kind}-{epochs}-{seed}",
        overrides={
            "data.paths": str(work / f"text-{amount}" / "train.txt"), "train.steps": steps, "train.seed": seed,
        },
    )  # fmt: skip
    model = gf.load(run.path)
    row = {
        "kind": kind, "epochs": epochs, "seed": seed, "bytes_read": steps * 16 * 128,
        "parameters": run.summary()["parameters"], "loss": gf.score(model, held).loss,
        "train_loss": run.rows()[-1]["loss"],
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def concluded(rows: list[dict[str, Any]], unique: int) -> dict[str, Any]:
    """What the repetitions were worth, and R_D*."""
    fresh = mean_losses(rows, "fresh")
    repeated = mean_losses(rows, "repeated")
    passes = np.array(sorted(fresh), float)
    curve = np.array([fresh[p] for p in passes])
    worth = []
    for epochs, loss in sorted(repeated.items()):
        as_fresh = float(np.exp(np.interp(-loss, -curve, np.log(passes))))  # losses fall along the curve
        worth.append({"epochs": epochs, "loss": loss, "fresh": fresh[epochs], "worth_in_passes": as_fresh,
                      "share": as_fresh / epochs})  # fmt: skip
    seen = np.array([row["epochs"] for row in worth], float) - 1
    value = np.array([row["worth_in_passes"] for row in worth]) - 1

    def misfit(log_r: float) -> float:
        r = np.exp(log_r)
        return float(np.sum((np.log1p(r * (1 - np.exp(-seen / r))) - np.log1p(value)) ** 2))

    best = minimize_scalar(misfit, bounds=(-3.0, 8.0), method="bounded")
    return {"unique_bytes": unique, "R_D": float(np.exp(best.x)), "worth": worth}


def mean_losses(rows: list[dict[str, Any]], kind: str) -> dict[int, float]:
    """Epochs -> loss, the mean over seeds."""
    epochs = {row["epochs"] for row in rows}
    return {
        e: float(np.mean([r["loss"] for r in rows if r["kind"] == kind and r["epochs"] == e])) for e in epochs
    }


def draw(rows: list[dict[str, Any]], folder: Path) -> None:
    """The two curves."""
    shown = [{**row, "text": f"{row['kind']} text"} for row in rows]
    chart = charts.line(
        shown, "bytes_read", "loss", series="text", x_title="bytes read", y_title="held-out loss (nats per byte)",
        log_x=True,
    )  # fmt: skip
    charts.save(chart, folder / "loss.svg")


if __name__ == "__main__":
    main()
