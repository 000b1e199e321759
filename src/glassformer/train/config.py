"""What a recipe says about training, table by table: `[train]`, `[optimizer]`, `[schedule]`, `[engine]`, `[faults]`,
`[parallel]`, `[about]`.

No torch, so that it can be read and planned at once. `recipe.py` puts the tables together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from glassformer.configs import Config

DURATIONS = ("steps", "tokens", "epochs", "minutes")


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
        given = [name for name in DURATIONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(DURATIONS)} (given: {', '.join(given) or 'none'})")
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


class FaultsConfig(Config):
    """`[faults]`: what to do about numbers that would spoil the weights. `train/faults.py` carries it out."""

    not_finite: Literal["skip", "roll_back", "stop"] = "roll_back"
    """Loss or gradient is NaN or infinite. Whatever is chosen, no weight is changed by it."""
    spike: Literal["log", "skip", "roll_back", "lower_rate", "stop"] = "log"
    """Loss or gradient is finite and far above what it was."""
    divergence: Literal["log", "lower_rate", "stop"] = "log"
    """The loss has risen slowly, without a spike."""
    window: int = Field(100, ge=20)
    """Steps whose loss and gradient a new one is compared with; nothing is called a spike before half as many."""
    deviations: float = Field(10.0, gt=0)
    """A spike is so many robust standard deviations (1.4826 MAD) above the median."""
    remember_every: int = Field(50, ge=0)
    """Steps between copies of the state in memory, to roll back to; 0: to the last checkpoint instead."""
    most: int = Field(5, ge=1)
    """So many faults within `within` steps, and the run stops."""
    within: int = Field(100, ge=1)
    lower_by: float = Field(0.5, gt=0, lt=1)
    """`lower_rate`: the factor of the learning rate, ..."""
    lower_for: int = Field(100, ge=1)
    """... for so many steps."""
    most_crashes: int = Field(5, ge=0)
    """So many crashes within `crash_steps` steps, and the run does not go on by itself; 0: it always does."""
    crash_steps: int = Field(100, ge=0)
    look_every: int = Field(50, ge=0)
    """Steps between looks for dead tensors, underflow and exploding logits; 0: never."""


class ParallelConfig(Config):
    """`[parallel]`: how the work is divided where there are several ranks. The curve is the same but for rounding."""

    shard: int | Literal["all"] = 1
    """Over so many ranks each weight is divided, with its gradient and what the optimiser remembers; all: over all."""
    timeout: float = Field(300.0, gt=0)
    """Seconds without a sign of life after which a rank is taken for dead; as long all wait for the last to begin."""

    @model_validator(mode="after")
    def _a_number_of_ranks(self) -> Self:
        if self.shard != "all" and self.shard < 1:
            raise ValueError(f"shard is {self.shard}; give a number of ranks from 1, or 'all'")
        return self
