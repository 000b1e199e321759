"""The charts of a law and of a forecast: each a function to a Vega-Lite spec, as those of charts.py.

frontier(law)                 the points by compute, and the least loss that the law has for it, with its interval
residuals(law)                how far each point lies off
parabolas(points, allocation) loss by size at equal compute, with the parabola of each budget and its lowest point
sizes(points, allocation)     the best size by compute, a straight line in logarithms
fan(forecaster, forecast)     the points, and what is forecast beyond them: 50, 80 and 90 %
tested(backtest)              how far known larger runs were from what the smaller ones forecast
epochs(repeats)               what each pass over the same text is worth, with what is left open
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glassformer import charts
from glassformer.scale.laws import Array
from glassformer.scale.optimum import lowest_of
from glassformer.scale.points import Points
from glassformer.units import show_count

if TYPE_CHECKING:
    from glassformer.scale.backtest import Backtest
    from glassformer.scale.fit import Law
    from glassformer.scale.forecast import Forecast, Forecaster
    from glassformer.scale.isoflop import Allocation
    from glassformer.scale.repeats import Repeats

WIDE = (640, 330)
_BLUE, _ORANGE, _GREEN = charts.PALETTE[:3]
_GREY = "#7b8794"
_APART = 0.025
"""Of the height of a chart: words that are nearer to each other cannot be read."""
_MOST = 1500
"""Points in one chart: with more, a page is too large to be mailed, and none could be told from another."""


def frontier(law: Law, size: tuple[int, int] = WIDE) -> charts.Spec:
    """Every point by its compute, larger models darker; the curve is the least loss of the law for that compute."""
    points = law.points
    assert points is not None  # of `fit`
    C = np.geomspace(points.C.min(), points.C.max() * 10, 40)  # noqa: N806 # the field's symbol
    x, y = _compute(C), _loss(points)
    dots = _dots(points) | {"encoding": {**_xy(x, y), "color": _by_size(points)}}
    if law.kind.needs != "nd":
        return _drawn(f"{_told(points)}, by compute", size, dots)
    middle, low, high = (np.empty(len(C)) for _ in range(3))
    for k, c in enumerate(C):
        middle[k], low[k], high[k] = _least(law, float(c))
    rows = [
        {"C": float(c), "loss": float(m), "low": float(a), "high": float(b)}
        for c, m, a, b in zip(C, middle, low, high, strict=True)
    ]
    layers = [_band(rows, x, y, 0.18), dots, _curve(rows, x, y, _BLUE)]
    return _drawn(f"{_told(points)}, and the least loss for the compute with 95 %", size, *layers)


def residuals(law: Law, size: tuple[int, int] = WIDE) -> charts.Spec:
    """How far each point lies off the law, by its compute, larger models darker."""
    points = law.points
    assert points is not None
    rows = [
        {"C": float(points.C[k]), "off": float(100 * np.expm1(law.residuals[k])), "N": float(points.N[k])}
        for k in _seen(points)
    ]
    at = _xy(_compute(points.C), _quantity("off", "loss off the law (%)"))
    dots: charts.Spec = {
        "data": {"values": rows},
        "mark": _DOT,
        "encoding": {**at, "color": _by_size(points)},
    }
    return _drawn(f"How far runs lie off the law {law.form}", size, _zero(), dots)


def parabolas(points: Points, found: Allocation, size: tuple[int, int] = WIDE) -> charts.Spec:
    """Loss by size, one colour for each budget; a diamond marks where its parabola is lowest."""
    dots, curves, lows = [], [], []
    for p in found.profiles:
        same = np.abs(np.log(points.C / p.C)) < 0.25
        name = f"{p.C:.1e}".replace("e+", "e")
        dots += [
            {"N": float(n), "loss": float(y), "budget": name}
            for n, y in zip(points.N[same], points.loss[same], strict=True)
        ]
        if not same.any():
            continue
        for n in np.geomspace(points.N[same].min(), points.N[same].max(), 40):
            curves.append(
                {"N": float(n), "loss": p.loss + p.curvature * float(np.log(n / p.N)) ** 2, "budget": name}
            )
        lows.append({"N": p.N, "loss": p.loss, "budget": name})
    names = [f"{p.C:.1e}".replace("e+", "e") for p in found.profiles]
    at = _xy(_size("parameters N", points.N), _loss(points))
    shades = {"scheme": "viridis", "extent": [0.85, 0.0]}
    colour = {"field": "budget", "type": "ordinal", "sort": names, "scale": {"domain": names, **shades},
              "legend": {"title": "FLOPs", "orient": "right", "direction": "vertical", "symbolType": "circle",
                         "symbolStrokeWidth": 0, "symbolSize": 80}}  # fmt: skip
    layers: list[charts.Spec] = [
        {"data": {"values": curves}, "mark": {"type": "line", "strokeWidth": 1.5}, "encoding": {**at, "color": colour}},
        {"data": {"values": dots}, "mark": _DOT, "encoding": {**at, "color": colour}},
        {"data": {"values": lows}, "mark": {"type": "point", "shape": "diamond", "filled": True, "size": 110,
         "opacity": 1, "stroke": "white"}, "encoding": {**at, "color": {"value": _ORANGE}}},
    ]  # fmt: skip
    return _drawn("Loss by size at equal compute; the diamonds are the best sizes", size, *layers)


def sizes(found: Allocation, size: tuple[int, int] = WIDE) -> charts.Spec:
    """The best size of each budget, and the line N* = G C^a with its 95 %."""
    budgets = np.array([p.C for p in found.profiles])
    C = np.geomspace(budgets.min() / 2, budgets.max() * 10, 40)  # noqa: N806
    drawn = np.exp(found.draws[:, 1] + np.outer(np.log(C), found.draws[:, 0]))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    rows = [
        {"C": float(c), "N": found.best(float(c))[0], "low": float(a), "high": float(b)}
        for c, a, b in zip(C, low, high, strict=True)
    ]
    dots = [{"C": p.C, "N": p.N} for p in found.profiles]
    x, y = _compute(C), _size("best size N*", np.array([row["N"] for row in rows]))
    best: charts.Spec = {"data": {"values": dots}, "mark": _DOT | {"size": 70},
                         "encoding": {**_xy(x, y), "color": {"value": _ORANGE}}}  # fmt: skip
    layers = [_band(rows, x, y, 0.18), _curve(rows, x, y, _BLUE), best]
    low_a, high_a = found.interval()
    return _drawn(
        f"Best size by compute: N* ~ C^{found.a:.3f} (95 %: {low_a:.3f} to {high_a:.3f})", size, *layers
    )


def fan(forecaster: Forecaster, forecast: Forecast, size: tuple[int, int] = WIDE) -> charts.Spec:
    """The runs, the least loss by compute, and how sure that is: three bands, which widen beyond the runs."""
    points = forecaster.law.points
    assert points is not None
    most = max(forecast.C, float(points.C.max())) * 2
    rows = []
    for c in np.geomspace(points.C.min(), most, 60):
        told = forecaster.forecast(flops=float(c))
        row = {"C": float(c), "loss": told.loss}
        for level, (low, high) in told.intervals.items():
            row |= {f"low{level:.0%}": low, f"high{level:.0%}": high}
        rows.append(row)
    x, y = _compute(np.array([row["C"] for row in rows])), _loss(points)
    bands = [
        _band(rows, x, y, shade, f"low{level:.0%}", f"high{level:.0%}")
        for level, shade in zip(sorted(forecast.intervals, reverse=True), (0.14, 0.16, 0.22), strict=False)
    ]
    low, high = forecast.intervals[0.9]
    told_rows = [
        {"C": forecast.C, "loss": forecast.loss, "low": low, "high": high, "words": f"{forecast.loss:.3g}"}
    ]
    at = {**_xy(x, y), "color": {"value": _ORANGE}}
    whisker: charts.Spec = {"data": {"values": told_rows}, "mark": {"type": "rule", "strokeWidth": 2},
                            "encoding": {**at, "y": y | {"field": "low"}, "y2": {"field": "high"}}}  # fmt: skip
    point: charts.Spec = {"data": {"values": told_rows}, "encoding": at,
                          "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1}}  # fmt: skip
    words: charts.Spec = {
        "data": {"values": told_rows},
        "mark": {"type": "text", "dy": -9, "fontSize": 13, "fontWeight": 600},
        "encoding": {**at, "y": y | {"field": "high"}, "text": {"field": "words"}},
    }
    total = np.log(max(points.loss.max(), rows[0]["loss"]) / rows[-1]["low90%"])
    apart = np.log(rows[-1]["high90%"] / rows[-1]["high80%"]) / total > _APART
    names = [
        {
            "C": rows[-1]["C"],
            "loss": rows[-1][f"high{level:.0%}"],
            "words": f"{level:.0%}" if apart else "50, 80, 90%",
        }
        for level in (forecast.intervals if apart else [max(forecast.intervals)])
    ]
    levels: charts.Spec = {
        "data": {"values": names},
        "mark": {"type": "text", "align": "left", "dx": 5, "fontSize": 11},
        "encoding": {**_xy(x, y), "text": {"field": "words"}, "color": {"value": _BLUE}},
    }
    largest = [{"C": float(points.C.max())}]
    edge: charts.Spec = {"data": {"values": largest}, "mark": {"type": "rule", "strokeDash": [3, 3], "opacity": 0.7},
                         "encoding": {"x": x, "color": {"value": _GREY}}}  # fmt: skip
    shown = _dots(points) | {"encoding": {**_xy(x, y), "color": {"value": _GREY}}}
    title = "Forecast: 50, 80 and 90 %. Right of the dashed line nothing was trained"
    return _drawn(title, size, *bands, edge, shown, _curve(rows, x, y, _BLUE), whisker, point, words, levels)


def tested(backtest: Backtest, width: int = 640) -> charts.Spec:
    """The mean error of each cut; how far beyond the fitted runs it reached stands beside it."""
    rows = [
        {"cut": f"{cut.fitted} runs forecast {cut.forecast}, up to {cut.beyond:.3g} times their compute",
         "error": 100 * cut.error}
        for cut in backtest.cuts
    ]  # fmt: skip
    title = "Known larger runs, forecast from the smaller ones"
    return charts.bars(rows, "cut", "error", value_title="forecast too high by (%)", title=title, width=width)


def epochs(repeats: Repeats, size: tuple[int, int] = WIDE) -> charts.Spec:
    """What D tokens of E passes are worth, as a share of as many fresh ones; the band is what R_D* leaves open."""
    rows = [
        {"epochs": float(e), "worth": 100 * repeats.worth(float(e)), "low": 100 * repeats.worth(float(e), repeats.low),
         "high": 100 * repeats.worth(float(e), repeats.high)}
        for e in np.geomspace(1, 100, 60)
    ]  # fmt: skip
    x, y = (
        _quantity("epochs", "passes over the same text", log=True),
        _quantity("worth", "worth of fresh text (%)", zero=True),
    )
    return _drawn("What repeating is worth", size, _band(rows, x, y, 0.18), _curve(rows, x, y, _BLUE))


_DOT: charts.Spec = {"type": "point", "filled": True, "size": 34, "opacity": 0.85}


def _least(law: Law, flops: float) -> tuple[float, float, float]:
    """(loss, low, high): the least loss at `flops`, with the middle 95 % of the draws'."""

    size = lowest_of(law.log_loss, flops, 0.0)
    middle = law.loss(float(size[0]), flops / (6 * float(size[0])))
    few = law.draws[:200]
    if not len(few):
        return middle, middle, middle
    n = lowest_of(law.log_loss, flops, 0.0, few, near=float(size[0]))
    own = np.exp(np.diagonal(law.log_loss(n, flops / (6 * n), few)))
    low, high = np.quantile(own, [0.025, 0.975])
    return middle, float(low), float(high)


def _drawn(title: str, size: tuple[int, int], *layers: charts.Spec) -> charts.Spec:
    """Layers on common axes, in the look of all charts."""
    frame = charts.line([], "x", "y", title=title, size=size)
    return {key: value for key, value in frame.items() if key not in ("data", "mark", "encoding")} | {
        "layer": list(layers)
    }


def _seen(points: Points) -> NDArray[np.intp]:
    """Which points are drawn: all, or `_MOST` of them over the whole range of compute."""
    if len(points) <= _MOST:
        return np.arange(len(points))
    every: NDArray[np.intp] = np.argsort(points.C, kind="stable")[
        np.linspace(0, len(points) - 1, _MOST).astype(int)
    ]
    return every


def _told(points: Points) -> str:
    return "Every run" if len(points) <= _MOST else f"{_MOST:,} of {len(points):,} points"


def _dots(points: Points) -> charts.Spec:
    rows = [
        {"C": float(points.C[k]), "loss": float(points.loss[k]), "N": float(points.N[k])}
        for k in _seen(points)
    ]
    return {"data": {"values": rows}, "mark": _DOT}


def _curve(rows: Sequence[Mapping[str, Any]], x: charts.Spec, y: charts.Spec, colour: str) -> charts.Spec:
    mark = {"type": "line", "strokeWidth": 2.2}
    return {
        "data": {"values": list(rows)},
        "mark": mark,
        "encoding": {**_xy(x, y), "color": {"value": colour}},
    }


def _band(
    rows: Sequence[Mapping[str, Any]], x: charts.Spec, y: charts.Spec, shade: float, low: str = "low",
    high: str = "high",
) -> charts.Spec:  # fmt: skip
    mark = {"type": "area", "opacity": shade}
    encoding = {"x": x, "y": y | {"field": low}, "y2": {"field": high}, "color": {"value": _BLUE}}
    return {"data": {"values": list(rows)}, "mark": mark, "encoding": encoding}


def _zero() -> charts.Spec:
    mark = {"type": "rule", "strokeDash": [4, 4], "strokeWidth": 1.2}
    return {"data": {"values": [{"zero": 0}]}, "mark": mark,
            "encoding": {"y": {"field": "zero", "type": "quantitative"}, "color": {"value": _GREY}}}  # fmt: skip


def _xy(x: charts.Spec, y: charts.Spec) -> charts.Spec:
    return {"x": x, "y": y}


def _quantity(name: str, title: str, *, log: bool = False, zero: bool = False) -> charts.Spec:
    drawn = charts.line([], name, name, x_title=title, log_x=log, from_zero=zero)["encoding"]["x"]
    drawn["scale"] = drawn["scale"] | ({} if log else {"zero": zero, "nice": True})
    return dict(drawn)


def _compute(values: Array) -> charts.Spec:
    """The axis of FLOPs: powers of ten as 1e21."""
    x = _quantity("C", "training FLOPs", log=True)
    label = "replace(format(datum.value, '.0e'), '+', '')"
    x["axis"] = {"labelExpr": label, "values": _ticks(values), "grid": False}
    return x


def _size(title: str, values: Array) -> charts.Spec:
    """The axis of N: 70M, 1B."""
    axis = _quantity("N", title, log=True)
    axis["axis"] = {"labelExpr": "replace(format(datum.value, '~s'), 'G', 'B')", "values": _ticks(values)}
    return axis


def _ticks(values: Array) -> list[float]:
    """Powers of ten, and between them 2 and 5 where there is room."""
    low, high = float(np.log10(values.min())), float(np.log10(values.max()))
    between = (1.0,) if high - low > 3.5 else (1.0, 2.0, 5.0) if high - low < 2 else (1.0, 3.0)
    every = [m * 10.0**k for k in range(int(np.floor(low)), int(np.ceil(high)) + 1) for m in between]
    return [tick for tick in every if values.min() <= tick <= values.max()]


def _loss(points: Points) -> charts.Spec:
    y = _quantity("loss", f"loss ({points.per}, log scale)", log=True)
    y["axis"] = {"tickCount": 6, "labelExpr": "format(datum.value, '.3~f')"}
    return y


def _by_size(points: Points) -> charts.Spec:
    """Light to dark by log N."""
    low, high = float(points.N.min()), float(points.N.max())
    middle = float(np.sqrt(low * high))
    names = {value: show_count(value) for value in (low, middle, high)}
    label = " : ".join(f"datum.value < {value * 1.01} ? '{name}'" for value, name in names.items()) + " : ''"
    legend = {"title": "parameters", "orient": "right", "direction": "vertical", "gradientLength": 120,
              "values": list(names), "labelExpr": label}  # fmt: skip
    return {"field": "N", "type": "quantitative", "legend": legend,
            "scale": {"type": "log", "scheme": "viridis", "reverse": True, "domain": [low, high]}}  # fmt: skip
