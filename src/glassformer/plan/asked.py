"""What somebody wants to train, gathered from a preset, a recipe or a config: one `Asked`, each of its numbers with
where it comes from.

What nobody gave follows a rule that is named beside it: tokens, as many as the published law has for that size; a batch
of 0.58 D^0.571 tokens (Step Law, 2503.04715); a row of 4,096 tokens; bfloat16 where the accelerator has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from glassformer.errors import UsageError, nearest
from glassformer.plan.allocate import DEFAULT, best_tokens
from glassformer.plan.architecture import Architecture
from glassformer.plan.hardware import Accelerator, data_rows
from glassformer.plan.precision import PRECISIONS, Precision, precision
from glassformer.plan.presets import preset, presets
from glassformer.plan.quantity import Quantity

if TYPE_CHECKING:
    from glassformer.train.recipe import AnyRecipe

_AT_LEAST = 1024
"""Rows of a step, one for each accelerator, up to so many."""
LENGTH = 4096
"""Tokens in a row, where nobody says."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A model and what it is to be trained on."""

    name: str
    architecture: Architecture
    tokens: float | None = None
    """D; None where it has to follow from something else."""
    length: int = LENGTH
    read_length: int = 0
    batch: int | None = None
    """Rows of a step."""
    precision: str | None = None
    optimizer: str = "adamw"
    micro_batch: int | None = None
    """Rows computed at once, where a recipe says."""
    predicted: float = 1.0
    """Share of the tokens that the head is computed for: the hidden ones of an encoder."""
    minutes: float | None = None
    """How long a recipe trains, where it says that instead of tokens."""
    compile: str = "off"
    """What a recipe says of compiling: `auto` where the run is long enough, `on` or `off`."""
    own: bool = False
    """Whether glassformer trains it: a recipe."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each of these is from."""
    context: int | None = None
    """The longest row that the model takes, where it is held to one."""

    def quantity(self, name: str, value: float, unit: str) -> Quantity:
        return Quantity(name, value, unit=unit, source=self.sources.get(name, "given"))


def asked(what: Any, overrides: Mapping[str, Any] | None = None) -> Asked:
    """From a preset's name, a recipe's name or file or values, a config, or an architecture."""
    if isinstance(what, Asked):
        return what
    if isinstance(what, Architecture):
        return Asked(what.name, what, sources={"parameters": "given"})
    if isinstance(what, str) and not what.endswith(".toml") and (found := _preset(what, overrides)):
        return found
    if hasattr(what, "model") and hasattr(what, "train"):
        return _of_recipe(what)
    if hasattr(what, "kind"):  # ModelConfig, NetworkConfig
        length = getattr(what, "context", 1)
        return Asked("model", Architecture.of(what, "model"), length=length, context=length,
                     sources={"parameters": "given config", "length": "given config"})  # fmt: skip
    from glassformer.train.recipe import load_recipe, recipes

    if isinstance(what, str) and not what.endswith(".toml") and what not in recipes():
        raise UsageError(
            f"There is no recipe or preset {what!r};", expected=nearest(what, [*presets(), *recipes()]),
            do="List the presets with: glassformer plan presets",
        )  # fmt: skip
    return _of_recipe(load_recipe(what, overrides).recipe)


def with_tokens(want: Asked, law: str | None = None) -> Asked:
    """The same with D: as given, or as many as a law has for its size."""
    if want.tokens is not None:
        return want
    found = best_tokens(want.architecture.active_parameters, law or DEFAULT)
    said = f"the best number for this size by the law {law or DEFAULT}; --tokens says another"
    return replace(want, tokens=found, sources={**want.sources, "tokens": said})


def with_batch(want: Asked, count: int) -> Asked:
    """The same with a batch: as given, or 0.58 D^0.571 tokens, in rows that `count` accelerators can share."""
    if want.batch is not None:
        return want
    assert want.tokens is not None  # with_tokens
    rows = max(0.58 * want.tokens**0.571 / want.length, min(count, _AT_LEAST))
    odd = count
    while odd % 2 == 0:
        odd //= 2
    power = max(0, math.ceil(math.log2(rows / odd) - 0.5)) if odd < rows else 0
    batch = odd * 2**power
    said = "0.58 D^0.571 tokens (Step Law, 2503.04715), in rows that divide among the accelerators"
    return replace(want, batch=batch, sources={**want.sources, "batch": said})


def pick_precision(want: Asked, accelerator: Accelerator) -> Precision:
    """As given, or bfloat16 where it is quicker than 32 bits."""
    if want.precision is not None:
        return precision(want.precision)
    full = accelerator.peaks.get("fp32", 0.0)
    half = max(accelerator.peaks.get(name, 0.0) for name in ("bf16", "fp16"))
    if half < 1.2 * full:
        return PRECISIONS["fp32"]
    if want.own:
        return PRECISIONS["autocast"]
    return PRECISIONS["bf16" if "bf16" in accelerator.peaks else "fp16"]


def _preset(name: str, overrides: Mapping[str, Any] | None) -> Asked | None:
    """None where no preset is called so."""
    try:
        found = preset(name)
    except UsageError:
        return None
    if overrides:
        raise UsageError(
            f"{', '.join(overrides)} cannot change the preset {name}.", do="Write a recipe, and plan that."
        )
    said = f"preset {found.name}: {found.source}"
    run = next((row for row in data_rows("training_runs") if row["model"] == found.title), {})
    batch = run.get("global_batch_seqs")
    sources = dict.fromkeys(("parameters", "tokens", "length"), said)
    if batch:
        sources["batch"] = f"as that run had it: {run['source']}"
    return Asked(
        found.title, found.architecture, found.tokens, found.length or LENGTH, found.read_length,
        batch=int(batch) if batch else None, sources=sources, context=found.length,
    )  # fmt: skip


def _of_recipe(recipe: AnyRecipe) -> Asked:
    from glassformer.model.config import ModelConfig
    from glassformer.text.masked import num_picked
    from glassformer.train.recipe import MaskRecipe, TableRecipe

    model, train = recipe.model, recipe.train
    said = f"recipe {recipe.name}"
    sources = dict.fromkeys(("parameters", "tokens", "length", "batch", "precision"), said)
    if isinstance(model, ModelConfig) and model.vocab is None and not isinstance(recipe, TableRecipe):
        tokenizer = recipe.tokenizer
        size = {"bytes": 257, "characters": 128}.get(tokenizer.kind, tokenizer.vocab)
        model = model.model_copy(update={"vocab": size})
        if tokenizer.kind == "characters" or tokenizer.path:
            sources["parameters"] += f", with a vocabulary taken for {size:,}"
    length = getattr(model, "context", 1)
    tokens = train.tokens if train.steps is None else train.steps * train.batch * length
    return Asked(
        recipe.name, Architecture.of(model, recipe.name), float(tokens) if tokens else None, length,
        read_length=length if model.kind == "encoder-decoder" else 0, batch=train.batch,
        precision=None if recipe.engine.precision == "auto" else recipe.engine.precision,
        predicted=num_picked(recipe.mask, length) / length if isinstance(recipe, MaskRecipe) else 1.0,
        optimizer=recipe.optimizer.kind, micro_batch=max(1, train.batch // train.accumulate), minutes=train.minutes,
        compile=recipe.engine.compile, own=True, sources=sources, context=length,
    )  # fmt: skip
