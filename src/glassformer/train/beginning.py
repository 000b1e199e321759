"""Where training begins: the folder, and when it is not from nothing, another model's weights and what goes with them.

A recipe of one's own says what the model is, and of the weights those that fit are taken. For texts of one's own the
recipe is made up, so the model's sizes and its tokenizer are the other model's: whatever `load` opens, a run, a model
folder, one of Hugging Face's or a .gguf file, is trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from glassformer.errors import RunError
from glassformer.files import cache_folder
from glassformer.run import checkpoints
from glassformer.run.folder import Run
from glassformer.run.tensors import read_tensors
from glassformer.train.recipe import AnyRecipe, LoadedRecipe, load_recipe, names_a_recipe
from glassformer.use.load import NETWORK, WEIGHTS, load, model_type


def recipe_for(
    what: str | Path | Sequence[str | Path] | Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
    *,
    task: str | None = None,
    init_from: Path | None = None,
) -> LoadedRecipe:
    """The recipe, as `load_recipe` finds it; for texts of one's own, with the model and tokenizer of `init_from`."""
    if init_from is None or names_a_recipe(what) or not _is_model(init_from):
        return load_recipe(what, overrides, task=task)
    found = load(init_from)
    kept = cache_folder() / "tokenizers" / found.tokenizer.digest[:32] / "tokenizer.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        found.tokenizer.save(kept)
    sizes = found.config.model_dump(mode="json", exclude_none=True)
    theirs = {f"model.{name}": value for name, value in sizes.items()}
    return load_recipe(what, {"tokenizer.path": str(kept), **theirs, **overrides}, task=task)


def find_unfinished(recipe: AnyRecipe, root: Path = Path("runs")) -> Path | None:
    """The newest run of just this recipe that has not come to its end: the same command again goes on, also when
    the work is divided otherwise or takes less memory, and with it what can be done about faults."""
    if not root.is_dir():
        return None
    wanted = _what_stays(recipe.resolved())
    open_runs = [
        run.path
        for run in Run.list(root)
        if _what_stays(run.recipe) == wanted
        and run.summary()["status"] in ("new", "stopped", "killed")
        and not run.in_use()
    ]
    return max(open_runs, key=_number, default=None)


def _what_stays(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what may change before the same run goes on."""
    engine = {key: value for key, value in recipe["engine"].items() if key != "activation_memory"}
    train = {key: value for key, value in recipe["train"].items() if key != "accumulate"}
    return {**recipe, "engine": engine, "train": train, "parallel": None, "faults": None}


def next_run_folder(name: str, root: Path = Path("runs")) -> Path:
    """`runs/<name>-<n>`, the first n that is free."""
    return next(path for n in itertools.count(1) if not (path := root / f"{name}-{n}").exists())


def start_from(wanted: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], str]:
    """(`wanted`, every weight that fits taken from a model, a run or a .safetensors file; what became of each)."""
    ours = [
        folder for folder in (path, path / "model") if (model_type(folder) or "").startswith("glassformer")
    ]
    is_file = path.is_file() and path.suffix != ".gguf"  # what is no .safetensors is refused with a reason
    if is_file or ours:
        saved = read_tensors(path if is_file else ours[0] / WEIGHTS)
    elif _is_model(path):
        saved = dict(load(path).model.named_parameters())
    else:
        newest = checkpoints.load_newest(path / "checkpoints", only={"model"}, set_aside=False)
        if newest is None:
            raise RunError(
                f"There are no weights in {path}.",
                do="Give a run, a model folder, a .gguf or a .safetensors file.",
            )
        saved = newest.tensors["model"]
    matching, report = checkpoints.matching_tensors(saved, wanted)
    if not matching:
        raise RunError(f"No tensor of {path} fits this model.", do="Compare the two configurations.")
    missed = [f"{row['tensor']} ({row['outcome']})" for row in report if row["outcome"] != "loaded"]
    message = f"starts from {path.name}: {len(matching)} tensors loaded"
    return {**wanted, **matching}, message + (f"; not {', '.join(missed)}" if missed else "")


def _is_model(path: Path) -> bool:
    """Whether `load` opens it: a plain network has its own loader, and no tokenizer to take."""
    kinds = {model_type(path), model_type(path / "model")} - {None}
    return path.suffix == ".gguf" or bool(kinds - {NETWORK})


def _number(path: Path) -> int:
    tail = path.name.rpartition("-")[2]
    return int(tail) if tail.isdigit() else 0
