"""A recipe: everything that decides what a run learns. No torch, so that it can be read and planned at once.

name = "demo"                 also the run folder's name
task = "language"             what is learned, which decides what [data] and [model] hold
[about]                       hardware, minutes and loss to expect; measured, not used
[data] [tokenizer] [model]    text/config.py, model/config.py
[train]                       how long, how much at a time, what to keep
[optimizer] [schedule]        how weights change
[engine]                      how this machine is used; `auto` measures

    task        model              learns
    language    decoder            to go on with a text
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
from glassformer.text.config import DataConfig, PairConfig, TokenizerConfig
from glassformer.text.table_config import TableConfig, Targets

_DURATIONS = ("steps", "tokens", "epochs", "minutes")


class About(Config):
    """`[about]`: the claim a recipe makes; a test or a benchmark holds it."""

    text: str = ""
    """What it is for, in a sentence."""
    hardware: str = ""
    """Where the figures below were measured."""
    minutes: float | None = None
    """How long it took there."""
    loss: float | None = None
    """Validation loss it reached, in nats per token."""


class TrainConfig(Config):
    """`[train]`"""

    steps: int | None = Field(None, ge=0)
    """How long: this many updates. Give one of steps, tokens, epochs or minutes."""
    tokens: int | None = Field(None, ge=1)
    """How long: this many tokens."""
    epochs: float | None = Field(None, gt=0)
    """How long: this many times over the training text."""
    minutes: float | None = Field(None, gt=0)
    """How long: turned into steps by the measured speed when the run begins, and kept on resume."""
    batch: int = Field(32, ge=1)
    """Rows of `model.context` tokens in each update."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches an update is made of; the batch is divided among them, the mathematics stay the same."""
    clip: float | None = Field(1.0, gt=0)
    """The longest gradient (Euclidean norm over all weights) an update may use; false for none."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    z_loss: float = Field(0.0, ge=0)
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints; the last step always has one."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept."""
    validate_every: int = Field(250, ge=1)
    """Steps between measurements on the validation text; the last step always has one."""
    validation_tokens: int | None = Field(200_000, ge=1)
    """At most this much of it each time (the first so many tokens); the last time all of it."""
    sample_every: int = Field(500, ge=1)
    """Steps between samples; the last step always has some."""
    sample_prompts: tuple[str, ...] | None = None
    """What samples begin with, or translate; left out, a new line, or texts that are held out."""
    sample_tokens: int = Field(120, ge=0)
    average: int = Field(1, ge=1)
    """The finished model is the mean of so many newest checkpoints (Vaswani et al. 2017: 5)."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of the loss curve."""
    seed: int = Field(0, ge=0)
    """Decides starting weights, the order of samples and dropout."""

    @model_validator(mode="before")
    @classmethod
    def _no_clip(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("clip") is False:
            return {**values, "clip": None}
        return values

    @model_validator(mode="after")
    def _one_duration(self) -> Self:
        given = [name for name in _DURATIONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(_DURATIONS)} (given: {', '.join(given) or 'none'})")
        if self.average > self.keep:
            raise ValueError(f"average {self.average} needs as many checkpoints, but keep is {self.keep}")
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} does not divide into {self.accumulate} micro-batches")
        return self


class OptimizerConfig(Config):
    """`[optimizer]`"""

    kind: Literal["sgd", "adam", "adamw", "lion", "adafactor", "muon"] = "adamw"
    """`muon` updates the blocks' matrices and leaves everything else to AdamW."""
    learning_rate: float = Field(3e-3, gt=0)
    matrix_learning_rate: float = Field(0.02, gt=0)
    """Muon's own, for the blocks' matrices."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Of sgd and muon."""
    betas: tuple[float, float] = (0.9, 0.95)
    """How slowly the averages of gradient and squared gradient change (adam, adamw, lion, muon's AdamW)."""
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    """Of matrices only; gains and biases have none."""


class ScheduleConfig(Config):
    """`[schedule]`: the learning rate over the run, as a factor."""

    kind: Literal["constant", "linear", "cosine", "noam", "inverse_sqrt", "wsd"] = "cosine"
    warmup: float = Field(0.02, ge=0)
    """Steps of rising rate; below 1, a fraction of the run."""
    decay: float = Field(0.3, ge=0, le=1)
    """wsd: the last fraction of the run, in which the rate falls."""
    final: float = Field(0.1, ge=0, le=1)
    """Factor at the end (linear, cosine, wsd)."""


class EngineConfig(Config):
    """`[engine]`: `auto` measures a few real steps and takes the quickest."""

    device: str = "auto"
    """cpu, cuda, cuda:1, ..."""
    precision: Literal["auto", "fp32", "autocast", "bf16"] = "auto"
    """`autocast`: products in bfloat16, weights in float32. `bf16`: bfloat16 weights with float32 masters."""
    compile: Literal["auto", "on", "off"] = "auto"
    attention: Literal["auto", "fused", "explicit", "blocks"] = "auto"


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


AnyRecipe = Recipe | PairRecipe | TableRecipe
RECIPES: dict[str, type[AnyRecipe]] = {
    "language": Recipe, "translate": PairRecipe,
    "classify": TableRecipe, "regress": TableRecipe, "marks": TableRecipe,
}  # fmt: skip
TARGETS: dict[str, Targets] = {"classify": "classes", "regress": "numbers", "marks": "marks"}
_KINDS = {"language": "decoder", "translate": "encoder-decoder"}
_DEMOS = {"language": "demo", "translate": "demo-translate", "classify": "demo-digits"}
_OWN_ROWS = dict.fromkeys(TARGETS, "demo-digits")
"""Whose settings, but for the data, are those of rows of one's own."""


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
    chosen = [name for name in _DURATIONS if f"train.{name}" in changes]
    if chosen:  # a duration given by hand replaces the recipe's own, whatever its unit
        train = {key: value for key, value in values.get("train", {}).items() if key not in _DURATIONS}
        values = {**values, "train": train}
    values = override(values, changes)
    named = values.get("task", "language")
    if named not in RECIPES:
        raise UsageError(f"{origin} has task = {named!r};", expected=nearest(str(named), RECIPES))
    if task is not None and named != task:
        raise UsageError(f"{origin} is for task {named!r}, not {task!r}.", do="Leave --task out.")
    return LoadedRecipe(build(RECIPES[named], values, origin=origin), base)


def recipes() -> dict[str, Path]:
    """The recipes that come with glassformer, by name."""
    folder = Path(str(resources.files("glassformer.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _find(
    what: str | Path | Sequence[str | Path] | Mapping[str, Any] | None, task: str | None
) -> tuple[dict[str, Any], Path, str]:
    packaged = recipes()
    demo = packaged[_OWN_ROWS.get(str(task)) or _DEMOS[task or "language"]]
    if isinstance(what, Mapping):
        return dict(what), Path.cwd(), "The recipe"
    texts = [] if what is None else [what] if isinstance(what, str | Path) else list(what)
    if not texts and task is not None and task not in _DEMOS:
        raise UsageError(
            f"Task {task!r} has no demo.", expected="A table, and which of its columns to predict.",
            do=f"For example: glassformer train houses.csv --task {task} --data.target price",
        )  # fmt: skip
    if not texts:
        return read_toml(demo), Path.cwd(), f"The recipe {demo.stem}"
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
    shown = ", ".join(map(str, texts))
    values = merge({**read_toml(demo), "about": {}, "data": {}}, own_text)
    return values, Path.cwd(), f"The {demo.stem} recipe on {shown}"
