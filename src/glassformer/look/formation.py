"""What a model was at every checkpoint of its training, and when something in it formed.

At each checkpoint the same text is read and measured:

    loss      mean of -log p over its tokens, in nats
    norms     mean length of what each block adds to the stream and of the stream that leaves it (summary.py)
    heads     what each head does: its scores for previous token, induction, sink ... (heads.py)
    lens      how far each layer's answer still is from the last: mean of KL(final || layer), in nats (lens.py)

A measure has formed at the first checkpoint from which on it stays past half of its way from its least to its
largest value: `formed` names that step, the one before it, and how far it went. How fine that is depends on
`train.checkpoint_every` and `train.keep`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from glassformer import charts
from glassformer.errors import RunError, UsageError, nearest
from glassformer.look.heads import heads
from glassformer.look.lens import lens
from glassformer.look.reading import Text
from glassformer.look.summary import summary
from glassformer.run.checkpoints import list_checkpoints
from glassformer.run.folder import Run
from glassformer.use.load import Loaded, is_network, load

_REPEATS = 4
"""Rows of random tokens at each checkpoint: enough to see a head form."""

What = Literal["loss", "norms", "heads", "lens"]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Formation:
    """Values by checkpoint. A row is one value: `step`, `measure` (loss, attn_out, induction, kl ...), `where`
    (a block, a layer or a head, as L2H5), `value`."""

    run: Path
    steps: tuple[int, ...]
    values: list[Row] = field(repr=False)
    passed_over: tuple[str, ...] = ()
    """Checkpoints that could not be read, and why."""

    def rows(self) -> list[Row]:
        return self.values

    def series(self) -> dict[tuple[str, str], list[float]]:
        """(measure, where) -> its value at each of `steps`."""
        found: dict[tuple[str, str], list[float]] = {}
        for row in self.values:
            found.setdefault((row["measure"], row["where"]), []).append(row["value"])
        return found

    def formed(self, top: int | None = None, measure: str | None = None) -> list[Row]:
        """When each measure formed, those that changed most first (by the largest value less the least)."""
        measures = [row["measure"] for row in self.values]
        if measure is not None and measure not in measures:
            raise UsageError(f"Nothing was measured as {measure!r}; {nearest(measure, set(measures))}")
        found: list[Row] = []
        for (name, where), values in self.series().items():
            if measure not in (None, name) or len(values) < 2 or not all(map(math.isfinite, values)):
                continue
            low, high = min(values), max(values)
            grew = values[-1] - low > high - values[-1]
            half = (low + high) / 2
            past = [(value > half) == grew for value in values]
            at = max((n for n, is_past in enumerate(past) if not is_past), default=-1) + 1
            found.append(
                {
                    "measure": name, "where": where, "first": values[0], "last": values[-1],
                    "change": high - low, "after_step": self.steps[at - 1] if at else None,
                    "by_step": self.steps[at] if at < len(values) else None,
                }
            )  # fmt: skip
        return sorted(found, key=lambda row: -float(row["change"]))[:top]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": "glassformer.probe", "version": 1, "run": str(self.run), "steps": list(self.steps),
            "passed_over": list(self.passed_over), "rows": self.values, "formed": self.formed(),
        }  # fmt: skip

    def chart(self, measure: str = "loss", top: int = 6) -> charts.Spec:
        """A measure over the steps, of the `top` places where it changed most."""
        chosen = {row["where"] for row in self.formed(top, measure)}
        rows = [row for row in self.values if row["measure"] == measure and row["where"] in chosen]
        series = "where" if len(chosen) > 1 else None
        return charts.line(rows, "step", "value", series=series, y_title=measure.replace("_", " "), from_zero=True,
                           title=f"{measure.replace('_', ' ')} over training")  # fmt: skip


def probe(
    run: Run | str | Path,
    text: Text,
    *,
    what: Sequence[What] | None = None,
    target: Text | None = None,
    device: str = "cpu",
) -> Formation:
    """Measure every whole checkpoint of a run on a text: all that such a model has, or `what`. One model is held at a
    time.

    Raises RunError where a run has kept none, UsageError for something that is not measured.
    """
    wrong = [name for name in what or () if name not in get_args(What)]
    if wrong:
        raise UsageError(f"{wrong[0]!r} is not measured; {nearest(wrong[0], get_args(What))}")
    run = run if isinstance(run, Run) else Run.open(Path(run))
    found = [one for one in list_checkpoints(run.checkpoints) if one.kind == "checkpoint"]
    if is_network(run.path):
        raise UsageError(
            f"{run.path} holds a plain network, which reads no text.",
            expected="A run of a Transformer.",
            do=f"See its losses with: glassformer runs show {run.path}",
        )
    if not found:
        raise RunError(
            f"{run.path} has no checkpoints.",
            do="Train with train.checkpoint_every small and train.keep large enough to see something form.",
        )
    values: list[Row] = []
    steps, passed_over = [], []
    for one in found:
        try:
            model = load(run.checkpoints / one.name, device=device)
        except RunError as error:
            passed_over.append(f"{one.name}: {error}")
            continue
        steps.append(one.step)
        scores = model.model.config.head == "tokens"
        for name in dict.fromkeys(what or (name for name in get_args(What) if scores or name != "lens")):
            values += [
                {"step": one.step, "measure": measure, "where": where, "value": value}
                for measure, where, value in _MEASURES[name](model, text, target)
            ]
    return Formation(run.path, tuple(steps), values, tuple(passed_over))


Found = Iterator[tuple[str, str, float]]


def _loss(model: Loaded, text: Text, target: Text | None) -> Found:
    losses = [
        row["loss"] for row in summary(model, text, target=target).tokens if row.get("loss") is not None
    ]
    if losses:
        yield "loss", "all tokens", math.fsum(losses) / len(losses)


def _norms(model: Loaded, text: Text, target: Text | None) -> Found:
    for row in summary(model, text, target=target).layers:
        yield from (
            (name, row["block"], norm) for name, norm in row.items() if name not in ("block", "resid_pre")
        )


def _heads(model: Loaded, text: Text, target: Text | None) -> Found:
    found = heads(model, text, target=target, repeats=_REPEATS)
    for row in found.rows():
        yield from ((score, row["name"], row[score]) for score in found.names() if row[score] is not None)
    if found.first_half is not None and found.second_half is not None:
        yield "loss_on_random_tokens", "first time", found.first_half
        yield "loss_on_random_tokens", "again", found.second_half


def _lens(model: Loaded, text: Text, target: Text | None) -> Found:
    seen = lens(model, text, target=target)
    for stage, kl in zip(seen.stages, seen.kl.mean(-1).tolist(), strict=True):
        yield "kl_to_the_end", stage.name, kl


_MEASURES: dict[str, Callable[[Loaded, Text, Text | None], Found]] = {
    "loss": _loss, "norms": _norms, "heads": _heads, "lens": _lens,
}  # fmt: skip
