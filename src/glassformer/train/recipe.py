"""A recipe: everything that decides what a run learns. No torch, so that it can be read and planned at once.

name = "demo"                 also the run folder's name
task = "language"             what is learned, which decides what [data] and [model] hold
[about]                       hardware, minutes and loss to expect; measured, not used
[data] [tokenizer] [model]    text/config.py, model/config.py
[train]                       how long, how much at a time, what to keep
[optimizer] [schedule]        how weights change
[engine]                      how this machine is used; `auto` measures
[faults]                      what to do about numbers that would spoil the weights
[parallel]                    how the work is divided over ranks

    task        model              learns
    language    decoder            to go on with a text
    mask        encoder            to guess hidden tokens of a text
    label       encoder            to tell which class a text is of
    translate   encoder-decoder    to write a target for a source
    classify    plain network      to say the class of a row
    regress     plain network      to say a number, or several, for a row
    marks       plain network      to say yes or no for each of several columns
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from glassformer.configs import Clash, Config, build, merge, override, read_toml
from glassformer.errors import UsageError, nearest
from glassformer.model.config import ModelConfig
from glassformer.model.network import HEADS, NetworkConfig
from glassformer.text.config import DataConfig, LabelConfig, MaskConfig, PairConfig, TokenizerConfig
from glassformer.text.table_config import TableConfig, Targets
from glassformer.train.config import (
    DURATIONS,
    About,
    EngineConfig,
    FaultsConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    TrainConfig,
)


class BaseRecipe(Config):
    """What every recipe holds, whatever is learned."""

    unit: ClassVar[str] = "token"
    """What is learned from, one at a time."""

    name: str = Field("run", pattern=r"^[\w.-]+$")
    task: str
    about: About = About()
    train: TrainConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    engine: EngineConfig = EngineConfig()
    faults: FaultsConfig = FaultsConfig()
    parallel: ParallelConfig = ParallelConfig()

    @model_validator(mode="after")
    def _can_be_sharded(self) -> Self:
        if self.parallel.shard == 1:
            return self
        problems = []
        if self.optimizer.kind in WHOLE_MATRICES:
            problems.append(
                f"optimizer.kind '{self.optimizer.kind}' needs whole matrices, but parallel.shard divides them; "
                "take adamw, or shard = 1"
            )
        if self.engine.compile == "on":
            problems.append("engine.compile 'on' has no effect with parallel.shard: sharded steps are eager")
        if problems:
            raise Clash(problems)
        return self

    @property
    def loss_unit(self) -> str:
        return "nats per token"

    def resolved(self) -> dict[str, Any]:
        """Every value, as TOML can hold it (what is None is left out, or false for clip)."""
        values = self.model_dump(mode="json", exclude_none=True)
        if self.train.clip is None:
            values["train"]["clip"] = False
        return values


class TransformerRecipe(BaseRecipe):
    """A recipe whose model is a Transformer over tokens."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = Field(default_factory=ModelConfig, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _kind_of_the_task(cls, values: Any) -> Any:
        """A model's kind follows from the task when it is left out."""
        kind = _KINDS[cls.model_fields["task"].default]
        model = values.get("model", {}) if isinstance(values, Mapping) else None
        return {**values, "model": {"kind": kind, **model}} if isinstance(model, Mapping) else values

    @model_validator(mode="after")
    def _the_tasks_kind(self) -> Self:
        kind = _KINDS[self.task]
        if self.model.kind != kind:
            raise ValueError(f"task '{self.task}' trains a model of kind '{kind}', not '{self.model.kind}'")
        return self


class Recipe(TransformerRecipe):
    """Text in, a decoder out."""

    task: Literal["language"] = "language"
    data: DataConfig = DataConfig()


class PairRecipe(TransformerRecipe):
    """Pairs of texts in, an encoder-decoder out."""

    task: Literal["translate"] = "translate"
    data: PairConfig = PairConfig()


class MaskRecipe(TransformerRecipe):
    """Text in, an encoder out."""

    task: Literal["mask"] = "mask"
    data: DataConfig = DataConfig()
    mask: MaskConfig = MaskConfig()

    @model_validator(mode="before")
    @classmethod
    def _a_token_that_hides(cls, values: Any) -> Any:
        """The tokenizer learns one by itself."""
        given = values.get("tokenizer", {}) if isinstance(values, Mapping) else None
        if not isinstance(given, Mapping) or given.get("path"):
            return values
        return {**values, "tokenizer": {"mask_token": True, **given}}

    @model_validator(mode="after")
    def _guesses_tokens(self) -> Self:
        if self.model.head != "tokens":
            raise ValueError(f"task 'mask' trains a model with head 'tokens', not '{self.model.head}'")
        if not (self.tokenizer.path or self.tokenizer.mask_token):
            raise ValueError("task 'mask' needs tokenizer.mask_token = true")
        return self


class LabelRecipe(TransformerRecipe):
    """Texts with their classes in, a classifier out."""

    task: Literal["label"] = "label"
    data: LabelConfig = LabelConfig()

    @model_validator(mode="before")
    @classmethod
    def _a_head_for_classes(cls, values: Any) -> Any:
        model = values.get("model", {}) if isinstance(values, Mapping) else None
        return {**values, "model": {"head": "classes", **model}} if isinstance(model, Mapping) else values

    @model_validator(mode="after")
    def _tells_classes(self) -> Self:
        if self.model.head != "classes":
            raise ValueError(f"task 'label' trains a model with head 'classes', not '{self.model.head}'")
        return self


class TableRecipe(BaseRecipe):
    """Rows in, a plain network out, whose head follows from the task. What others count in tokens is rows here."""

    unit: ClassVar[str] = "row"
    task: Literal["classify", "regress", "marks"] = "classify"
    data: TableConfig = TableConfig()
    model: NetworkConfig = Field(default_factory=NetworkConfig, validate_default=True)

    @property
    def targets(self) -> Targets:
        """What the target columns hold."""
        return TARGETS[self.task]

    @property
    def loss_unit(self) -> str:
        return "squared error, standardised" if self.task == "regress" else "nats per row"

    @model_validator(mode="before")
    @classmethod
    def _head_of_the_task(cls, values: Any) -> Any:
        model = values.get("model", {}) if isinstance(values, Mapping) else None
        targets = TARGETS.get(str(values.get("task", "classify"))) if isinstance(values, Mapping) else None
        if targets is None or not isinstance(model, Mapping):
            return values
        return {**values, "model": {"head": HEADS[targets], **model}}

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        head, train = HEADS[self.targets], self.train
        problems = []
        if self.model.head != head:
            problems.append(f"task '{self.task}' needs model.head '{head}', not '{self.model.head}'")
        for name in ("sample_prompts", "sample_tokens"):
            if getattr(train, name) != TrainConfig.model_fields[name].default:
                problems.append(f"train.{name} has no effect on rows, of which a few held out are shown")
        if train.z_loss and self.task != "classify":
            problems.append(f"train.z_loss {train.z_loss:g} has no effect with task '{self.task}'")
        if train.label_smoothing and self.task == "regress":
            problems.append(f"train.label_smoothing {train.label_smoothing:g} has no effect on numbers")
        if self.engine.attention != "auto":
            problems.append(
                f"engine.attention '{self.engine.attention}' has no effect: a plain network has none"
            )
        if problems:
            raise Clash(problems)
        return self


AnyRecipe = Recipe | PairRecipe | MaskRecipe | LabelRecipe | TableRecipe
RECIPES: dict[str, type[AnyRecipe]] = {
    "language": Recipe, "translate": PairRecipe, "mask": MaskRecipe, "label": LabelRecipe,
    "classify": TableRecipe, "regress": TableRecipe, "marks": TableRecipe,
}  # fmt: skip
TARGETS: dict[str, Targets] = {"classify": "classes", "regress": "numbers", "marks": "marks"}
WHOLE_MATRICES = ("muon", "adafactor")
"""Optimisers that look at a whole matrix, not at one weight after the other."""
_KINDS = {"language": "decoder", "translate": "encoder-decoder", "mask": "encoder", "label": "encoder"}
_DEMOS = {
    "language": "demo", "translate": "demo-translate", "mask": "demo-mask", "label": "demo-label",
    "classify": "demo-digits",
}  # fmt: skip
_OWN = {**_DEMOS, **dict.fromkeys(TARGETS, "demo-digits"), "translate": "multi30k-de-en"}
"""Whose settings, but for the data, are those of data of one's own: for sentences, not those of numbers in words."""


class LoadedRecipe(NamedTuple):
    recipe: AnyRecipe
    base: Path
    """The folder that the recipe's relative paths start from."""


def load_recipe(
    what: str | Path | Sequence[str | Path] | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    task: str | None = None,
) -> LoadedRecipe:
    """A recipe from its name, its file, texts to train on, or its values; None is the demo of the task.

    `overrides` maps dotted names to values: `{"model.width": 64}`. `task` is what to learn from texts of one's
    own, or from no text at all: `language` when it is left out.
    """
    if task is not None and task not in RECIPES:
        raise UsageError(f"There is no task {task!r};", expected=nearest(task, RECIPES))
    values, base, origin = _find(what, task)
    changes = dict(overrides or {})
    chosen = [name for name in DURATIONS if f"train.{name}" in changes]
    if chosen:  # a duration given by hand replaces the recipe's own, whatever its unit
        train = {key: value for key, value in values.get("train", {}).items() if key not in DURATIONS}
        values = {**values, "train": train}
    values = override(values, changes)
    named = values.get("task", "language")
    if named not in RECIPES:
        raise UsageError(f"{origin} has task = {named!r};", expected=nearest(str(named), RECIPES))
    if task is not None and named != task:
        raise UsageError(f"{origin} is for task {named!r}, not {task!r}.", do="Leave --task out.")
    return LoadedRecipe(build(RECIPES[named], values, origin=origin), base)


def names_a_recipe(what: Any) -> bool:
    """Whether `what` is a recipe (its values, its file, its name or nothing), not text to train on."""
    if what is None or isinstance(what, Mapping):
        return True
    texts = [what] if isinstance(what, str | Path) else list(what)
    first = Path(texts[0]) if texts else Path()
    return not texts or first.suffix == ".toml" or (str(first) in recipes() and not first.exists())


def recipes() -> dict[str, Path]:
    """The recipes that come with glassformer, by name."""
    folder = Path(str(resources.files("glassformer.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _find(
    what: str | Path | Sequence[str | Path] | Mapping[str, Any] | None, task: str | None
) -> tuple[dict[str, Any], Path, str]:
    packaged = recipes()
    if isinstance(what, Mapping):
        return dict(what), Path.cwd(), "The recipe"
    texts = [] if what is None else [what] if isinstance(what, str | Path) else list(what)
    if not texts and task is not None and task not in _DEMOS:
        raise UsageError(
            f"Task {task!r} has no demo.", expected="A table, and which of its columns to predict.",
            do=f"For example: glassformer train houses.csv --task {task} --data.target price",
        )  # fmt: skip
    if not texts:
        demo = _DEMOS[task or "language"]
        return read_toml(packaged[demo]), Path.cwd(), f"The recipe {demo}"
    first = Path(texts[0])
    if len(texts) == 1 and str(first) in packaged and not first.exists():
        return read_toml(packaged[str(first)]), Path.cwd(), f"The recipe {first}"
    if len(texts) == 1 and first.suffix == ".toml":
        return read_toml(first), first.resolve().parent, f"The recipe {first}"
    recipe = next((str(text) for text in texts if Path(text).suffix == ".toml"), None)
    if recipe is not None:
        others = ", ".join(str(text) for text in texts if str(text) != recipe)
        raise UsageError(f"The recipe {recipe} stands with {others}.", expected="A recipe alone, or texts.")
    for text in map(str, texts):
        if not Path(text).exists() and not any(letter in text for letter in "*?["):
            raise UsageError(
                f"There is no recipe, file or folder {text!r};",
                expected=nearest(text, packaged),
                do="Give a recipe's name, a .toml file, or text files or folders to train on.",
            )
    own_text = {
        "name": first.stem.strip("*?[].") or "text",
        "about": {},
        **({"task": task} if task else {}),
        "data": {"paths": [str(Path(text).absolute()) for text in texts]},
    }
    shown, own = ", ".join(map(str, texts)), _OWN[task or "language"]
    values = merge({**read_toml(packaged[own]), "about": {}, "data": {}}, own_text)
    return values, Path.cwd(), f"The {own} recipe on {shown}"
