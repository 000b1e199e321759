"""Ablation: what a part of a model is good for, seen by what is lost without it.

    zero      the part puts out 0
    mean      its mean over the positions of some texts: nothing that tells one token from another is left
              (Wang et al. 2022)
    resample  what it puts out at another position, drawn with a seed: numbers of the right kind, in the wrong
              place (Chan et al. 2022, causal scrubbing)

    change = loss without the part - loss, for each token in nats;   its mean, with a 95% interval
    kl     = sum over tokens t of p(t) log(p(t) / p without the part(t)), how far the prediction moved

An encoder does not write, so no token has a loss: there only kl is measured, and `change` is it. Of several texts
each counts once, and the interval runs over the texts. Of one text it runs over its tokens as if they were
independent, which they are not, so it is too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from glassformer import charts, seeds
from glassformer.errors import UsageError
from glassformer.look.measure import answering, token_losses
from glassformer.look.parts import Part, part
from glassformer.look.reading import Model, Reading, Text, wide
from glassformer.look.replace import Put, record, sweep
from glassformer.look.trace import sides
from glassformer.look.visible import visible
from glassformer.model.config import ModelConfig
from glassformer.stats import mean_interval

How = Literal["zero", "mean", "resample"]
Texts = Text | Sequence[str]
"""One text, or several."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What becomes of the text without one part, or without several at once. Means over tokens."""

    what: str
    loss: float | None
    """Nats a token with everything in place; None of a model that does not write."""
    ablated: float | None
    """Without the part."""
    change: float
    low: float | None
    """Of the 95% interval of `change`; none where there is one token, or text, alone."""
    high: float | None
    kl: float
    tokens: tuple[dict[str, Any], ...] = field(repr=False)
    """For each token `text` (its number), `position`, `token`, `loss`, `ablated`, `change`, `kl`."""

    def top(self, count: int = 10) -> list[dict[str, Any]]:
        """The tokens that changed most, either way."""
        return sorted(self.tokens, key=lambda row: -abs(row["change"]))[:count]


@dataclass(frozen=True, slots=True)
class Ablated:
    """One effect for each part, or a single one of all together."""

    how: How
    over: str
    """What the mean, or the numbers put in, were taken from."""
    interval: str
    """What the interval runs over."""
    seed: int | None
    effects: tuple[Effect, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row for each effect."""
        names = ("what", "loss", "ablated", "change", "low", "high", "kl")
        return [{name: getattr(effect, name) for name in names} for effect in self.effects]

    def to_dict(self) -> dict[str, Any]:
        effects = [
            {**row, "tokens": list(effect.tokens)}
            for row, effect in zip(self.rows(), self.effects, strict=True)
        ]
        names = ("how", "over", "interval", "seed")
        return {**{name: getattr(self, name) for name in names}, "effects": effects}

    def chart(self) -> charts.Spec:
        """Bars of the parts' effects, largest first; of a single effect, of its most changed tokens."""
        title = "loss without it - loss (nats)" if self.effects[0].loss is not None else "KL (nats)"
        if len(self.effects) > 1:
            rows = sorted(self.rows(), key=lambda row: -row["change"])
            return charts.bars(
                rows, "what", "change", title=f"Each part ablated ({self.how})", value_title=title
            )
        only = self.effects[0]
        shown = [{**row, "token": f"{visible(row['token'])}  ({row['position']})"} for row in only.top(25)]
        shown.sort(key=lambda row: (row["text"], row["position"]))
        return charts.bars(
            shown, "token", "change", title=f"Without {only.what} ({self.how})", value_title=title
        )


def ablate(
    model: Model,
    text: Texts,
    what: str | Sequence[str],
    *,
    how: How = "zero",
    over: Texts | None = None,
    seed: int = 0,
    one_by_one: bool = False,
    target: Texts | None = None,
) -> Ablated:
    """Run the text (or texts) without some parts, named as in look/parts.py: all at once, or `one_by_one`.

    `over` are texts for the mean, or to draw from; left out, the text itself. An encoder-decoder reads the text and
    writes `target`, for `over` too, which it must then leave out.
    """
    readings = _readings(model, text, target)
    config = readings[0].model.config
    assert isinstance(config, ModelConfig)
    wanted = [what] if isinstance(what, str) else list(what)
    if how not in get_args(How) or not wanted:
        raise UsageError(f"how={how!r}, what={wanted}.", expected=f"One of {get_args(How)}, and some parts.")
    if over is not None and (how == "zero" or target is not None):
        why = "with how='zero'" if how == "zero" else "on an encoder-decoder, which takes the text itself"
        raise UsageError(f"`over` has no effect {why}.", do="Leave it out.")
    parts = [part(name, config) for name in dict.fromkeys(wanted)]
    groups = [[each] for each in parts] if one_by_one else [parts]
    pools = {} if how == "zero" else _pools(readings if over is None else _readings(model, over, None), parts)
    found: list[list[dict[str, Any]]] = [[] for _ in groups]
    for number, reading in enumerate(readings):
        edits = [[_put(each, how, pools, reading, seed, number) for each in group] for group in groups]
        for rows, more in zip(found, _changes(reading, edits, number), strict=True):
            rows += more
    names = [", ".join(each.name for each in group) for group in groups]
    taken = "nothing" if how == "zero" else "the text itself" if over is None else "the texts given for it"
    if not found[0]:
        raise UsageError("No token here has a loss.", do="Give a longer text.")
    several = len({row["text"] for row in found[0]}) > 1
    return Ablated(
        how, taken, "texts" if several else "tokens", seed if how == "resample" else None,
        tuple(_effect(name, rows, several) for name, rows in zip(names, found, strict=True)),
    )  # fmt: skip


def _readings(model: Model, texts: Texts, targets: Texts | None) -> list[Reading]:
    each = _several(texts)
    written = [None] * len(each) if targets is None else _several(targets)
    if not each or len(each) != len(written):
        raise UsageError(
            f"{len(each)} texts and {len(written)} targets were given.", expected="As many of each, some."
        )
    return [answering(model, text, target) for text, target in zip(each, written, strict=True)]


def _several(texts: Texts) -> list[Text]:
    if isinstance(texts, str | bytes | Tensor) or not any(isinstance(text, str | bytes) for text in texts):
        return [texts]  # type: ignore[list-item]  # ids, of which none is text
    return list(texts)  # type: ignore[arg-type]


def _pools(readings: list[Reading], parts: list[Part]) -> dict[str, Float[Tensor, " position *rest"]]:
    """What the parts' places hold, at all positions of all texts."""
    places = sorted({each.place for each in parts})
    seen = [record(reading, places)[0] for reading in readings]
    return {place: torch.cat([one[place].flatten(0, 1) for one in seen]) for place in places}


def _put(each: Part, how: How, pools: dict[str, Tensor], reading: Reading, seed: int, number: int) -> Put:
    if how == "zero":
        return Put(each.place, torch.zeros(()), each.at)
    pool = pools[each.place]
    if how == "mean":
        return Put(each.place, pool.mean(0), each.at)
    rows, length = reading.inputs[sides(each.place)[0]].shape
    # every part draws the same positions, so that parts ablated together come from one place
    draw = seeds.generator(seed, "resample", number)
    chosen = (
        draw.permutation(len(pool)) if len(pool) >= rows * length else draw.choice(len(pool), rows * length)
    )
    index = torch.from_numpy(chosen[: rows * length]).to(pool.device)
    return Put(each.place, pool[index].view(rows, length, *pool.shape[1:]), each.at)


def _changes(reading: Reading, edits: list[list[Put]], number: int) -> list[list[dict[str, Any]]]:
    """For each edit a row for each token of each row of the reading."""
    _, before = record(reading, [])
    config = reading.model.config
    assert isinstance(config, ModelConfig)
    writes = "loss" in reading.places()
    ids = reading.inputs[-1]
    measured = sweep(reading, edits, _measure(before, ids, writes))  # (edit, row, token, loss and kl)
    base = token_losses(before, ids).double() if writes else None
    if config.head == "classes":
        named = [[(0, "the class")] for _ in ids]
    else:
        first = 1 if writes else 0
        named = [list(enumerate(reading.words(row.tolist())))[first:] for row in ids]
    found = []
    for edit in measured.double():
        rows = []
        for row, words in enumerate(named):
            for column, (position, token) in enumerate(words):
                kl = float(edit[row, column, -1])
                loss = None if base is None else float(base[row, column])
                ablated = None if base is None else float(edit[row, column, 0])
                change = kl if loss is None or ablated is None else ablated - loss
                rows.append({"text": number + row, "position": position, "token": token, "loss": loss,
                             "ablated": ablated, "change": change, "kl": kl})  # fmt: skip
        found.append(rows)
    return found


def _measure(before: Tensor, ids: Tensor, writes: bool) -> Callable[[Tensor], Tensor]:
    """(row, token, loss and kl): the loss (of a model that writes), and the KL from the unchanged prediction. Row by
    row, since a vocabulary's worth of numbers for every token is the largest thing here."""

    def logs(output: Float[Tensor, "*position vocab"]) -> Float[Tensor, "token vocab"]:
        scores = wide(output[:-1] if writes else output)
        return (scores[None] if scores.ndim == 1 else scores).log_softmax(-1)

    olds = [logs(row) for row in before]

    def measure(output: Tensor) -> Tensor:
        found = []
        for number, row in enumerate(output):
            new, old = logs(row), olds[number % len(olds)]
            columns = [F.kl_div(new, old, reduction="none", log_target=True).sum(-1)]
            if writes:
                columns.insert(0, F.nll_loss(new, ids[number % len(ids), 1:], reduction="none"))
            found.append(torch.stack(columns, -1))
        return torch.stack(found)

    return measure


def _effect(what: str, rows: list[dict[str, Any]], several: bool) -> Effect:
    """Means over tokens; of several texts over the texts' own means, so that each counts once."""

    def means(name: str) -> list[float]:
        if not several:
            return [row[name] for row in rows]
        texts: dict[int, list[float]] = {}
        for row in rows:
            texts.setdefault(row["text"], []).append(row[name])
        return [sum(each) / len(each) for each in texts.values()]

    writes = rows[0]["loss"] is not None
    loss, ablated = (mean_interval(means(n))[0] if writes else None for n in ("loss", "ablated"))
    kl, (change, low, high) = mean_interval(means("kl"))[0], mean_interval(means("change"))
    ends = (low, high) if len(means("change")) > 1 else (None, None)
    return Effect(what, loss, ablated, change, ends[0], ends[1], kl, tuple(rows))
