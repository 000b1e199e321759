"""What a model knows of order: the table it adds, the angles it turns by, or the slopes of its bias.

    sinusoidal   PE[p, 2i] = sin(p w_i), PE[p, 2i + 1] = cos(p w_i),  w_i = 10000^(-2i/d)     Vaswani et al. 2017
                 so PE[p] . PE[p + D] = sum_i cos(D w_i): it depends on the offset D alone
    learned      a vector for each position; which are alike is told by their cosine
    rope         pair i of a query at p and of a key at p - D turns by p w_i and (p - D) w_i, w_i = base^(-2i/d_rot):
                 R(p) q . R(p - D) k = q . R(-D) k                                       Su et al. 2021
    alibi        slope_h D is taken from the score; of two keys with equal scores before, one ln 2 / slope_h tokens
                 further away gets half the weight                                       Press et al. 2022

The kernel tells how alike two places D apart are: of a table, the mean cosine of their rows; of rope, the mean of
v . R(-D) v over random v of length 1, which tends to (2 sum_i cos(D w_i) + entries not turned) / d_head. Beside it
stands the largest difference among the dot products of the same two vectors at the same offset but at other places:
by the formula 0, so what is left is rounding. With a text the same is measured on the model's own queries and keys,
and how far each layer looks (reach.py). The measuring itself is position_kernel.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glassformer import charts
from glassformer.errors import UsageError
from glassformer.look.embedding import transformer_of
from glassformer.look.position_kernel import added, own, pairs, rope, spread
from glassformer.look.reach import Reach, reach
from glassformer.look.reading import Reading, Text
from glassformer.model.config import ModelConfig
from glassformer.model.transformer import Transformer
from glassformer.use.load import Loaded

_CURVES = 6
_CELLS = 64
"""Curves, and rows and columns of a matrix, that a picture shows at most."""


@dataclass(frozen=True, slots=True)
class PositionView:
    """What there is depends on the kind; what there is not is None."""

    config: ModelConfig
    table: Float[Tensor, "context width"] | None = field(default=None, repr=False)
    """sinusoidal, learned: the model's own, which it adds."""
    angles: Float[Tensor, "context pair"] | None = field(default=None, repr=False)
    """rope: radians."""
    slopes: Float[Tensor, " head"] | None = None
    """alibi."""
    offsets: Int[Tensor, " offset"] | None = field(default=None, repr=False)
    kernel: Float[Tensor, " offset"] | None = field(default=None, repr=False)
    """How alike two places so far apart are."""
    deviation: float | None = None
    """sinusoidal: the largest difference of the table from its formula. rope: the largest difference of a dot product
    of two vectors of length 1 at one offset from that at another place."""
    own: dict[str, Float[Tensor, "head offset"]] | None = field(default=None, repr=False)
    """rope, with a text: the mean cosine of every query with every key of a layer's head, were they all so far apart.
    What differs along the offsets is due to the places alone."""
    own_deviation: float | None = None
    """The same as `deviation`, of the mean queries and keys of this text, brought to length 1."""
    reach: Reach | None = field(default=None, repr=False)
    """With a text: how far each layer looks."""

    @property
    def kind(self) -> str:
        return self.config.positions

    def rows(self) -> list[dict[str, Any]]:
        """rope, sinusoidal: a row for each pair; learned: for each position; alibi: for each head; none: no row."""
        last = self.config.context - 1
        if self.slopes is not None:
            return [
                {"head": head, "slope": slope, "half_weight_tokens": math.log(2) / slope, "bias_at_end": -slope * last}
                for head, slope in enumerate(self.slopes.tolist())
            ]  # fmt: skip
        if self.kind == "learned" and self.table is not None:
            return _learned_rows(self.table)
        return [
            {
                "pair": pair, "entries": f"{first}, {second}", "radians_per_token": rate,
                "tokens_per_turn": 2 * math.pi / rate, "turns_in_context": rate * last / (2 * math.pi),
            }
            for pair, (rate, (first, second)) in enumerate(pairs(self.config))
        ]  # fmt: skip

    def kernel_rows(self) -> list[dict[str, Any]]:
        """offset and likeness; of rope with a text also each layer's own, the mean over its heads."""
        if self.offsets is None or self.kernel is None:
            return []
        columns = {"likeness": self.kernel} | {layer: own.mean(0) for layer, own in (self.own or {}).items()}
        names, values = list(columns), torch.stack(list(columns.values()), 1).tolist()
        return [
            {"offset": offset, **dict(zip(names, row, strict=True))}
            for offset, row in zip(self.offsets.tolist(), values, strict=True)
        ]

    def similarity(self, at: list[int] | None = None) -> Float[Tensor, "position position"]:
        """The cosines of the table's rows: of all positions, or of some."""
        if self.table is None:
            raise UsageError(f"Positions '{self.kind}' have no table.", do="See kernel_rows for rope.")
        unit = F.normalize(self.table if at is None else self.table[at], dim=-1)
        return unit @ unit.T

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "context": self.config.context, "deviation": self.deviation,
            "own_deviation": self.own_deviation, "rows": self.rows(), "kernel": self.kernel_rows(),
            "reach": [] if self.reach is None else self.reach.rows(),
            "attention": [] if self.reach is None else self.reach.distance_rows(),
        }  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """What there is, and how exact it is."""
        whose = {"sinusoidal": "table_minus_formula", "rope": "places_differ_by"}
        name = whose.get(self.kind.partition("_")[0], "deviation")
        return {
            "positions": self.kind, "context": self.config.context, name: self.deviation,
            "own_places_differ_by": self.own_deviation,
        }  # fmt: skip

    @property
    def chart_names(self) -> tuple[str, ...]:
        """The charts there are."""
        of = {"table": self.table, "similarity": self.table, "angles": self.angles, "bias": self.slopes,
              "kernel": self.kernel, "attention": self.reach}  # fmt: skip
        curves = ("curves",) if self.table is not None or self.angles is not None else ()
        return (*(name for name, needed in of.items() if needed is not None), *curves)

    def chart(self, of: str | None = None) -> charts.Spec:
        """One of `chart_names`, the first where left out. table, similarity, angles (their cosines): matrices; bias:
        what ALiBi adds over the distance; kernel: likeness over the offset; curves: a few pairs over the positions;
        attention: where each layer looks."""
        if of is None and self.chart_names:
            of = self.chart_names[0]
        if of not in self.chart_names:
            raise UsageError(
                f"Positions '{self.kind}' have no chart{'' if of is None else f' {of!r}'}.",
                expected=f"It can be {', '.join(self.chart_names)}." if self.chart_names else "",
                do="Give a text, and there is 'attention'." if self.reach is None else "",
            )
        if of == "attention" and self.reach is not None:
            return self.reach.chart()
        return _CHARTS[of](self)


def positions(
    model: Loaded | Transformer, text: Text | None = None, *, target: Text | None = None, seed: int = 0
) -> PositionView:
    """What the model knows of order, measured on its own tables; with a text, also on its queries, keys and patterns.
    `seed` draws the vectors that the kernel of rope is measured with."""
    module, _ = transformer_of(model)
    if text is None and target is not None:
        raise UsageError("A target was given without a text.")
    found: dict[str, Any] = {}
    with torch.no_grad():
        if module.config.positions == "rope":
            found = rope(module, seed)
        elif module.config.positions == "alibi":
            found = {"slopes": module.slopes.float().cpu()}
        elif module.config.positions != "none":
            found = added(module)
        if text is not None:
            reading = Reading.of(model, text, target=target)
            found["reach"] = reach(reading)
            if module.config.positions == "rope":
                found |= own(reading, module, found["offsets"])
    return PositionView(module.config, **found)


def _learned_rows(table: Float[Tensor, "context width"]) -> list[dict[str, Any]]:
    unit, rows = F.normalize(table.double(), dim=-1), []
    sizes = table.double().norm(dim=-1).tolist()
    for first in range(0, len(unit), 1024):  # a part of all cosines at a time
        cosines = unit[first : first + 1024] @ unit.T
        here = torch.arange(len(cosines))
        cosines[here, here + first] = -torch.inf
        values, nearest = cosines.max(-1)
        rows += [
            {"position": p, "size": sizes[p], "nearest": best, "cosine": value}
            for p, (best, value) in enumerate(
                zip(nearest.tolist(), values.tolist(), strict=True), start=first
            )
        ]
    return rows


def _places(view: PositionView) -> list[int]:
    """Learned vectors may differ anywhere; sinusoids and angles are only followed place by place, from the first."""
    return (
        spread(view.config.context, _CELLS)
        if view.kind == "learned"
        else list(range(min(view.config.context, _CELLS)))
    )


def _matrix(
    values: Float[Tensor, "row column"], rows: list[int], columns: list[int], title: str, x: str, y: str
) -> charts.Spec:
    cells = [
        {"column": j, "row": i, "value": value}
        for i, line in enumerate(values.tolist())
        for j, value in enumerate(line)
    ]
    return charts.heatmap(
        cells, "column", "row", "value", labels=[str(c) for c in columns], y_labels=[str(r) for r in rows],
        x_title=x, y_title=y, value_title="", title=title, diverging=True, size=(560, 460),
    )  # fmt: skip


def _table_chart(view: PositionView) -> charts.Spec:
    assert view.table is not None
    rows, columns = _places(view), spread(view.config.width, _CELLS)
    title = f"The vectors of positions ({view.kind})"
    return _matrix(view.table[rows][:, columns], rows, columns, title, "entry", "position")


def _similarity_chart(view: PositionView) -> charts.Spec:
    rows = spread(view.config.context, _CELLS)
    return _matrix(
        view.similarity(rows), rows, rows, "Cosine of the vectors of positions", "position", "position"
    )


def _angles_chart(view: PositionView) -> charts.Spec:
    assert view.angles is not None
    rows, columns = _places(view), spread(view.angles.shape[1], _CELLS)
    return _matrix(
        view.angles[rows][:, columns].cos(), rows, columns, "Cosine of the angle", "pair", "position"
    )


def _bias_chart(view: PositionView) -> charts.Spec:
    assert view.slopes is not None
    heads, far = spread(len(view.slopes), _CURVES), spread(view.config.context, 2)
    rows = [
        {"distance": distance, "bias": -float(view.slopes[head]) * distance, "head": f"head {head}"}
        for head in heads
        for distance in far
    ]
    return charts.line(rows, "distance", "bias", series="head", title="What ALiBi adds to the score")


def _kernel_chart(view: PositionView) -> charts.Spec:
    rows = [{"offset": row["offset"], "likeness": row["likeness"]} for row in view.kernel_rows()]
    what = (
        "mean dot product of a vector with itself" if view.kind == "rope" else "mean cosine of two positions"
    )
    return charts.line(rows, "offset", "likeness", title="How alike two places are", y_title=what,
                       x_title="offset (tokens)")  # fmt: skip


def _curves_chart(view: PositionView) -> charts.Spec:
    """Of a pair, its first entry; of a learned table, a few of its entries."""
    if view.angles is not None:
        curves = {f"pair {i}": view.angles[:, i].cos() for i in spread(view.angles.shape[1], _CURVES)}
    else:
        assert view.table is not None
        both = pairs(view.config)
        first = {f"pair {i}": both[i][1][0] for i in spread(len(both), _CURVES)} if both else {
            f"entry {i}": i for i in spread(view.config.width, _CURVES)}  # fmt: skip
        curves = {name: view.table[:, entry] for name, entry in first.items()}
    places = (
        spread(view.config.context, 128) if view.kind == "learned" else range(min(view.config.context, 128))
    )
    rows = [
        {"position": p, "value": float(curve[p]), "curve": name}
        for name, curve in curves.items()
        for p in places
    ]
    what = "cosine of the angle" if view.kind == "rope" else "value"
    return charts.line(rows, "position", "value", series="curve", y_title=what, title="Over the positions")


_CHARTS = {
    "table": _table_chart, "similarity": _similarity_chart, "angles": _angles_chart, "bias": _bias_chart,
    "kernel": _kernel_chart, "curves": _curves_chart,
}  # fmt: skip
