"""What a report of a scaling law should say, and what this one does say: (Mis)Fitting's four groups of questions.

Li, Kudugunta and Zettlemoyer 2025 (2502.18969) read 51 papers: 19 release code, 23 leave out the optimiser of the fit,
15 how parameters or FLOPs were counted. The questions here are after their four groups: the law's form, the training
set-up, how points were collected, how the law was fitted. Answers are read from the law and from what the runs wrote
down; what nobody wrote down is said to be unknown.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glassformer.scale.laws import FORMULAS
from glassformer.scale.solve import Huber, Student
from glassformer.units import show_count

if TYPE_CHECKING:
    from glassformer.scale.fit import Law
    from glassformer.scale.forecast import Forecaster

UNKNOWN = "unknown"
_PRIORS = "weak priors on alpha, beta and E"


@dataclass(frozen=True)
class Answer:
    """One question of the checklist."""

    group: str
    question: str
    answer: str

    @property
    def known(self) -> bool:
        return self.answer != UNKNOWN

    def row(self) -> dict[str, Any]:
        return asdict(self)


def checklist(law: Law, forecaster: Forecaster | None = None) -> list[Answer]:
    """All questions with their answers."""
    return [*_form(law), *_training(law), *_collection(law), *_fitting(law, forecaster)]


def score(answers: list[Answer]) -> str:
    """How many are answered, in words."""
    return f"{sum(answer.known for answer in answers)} of {len(answers)} questions are answered"


def _form(law: Law) -> list[Answer]:
    held = ", ".join(f"{name} = {value:g}" for name, value in law.held.items())
    p = law.points
    return _group("form", {
        "Which law": FORMULAS.get(law.form, law.form),
        "What it is of": "N parameters, D training tokens, C training FLOPs, L loss",
        "Unit of the loss": p.unit if p else None,
        "Tokenizer": p.tokenizer if p else None,
        "What is taken for granted": held or (_PRIORS if law.prior else "nothing but the form"),
    })  # fmt: skip


def _training(law: Law) -> list[Answer]:
    p = law.points
    if p is None:
        return []
    about = {name: str(value) for name, value in p.about.items()}
    low, high = p.ranges()["N"]
    lr = p.lr
    rates = None if lr is None else f"{len(np.unique(lr))} values, {lr.min():.3g} to {lr.max():.3g}"
    return _group("training set-up", {
        "How many models": f"{len(set(p.runs))} runs, {len(np.unique(p.N))} sizes",
        "Range of sizes": f"{show_count(low)} to {show_count(high)} parameters",
        "How parameters and FLOPs are counted": p.counting,
        "C against 6 N D": f"{np.median(p.C / (6 * p.N * p.D)):.3g} (median)",
        "Data": about.get("data"), "Data digest": about.get("data digest"),
        "Architecture": about.get("architecture"), "Vocabulary": about.get("vocabulary"),
        "Optimizer": about.get("optimizer"), "Learning rate": about.get("learning rate", rates),
        "Schedule": about.get("schedule"), "Batch": about.get("batch"), "Context": about.get("context"),
        "Precision": about.get("precision"), "Seeds": about.get("seed"), "Code": about.get("code"),
        "Machine": about.get("machine"),
    })  # fmt: skip


def _collection(law: Law) -> list[Answer]:
    p = law.points
    if p is None:
        return []
    many = len(p) > len(set(p.runs))
    warm = p.warm
    return _group("data collection", {
        "How many points": f"{len(p)} of {len(set(p.runs))} runs",
        "Which checkpoints": "several of each run" if many else "one of each run",
        "Was the learning rate decayed": None if warm is None
        else "in all" if not warm.any() else f"not in {warm.mean():.0%} of the points",
        "Compute": f"{p.C.min():.3g} to {p.C.max():.3g} FLOPs",
        "Tokens for each parameter": f"{(p.D / p.N).min():.3g} to {(p.D / p.N).max():.3g}",
        "Repeated text": None if p.U is None else f"{int((p.D / p.U > 1.01).sum())} runs",
        "What was left out": f"{len(p.dropped)} lines" if p.dropped else "nothing",
        "What the loss was measured on": p.about.get("evaluation"),
        "Source": p.source, "Digest of the points": p.digest[:16],
    })  # fmt: skip


def _fitting(law: Law, forecaster: Forecaster | None) -> list[Answer]:
    noise = law.noise
    counts = (
        f"Huber, delta {noise.delta:g}, on log loss, summed" if isinstance(noise, Huber)
        else f"Student's, {noise.nu:g} degrees, scale {noise.scale:.3g}, on log loss" if isinstance(noise, Student)
        else type(noise).__name__
    )  # fmt: skip
    cuts = forecaster.tested.cuts if forecaster is not None else ()
    tested = f"{len(cuts)} cuts of the larger runs, forecast from the smaller ones" if cuts else None
    return _group("fitting", {
        "What the residuals count": counts,
        "Algorithm": "Levenberg and Marquardt, exact derivatives, to a part in 1e13 of the objective",
        "Where it began": f"{law.starts} starts from the points alone (variable projection), {law.starts_agreed} agree",
        "Objective": f"{law.objective:.10g}",
        "Intervals": f"bootstrap by runs, {law.converged} of {law.replicates} replicates converged"
        if law.replicates else None,
        "Points that lie off": f"{len(law.off) - 2} shown, with the law without them" if law.off else "none",
        "Tested on runs held back": tested,
    })  # fmt: skip


def _group(group: str, asked: dict[str, str | None]) -> list[Answer]:
    return [Answer(group, question, answer or UNKNOWN) for question, answer in asked.items()]
