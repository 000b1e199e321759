"""What one kind of learning brings to the loop; everything else is the same for all of them.

    language    train/language.py       a decoder goes on with a text
    mask        train/masking.py        an encoder guesses hidden tokens
    label       train/labelling.py      an encoder tells which class a text is of
    translate   train/translation.py    an encoder-decoder writes a target for a source
    classify, regress, marks   train/tables.py   a plain network predicts a column from the others

A task is made from its recipe before the first step, with its data read and its model's sizes known. The loop
asks it for a model, for batches by step, for what is held out, and for what is worth showing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import nn

from glassformer.errors import ConfigError
from glassformer.model import count
from glassformer.model.config import ModelConfig
from glassformer.model.shapes import Shape, matrices, shapes
from glassformer.model.stacks import build
from glassformer.text.tokenizer import Tokenizer
from glassformer.train.recipe import TransformerRecipe
from glassformer.use.load import Loaded, save_model

Event = dict[str, Any]
Progress = Callable[[str], None]


class Batch(Protocol):
    """Rows to learn from; what they hold is the model's business."""

    @property
    def sample_ids(self) -> NDArray[Any]:
        """Names each row."""

    @property
    def num_targets(self) -> int:
        """How many predictions the loss is the mean of."""

    def arrays(self) -> Mapping[str, NDArray[Any] | None]:
        """The keyword arguments of the model's loss, rows first in each."""


class Batches(Protocol):
    """`batch(step)` is a pure function."""

    num_samples: int
    waste: float
    warnings: list[str]

    @property
    def tokens_per_batch(self) -> int: ...

    def batch(self, step: int) -> Batch: ...


class Task(ABC):
    """One kind of learning, its data ready."""

    recipe: Any
    """One of `train/recipe.py`."""
    config: Any
    """The model's, its sizes known."""
    digests: Mapping[str, str]
    """Of the data, and of the tokenizer where there is one: a run goes on only with the same."""
    report: Mapping[str, Any]
    """What the data is, for the run's report."""
    warnings: Sequence[str]
    batches: Batches
    training_tokens: int
    validation_tokens: int
    sizes: Mapping[str, int]
    """Of the model, as far as the data decides them."""
    shapes: Mapping[str, Shape]
    """Every tensor of the model."""
    matrices: Mapping[str, Shape]
    """What vectors are multiplied by."""
    flops_per_token: int

    @abstractmethod
    def build(self, device: str | torch.device) -> nn.Module:
        """The model, its weights drawn from the recipe's seed."""

    @abstractmethod
    def keep(self, folder: Path) -> None:
        """Write into the run what its model cannot be read without."""

    @abstractmethod
    def validation(self, rows: int) -> Iterator[Batch]:
        """Everything held out, in order, in batches of so many rows."""

    def num_bytes(self, batch: Any) -> int:
        """Bytes of text that the batch's targets stand for; 0 where they are no text."""
        return 0

    def samples(self, model: nn.Module) -> Iterator[Event]:
        """What the model makes of some prompts: events `sample`, or `warning`."""
        yield from ()

    def judge(self, model: nn.Module, *, whole: bool) -> Event:
        """More numbers on what is held out; `whole` once training is over."""
        return {}

    @abstractmethod
    def save(self, folder: Path, model: nn.Module) -> None:
        """Write the finished model."""

    def picture(self, model: nn.Module) -> Event | None:
        """One attention pattern worth looking at."""
        return None

    def findings(self, model: nn.Module) -> Iterator[Event]:
        """What the finished model is worth being asked: events `attention`, `calibration`."""
        picture = self.picture(model)
        if picture is not None:
            yield {"event": "attention", **picture}


class OnTokens(Task):
    """What the tasks with a Transformer over tokens share."""

    config: ModelConfig

    def __init__(self, recipe: TransformerRecipe, tokenizer: Tokenizer, classes: int | None = None) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer
        size = tokenizer.vocab_size
        if recipe.model.vocab is not None and recipe.model.vocab < size:
            raise ConfigError(
                "The model does not fit the tokenizer:",
                [f"model.vocab is {recipe.model.vocab}, but the tokenizer has {size} tokens"],
                do="Leave model.vocab out, or raise it.",
            )
        self.config = recipe.model.model_copy(
            update={"vocab": recipe.model.vocab or size, "classes": classes}
        )
        self.shapes, self.matrices = shapes(self.config), matrices(self.config)
        self.sizes = {"vocab": self.config.vocab_size}
        self.flops_per_token = count.flops_per_token(self.config, "matmul")

    def build(self, device: str | torch.device) -> nn.Module:
        return build(self.config, seed=self.recipe.train.seed, device=device)

    def keep(self, folder: Path) -> None:
        self.tokenizer.save(folder / "tokenizer.json")

    def save(self, folder: Path, model: nn.Module) -> None:
        save_model(folder, self.loaded(model).model, self.tokenizer)

    def loaded(self, model: nn.Module) -> Loaded:
        """The model as `use` takes it."""
        return Loaded(model, self.tokenizer, self.config, Path())  # type: ignore[arg-type] # `build` made it
