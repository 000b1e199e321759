"""What the recipe says about a table of numbers: `[data]` of a plain network."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from glassformer.configs import Clash, Config, Names

Targets = Literal["classes", "numbers", "marks"]
"""What the target columns hold: one class a row, numbers, or a yes or no in each column."""


class TableConfig(Config):
    """Which rows, which columns, and how they become numbers around 0."""

    paths: Names = Field(("python:digits",), min_length=1)
    """Files (.csv, .tsv, .parquet, .npz), globs, folders of images in class sub-folders, or `python:digits`
    (scikit-learn's 1,797 handwritten digits of 8x8 pixels). Relative to the recipe's folder. All must have the
    same columns."""
    target: Names = ()
    """The column to predict, or several numbers or marks. Left out: the class of an image or a digit, and `y`
    in an .npz file; tables must name it."""
    features: Names = ()
    """The columns to predict it from; left out: all others."""
    validation: float = Field(0.2, ge=0, lt=1)
    """Fraction of rows held out from training, chosen by each row's own hash: adding rows moves none."""
    test: float = Field(0.0, ge=0, lt=1)
    """A further fraction that neither training nor temperature scaling ever sees."""
    standardise: bool = True
    """Each column minus its mean, divided by its standard deviation, both of the training rows; the pixels of
    an image share one mean and one deviation. Target numbers likewise; predictions are turned back."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = []
        for name in ("paths", "target", "features"):
            given = getattr(self, name)
            if twice := sorted({entry for entry in given if given.count(entry) > 1}):
                problems.append(f"{name} names {', '.join(twice)} more than once")
        if both := sorted(set(self.target) & set(self.features)):
            problems.append(
                f"target and features both name {', '.join(both)}; the answer cannot be given away"
            )
        if self.validation + self.test >= 1:
            problems.append(
                f"validation {self.validation:g} and test {self.test:g} leave nothing to train on"
            )
        if problems:
            raise Clash(problems)
        return self
