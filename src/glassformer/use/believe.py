"""Can it be believed? One network's reliability on rows held out, and what temperature scaling would do.

    part         the test rows, which nothing has seen; without any, the validation rows
    reliability  of the network as it was trained, T = 1 (`calibrate.py` has the formulas)
    temperature  fitted on the validation rows, judged on the test rows: never on those it was fitted on
    mistakes     where it was most sure and wrong, which is where one looks first

`judge_predictions` says how often it is right, or by how much it is off:

    accuracy = the share of right classes (or of right yes and no)
    rmse     = sqrt(mean (y - prediction)^2), in the target's own unit
    R^2      = 1 - sum (y - prediction)^2 / sum (y - mean y)^2: 0 is what always saying the mean gives
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from glassformer import configs
from glassformer.errors import ModelError, RunError, UsageError
from glassformer.run.folder import Run
from glassformer.text.table_config import TableConfig, Targets
from glassformer.text.tables import PreparedTable, Table, prepare_table
from glassformer.use.calibrate import Calibration, Temperature
from glassformer.use.predict import Predictor, answers, calibrate, measure_calibration, save_network
from glassformer.use.row_words import show_row

Part = Literal["test", "validation"]

_MISTAKES = 5


@dataclass(frozen=True, slots=True)
class Reliability:
    """What `reliability_of` found."""

    kind: Targets
    part: Part
    measured: Calibration
    """With temperature 1."""
    temperature: Temperature | None
    """None where none can be fitted; `reason` says why."""
    scaled: Calibration | None
    """With that temperature, on the test rows; None without any."""
    reason: str
    mistakes: tuple[dict[str, Any], ...]

    @property
    def verdict(self) -> str:
        """Whether it can be taken at its word, in a sentence."""
        found = self.measured
        about = f"On {found.num_rows:,} {self.part} rows the ECE is {found.ece:.3f}"
        chance = f"{found.ece_by_chance_high:.3f}"
        if found.looks_calibrated:
            return (
                f"{about}. That is within what chance explains (up to {chance}): it can be taken at its word."
            )
        lean = "too sure of itself" if found.confidence > found.accuracy else "less sure than it could be"
        return f"{about}, more than chance explains (up to {chance}): it is {lean}."

    @property
    def advice(self) -> str:
        """What temperature scaling would do, in a sentence."""
        t = self.temperature
        if t is None:
            return self.reason
        fitted = (
            f"T = {t.value:.2f} ± {t.standard_error:.2f}, fitted on {t.num_rows:,} "
            f"validation rows of which {t.num_wrong:,} are wrong."
        )
        if self.scaled is None:
            judged = "Without test rows there is nothing to judge it on: hold some out with data.test."
        else:
            judged = (
                f"On the test rows it takes the ECE from {self.measured.ece:.3f} to {self.scaled.ece:.3f}."
            )
        return f"{fitted} {judged}"

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.temperature.warnings if self.temperature else ()

    def rows(self) -> list[dict[str, Any]]:
        """Before and after scaling, as `charts.reliability` draws them; a column `scores` tells them apart."""
        before = [{**row, "scores": "as trained"} for row in self.measured.rows()]
        after = self.scaled.rows() if self.scaled and self.temperature else []
        name = f"divided by T = {self.temperature.value:.2f}" if self.temperature else ""
        return before + [{**row, "scores": name} for row in after]

    def to_dict(self) -> dict[str, Any]:
        """The event `calibration`."""
        fields = asdict(self.measured)
        temperature: dict[str, Any] | None = None
        if self.temperature is not None:
            temperature = {**asdict(self.temperature), "matters": self.temperature.matters}
            temperature["ece"] = self.scaled.ece if self.scaled else None
        return {
            "part": self.part,
            "kind": self.kind,
            **{name: value for name, value in fields.items() if name != "bins"},
            "looks_calibrated": self.measured.looks_calibrated,
            "verdict": self.verdict,
            "advice": self.advice,
            "temperature": temperature,
            "warnings": list(self.warnings),
            "bins": self.rows(),
            "mistakes": list(self.mistakes),
        }


def reliability_of(model: Predictor, data: PreparedTable) -> Reliability:
    """How far a network can be taken at its word, on rows it was not trained on."""
    part: Part = "test" if len(data.test) else "validation"
    plain = replace(model, columns=model.columns.model_copy(update={"temperature": 1.0}))
    rows = data.test if part == "test" else data.validation
    measured = measure_calibration(plain, rows)
    temperature, scaled, reason = None, None, ""
    try:
        scaler, temperature = calibrate(plain, data.validation)
        scaled = measure_calibration(scaler, data.test) if part == "test" else None
    except ModelError as error:
        reason = " ".join((error.what, error.do)).strip()
    return Reliability(
        model.columns.kind, part, measured, temperature, scaled, reason, _mistakes(plain, data, rows)
    )


def apply_temperature(model: Predictor, found: Reliability, folder: Path) -> Predictor:
    """Store the temperature with the model in `folder`; predictions use it from then on."""
    if not folder.is_dir():
        raise ModelError(f"There is no finished model in {folder}.", do="Train the run to its end first.")
    if found.temperature is None:
        raise ModelError(f"There is no temperature to store. {found.reason}")
    columns = model.columns.model_copy(update={"temperature": found.temperature.value})
    save_network(folder, model.network, columns)
    return replace(model, columns=columns)


def open_table(run: Run, base: Path | None = None) -> PreparedTable:
    """The rows that a run was trained on and judged by: the same to the bit, or refused."""
    targets: dict[str, Targets] = {"classify": "classes", "regress": "numbers", "marks": "marks"}
    task = str(run.recipe.get("task", "language"))
    if task not in targets:
        raise UsageError(
            f"{run.path} is a run of task '{task}', which learns from text.",
            expected="A run of task classify, regress or marks.",
        )
    base = base or Path.cwd()
    config = configs.build(TableConfig, run.recipe.get("data", {}), origin=str(run.path / "recipe.toml"))
    data = prepare_table(config, targets[task], base=base)
    if data.digest != run.manifest.get("data"):
        raise RunError(
            f"The rows of {', '.join(config.paths)} are not those {run.path} was trained on.",
            expected=f"Expected data {str(run.manifest.get('data'))[:12]}, found {data.digest[:12]}.",
            do=f"Put back the files as they were, or say with --base where they are; now looked for in {base}.",
        )
    return data


def judge_predictions(model: Predictor, part: Table) -> dict[str, float | dict[str, float]]:
    """`accuracy` of classes, and of yes and no; `rmse` and `r2` of numbers (of several: `rmse` of each by name,
    and the mean `r2`). Empty for no rows."""
    if not len(part):
        return {}
    found, kind = answers(model, part.inputs), model.columns.kind
    if kind == "classes":
        return {"accuracy": float((found.argmax(axis=1) == part.targets).mean())}
    if kind == "marks":
        return {"accuracy": float(((found > 0.5) == (part.targets > 0.5)).mean())}
    wanted = model.columns.numbers(part.targets)
    squares = ((found - wanted) ** 2).sum(axis=0)
    spread = ((wanted - wanted.mean(axis=0)) ** 2).sum(axis=0)
    rmse = dict(zip(model.columns.targets, np.sqrt(squares / len(part)).tolist(), strict=True))
    r2 = {"r2": float((1 - squares / spread).mean())} if (spread > 0).all() else {}
    return {"rmse": next(iter(rmse.values())) if len(rmse) == 1 else rmse, **r2}


def _mistakes(model: Predictor, data: PreparedTable, rows: Table) -> tuple[dict[str, Any], ...]:
    """The rows whose class it got wrong, most sure first."""
    columns = model.columns
    if columns.kind != "classes":
        return ()
    found = answers(model, rows.inputs)
    said, sure = found.argmax(axis=1), found.max(axis=1)
    wrong = np.flatnonzero(said != rows.targets)
    order = wrong[np.argsort(-sure[wrong], kind="stable")][:_MISTAKES]
    names = columns.classes
    return tuple(
        {
            "row": data.origin(int(rows.rows[place])),
            "shown": show_row(columns, rows.inputs[place]),
            "says": names[said[place]],
            "sure": float(sure[place]),
            "is": names[int(rows.targets[place])],
            "sure_of_that": float(found[place, int(rows.targets[place])]),
        }
        for place in order.tolist()
    )
