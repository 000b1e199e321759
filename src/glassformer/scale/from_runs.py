"""The points of one's own runs, or of a table: what `scale fit` is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from glassformer.errors import UsageError
from glassformer.scale.fit import Law, fit_law
from glassformer.scale.forecast import Forecaster
from glassformer.scale.honesty import best_of
from glassformer.scale.points import Points, read_points
from glassformer.scale.published import Published, names, published_law

_DECAYED = 0.5
"""A learning rate that ends above this share of its peak was not decayed."""


def scale_points(
    what: Sequence[str | Path] | str | Path, *, columns: str | Mapping[str, str] | None = None,
    where: str | Mapping[str, str] | None = None, unit: str | None = None, tokenizer: str | None = None,
    best: bool = False,
) -> Points:  # fmt: skip
    """Points from run folders or one .csv; `columns` and `where` as mappings or as `a=b,c=d`.

    Raises UsageError for what is neither, and for a table without loss or sizes.
    """
    paths = [Path(what)] if isinstance(what, str | Path) else [Path(one) for one in what]
    tables = [path for path in paths if path.suffix.lower() == ".csv"]
    if tables and len(paths) > 1:
        raise UsageError(
            f"{tables[0]} stands with {len(paths) - 1} others.", expected="One table alone, or run folders."
        )
    if tables:
        points = read_points(tables[0], columns=_pairs(columns, "--columns"), where=_pairs(where, "--where"))
    elif columns or where:
        raise UsageError(
            "--columns and --where are about a table.", expected="One .csv.", do="Leave them out."
        )
    else:
        points = read_runs(paths)
    points = replace(points, unit=unit or points.unit, tokenizer=tokenizer or points.tokenizer)
    return best_of(points) if best else points


def open_forecaster(
    what: Sequence[str | Path] | str | Path, *, columns: str | Mapping[str, str] | None = None,
    where: str | Mapping[str, str] | None = None, unit: str | None = None, tokenizer: str | None = None,
    best: bool = False,
) -> Forecaster:  # fmt: skip
    """What forecasts: a law.json as it is, or one made of run folders or a .csv.

    Raises UsageError for a published law, whose loss is not one's own.
    """
    path = _alone(what, columns or where or unit or tokenizer or best)
    if path is not None and path.suffix.lower() == ".json":
        return Forecaster.load(path)
    if path is not None and not path.exists() and str(path) in names():
        published_law(str(path)).loss(0.0, 0.0)  # raises, and says what to do instead
    return Forecaster.of(
        scale_points(what, columns=columns, where=where, unit=unit, tokenizer=tokenizer, best=best)
    )


def open_law(
    what: Sequence[str | Path] | str | Path, *, columns: str | Mapping[str, str] | None = None,
    where: str | Mapping[str, str] | None = None, unit: str | None = None, tokenizer: str | None = None,
    best: bool = False,
) -> Law | Published:  # fmt: skip
    """A law: of a law.json, of a published one's name, or fitted (chinchilla) to run folders or a .csv."""
    path = _alone(what, columns or where or unit or tokenizer or best)
    if path is not None and path.suffix.lower() == ".json":
        return Law.load(path)
    if path is not None and not path.exists() and not path.suffix:
        return published_law(str(path))
    return fit_law(
        scale_points(what, columns=columns, where=where, unit=unit, tokenizer=tokenizer, best=best)
    )


def _alone(what: Sequence[str | Path] | str | Path, settings: Any) -> Path | None:
    """The one thing that is given, if it is one. `settings` are of points, and a law that is kept has its own."""
    paths = [what] if isinstance(what, str | Path) else list(what)
    path = Path(paths[0]) if len(paths) == 1 else None
    kept = path is not None and (path.suffix.lower() == ".json" or (not path.exists() and not path.suffix))
    if settings and kept:
        raise UsageError(
            f"{path} is a law already: --columns, --where, --unit, --tokenizer and --best are of runs and tables.",
            do="Leave them out, or fit again.",
        )  # fmt: skip
    return path


def _pairs(text: str | Mapping[str, str] | None, option: str) -> dict[str, str]:
    if text is None or isinstance(text, Mapping):
        return dict(text or {})
    pairs = dict[str, str]()
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise UsageError(f"{option} {text!r}: {pair!r} is no name=value.", expected=f"{option} a=b,c=d")
        pairs[name.strip()] = value.strip()
    return pairs


def read_runs(paths: Sequence[str | Path]) -> Points:
    """The points of run folders: parameters, tokens, FLOPs and the loss held out at the end of each finished run."""
    from glassformer.run.folder import Run  # which loads torch: a table needs none of it

    rows, dropped, units, tokenizers = [], [], set(), set()
    about: dict[str, set[str]] = {}
    for path in paths:
        run = Run.open(Path(path))
        summary = run.summary()
        if summary["status"] != "done" or summary["val_loss"] is None:
            dropped.append({"line": 0, "run": str(path), "reason": f"the run is {summary['status']}"})
            continue
        rows.append(
            (
                summary["parameters"],
                summary["tokens"],
                summary["val_loss"],
                summary["flops"],
                run.path.name,
                _warm(run.recipe),
                run.recipe.get("optimizer", {}).get("learning_rate", np.nan),
            )
        )
        units.add((run.events.last("start") or {}).get("loss_unit", "nats per token"))
        tokenizers.add(str(run.manifest.get("tokenizer", ""))[:12])
        for name, value in made(run.recipe, run.manifest).items():
            about.setdefault(name, set()).add(value)
    if not rows:
        raise UsageError(
            "None of these runs is done.", do="Train them to their end: the same command goes on."
        )
    if len(units) > 1:
        raise UsageError(
            f"These runs count their loss in {' and in '.join(sorted(units))}.", expected="One unit."
        )
    if len(tokenizers) > 1:
        raise UsageError(
            f"These runs have {len(tokenizers)} tokenizers, so their losses per token cannot be compared.",
            expected="Runs with one tokenizer.",
            do="Fit them apart, or train one tokenizer and name it in every recipe.",
        )  # fmt: skip
    n, d, y, c, names, warm, rates = zip(*rows, strict=True)
    swept = len({*zip(n, d, strict=True)}) < len(rows) and all(
        np.isfinite(rates)
    )  # else a rate is the size's own
    return Points.of(
        n, d, y, C=np.array(c, np.float64), runs=list(names), unit=units.pop(), dropped=dropped,
        warm=np.array(warm) if any(warm) else None, lr=np.array(rates, np.float64) if swept else None,
        counting="N with embeddings, C as the runs count (matmul)", source=f"{len(rows)} runs",
        tokenizer=tokenizers.pop() or None, about={name: _few(values) for name, values in about.items()},
    )  # fmt: skip


def _warm(recipe: Mapping[str, Any]) -> float:
    """1 where the learning rate had hardly been decayed at the end."""
    schedule = recipe.get("schedule", {})
    return float(schedule.get("kind") == "constant" or schedule.get("final", 0.0) > _DECAYED)


def made(recipe: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, str]:
    """What the checklist asks about how a run was made, from what the run wrote down."""
    keys = {
        "architecture": ("model", ("kind", "norm", "positions", "activation", "gated", "tied")),
        "vocabulary": ("tokenizer", ("kind", "vocab")),
        "optimizer": ("optimizer", ("kind", "betas", "weight_decay")),
        "learning rate": ("optimizer", ("learning_rate",)),
        "schedule": ("schedule", ("kind", "warmup", "final")),
        "batch": ("train", ("batch", "accumulate")),
        "context": ("model", ("context",)),
        "precision": ("engine", ("precision",)),
        "data": ("data", ("paths", "validation")),
        "seed": ("train", ("seed",)),
    }
    found = {}
    for name, (table, wanted) in keys.items():
        held = recipe.get(table, {})
        said = [f"{key} {held[key]}" for key in wanted if held.get(key) not in (None, "", [])]
        if said:
            found[name] = ", ".join(said)
    if manifest.get("data"):
        found["data digest"] = str(manifest["data"])[:12]
    if manifest.get("glassformer"):
        found["code"] = f"glassformer {manifest['glassformer']}" + (
            f", commit {str(manifest['commit'])[:10]}" if manifest.get("commit") else ""
        )
    machine = manifest.get("machine", {})
    if machine.get("accelerators") or machine.get("cpu"):
        found["machine"] = ", ".join(machine.get("accelerators") or [str(machine["cpu"])])
    return found


def _few(values: set[str]) -> str:
    shown = sorted(values)
    return (
        shown[0]
        if len(shown) == 1
        else f"{len(shown)} values: {'; '.join(shown[:4])}{' ...' * (len(shown) > 4)}"
    )
