"""A chart is a function from rows to a Vega-Lite spec: a plain dict that a terminal saves and a page shows.

    spec = line(rows, "step", "loss", y_title="loss (nats per token)")
    save(spec, Path("loss.png"))

Rows are a list of dicts; a value that is missing or not finite leaves a gap. Colours are those of Okabe and
Ito (2008), which people of every colour vision tell apart. Specs need nothing; drawing them needs the extra
`plots`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glassformer.errors import GlassformerError
from glassformer.files import write_bytes, write_text

Rows = Sequence[Mapping[str, Any]]
Spec = dict[str, Any]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

_UNDRAWABLE = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_INK, _QUIET, _GRID = "#1f2933", "#52606d", "#e4e7eb"
_CONFIG: Spec = {
    "background": "white",
    "font": "system-ui, Helvetica, Arial, sans-serif",
    "padding": 12,
    "view": {"stroke": None},
    "title": {"anchor": "start", "fontSize": 15, "fontWeight": 600, "color": _INK, "offset": 12},
    "axis": {
        "labelFontSize": 12,
        "labelColor": _QUIET,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titleColor": _QUIET,
        "titlePadding": 10,
        "gridColor": _GRID,
        "domain": False,
        "ticks": False,
        "labelPadding": 6,
    },
    "axisX": {"grid": False},
    "legend": {
        "orient": "top",
        "direction": "horizontal",
        "title": None,
        "labelFontSize": 12,
        "labelColor": _INK,
        "titleFontWeight": "normal",
        "titleColor": _QUIET,
        "symbolType": "stroke",
        "symbolOpacity": 1,
        "symbolStrokeWidth": 3,
    },
    "range": {"category": list(PALETTE)},
    "line": {"strokeWidth": 2.2, "strokeJoin": "round"},
    "bar": {"cornerRadiusEnd": 3, "discreteBandSize": {"band": 0.7}},
}


def line(
    rows: Rows,
    x: str,
    y: str,
    *,
    series: str | None = None,
    title: str | None = None,
    x_title: str | None = None,
    y_title: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    from_zero: bool = False,
    faint: bool = False,
    size: tuple[int, int] = (620, 260),
) -> Spec:
    """A curve, or one for each value of `series`; `faint` for raw values under a smoothed one (`layers`)."""
    encoding = {
        "x": _quantity(x, x_title, log_x, zero=False, nice=False),
        "y": _quantity(y, y_title, log_y, zero=from_zero, num_ticks=max(3, size[1] // 45)),
    }
    mark: Spec = {"type": "line", "opacity": 0.3, "strokeWidth": 1} if faint else {"type": "line"}
    if len({row.get(x) for row in rows}) == 1:
        mark = {"type": "point", "filled": True, "size": 60}  # one point has no line through it
    return _chart(rows, (x, y, series), mark, encoding | _colour(series, rows), title, size)


def bars(
    rows: Rows,
    category: str,
    value: str,
    *,
    series: str | None = None,
    title: str | None = None,
    value_title: str | None = None,
    width: int = 620,
) -> Spec:
    """Horizontal bars in the order given, so that names of any length can be read."""
    axis = {"title": None, "grid": False, "labelLimit": 280}
    encoding: Spec = {
        "x": _quantity(value, value_title, False, zero=True) | {"stack": None},
        "y": {"field": category, "type": "nominal", "sort": None, "axis": axis},
        **_colour(series, rows),
    }
    encoding["x"]["axis"]["grid"] = True
    num_bars = 1
    if series:
        encoding["yOffset"] = {"field": series, "type": "nominal", "sort": None}
        encoding["color"]["legend"] = {"symbolType": "square", "symbolStrokeWidth": 0}
        num_bars = len({row.get(series) for row in rows})
    height = max(1, len({row.get(category) for row in rows})) * (16 + 14 * num_bars)
    return _chart(rows, (category, value, series), {"type": "bar"}, encoding, title, (width, height))


def heatmap(
    rows: Rows,
    x: str,
    y: str,
    value: str,
    *,
    labels: Sequence[str] | None = None,
    y_labels: Sequence[str] | None = None,
    title: str | None = None,
    x_title: str | None = None,
    y_title: str | None = None,
    value_title: str | None = None,
    words: str | None = None,
    diverging: bool = False,
    size: int | tuple[int, int] = 460,
) -> Spec:
    """Cells of a matrix, in a square or of the given width and height; `x` and `y` are whole numbers from 0, shown
    as `labels` where these are given, those of `y` as `y_labels` where they differ. `words` is written into each
    cell; `diverging` is for values around 0, which is then white.

    For attention: x is the key, y the query, and value the weight that the query gives it.
    """

    def named(words: Sequence[str] | None) -> dict[str, str]:
        drawn = [_drawable(word) for word in words or ()]
        return {"labelExpr": f"{json.dumps(drawn, ensure_ascii=False)}[datum.value]"} if words else {}

    shown = {"x": named(labels), "y": named(y_labels or labels)}
    encoding = {
        axis: {
            "field": name,
            "type": "ordinal",
            "title": words or _words(name),
            "axis": {
                "labelOverlap": True,
                "labelSeparation": 4,
                "labelAngle": -90 if axis == "x" and labels else 0,
                **shown[axis],
            },
        }
        for axis, name, words in (("x", x, x_title), ("y", y, y_title))
    }
    finite = [row[value] for row in rows if _finite(row.get(value)) is not None]
    low, high = min(finite, default=0), max(finite, default=0)
    # as far down as up: a value near 0 is pale, whichever its sign and however large the others
    most = max(-low, high) or 1
    encoding["color"] = {
        "field": value,
        "type": "quantitative",
        "scale": {"scheme": "blueorange", "domain": [-most, most]} if diverging else {"scheme": "viridis"},
        "legend": {"title": value_title or _words(value), "orient": "right", "direction": "vertical"},
    }
    box = (size, size) if isinstance(size, int) else size
    cells = _chart(rows, (x, y, value, words), {"type": "rect"}, encoding, title, box)
    if words is None:
        return cells
    dark = f"datum['{value}'] < {(low + high) / 2}"  # viridis begins dark, blueorange is so at both ends
    dark = f"abs(datum['{value}']) > {0.7 * most}" if diverging else dark
    ink = {"condition": {"test": dark, "value": "white"}, "value": _INK}
    text = {**encoding, "color": ink, "text": {"field": words, "type": "nominal"}}
    return layers(
        cells, _chart(rows, (x, y, value, words), {"type": "text", "fontSize": 10}, text, None, box)
    )


def points(
    rows: Rows,
    x: str,
    y: str,
    *,
    words: str | None = None,
    series: str | None = None,
    title: str | None = None,
    x_title: str | None = None,
    y_title: str | None = None,
    from_origin: bool = False,
    size: tuple[int, int] = (620, 460),
) -> Spec:
    """A dot for each row, with its `words` beside it; `from_origin` draws each as a vector."""
    encoding = {
        "x": _quantity(x, x_title, False, zero=False),
        "y": _quantity(y, y_title, False, zero=False),
        **_colour(series, rows),
    }
    fields = (x, y, words, series)
    dot: Spec = {"type": "point", "filled": True, "size": 36, "opacity": 0.8}
    if series:
        encoding["color"]["legend"] = {"symbolType": "circle", "symbolStrokeWidth": 0, "symbolSize": 90}
    drawn = [_chart(rows, fields, dot, encoding, title, size)]
    if from_origin:
        arrow = {**encoding, "x2": {"datum": 0}, "y2": {"datum": 0}}
        drawn.append(
            _chart(rows, fields, {"type": "rule", "strokeWidth": 1.5, "opacity": 0.6}, arrow, None, size)
        )
    if words is None:
        return layers(*drawn) if from_origin else drawn[0]
    text: Spec = {"type": "text", "align": "left", "dx": 6, "fontSize": 11}
    named = {**encoding, "color": {"value": _QUIET}, "text": {"field": words, "type": "nominal"}}
    return layers(*drawn, _chart(rows, fields, text, named, None, size))


def reliability(rows: Rows, *, series: str | None = None, title: str | None = None, size: int = 380) -> Spec:
    """A reliability diagram of `Calibration.rows()`: accuracy against confidence, with each bin's 95% interval
    and the diagonal on which a model means what it says. One model shows the rows in each bin; several `series`,
    such as before and after temperature scaling, are told apart by colour."""
    diagonal = [{"confidence": end, "accuracy": end} for end in (0.0, 1.0)]
    scale = {"scale": {"domain": [0, 1], "nice": False}}
    x = _quantity("confidence", "confidence: the probability of what it says", False, zero=False) | scale
    y = _quantity("accuracy", "accuracy: how often it is right", False, zero=False) | scale
    at, colour = {"x": x, "y": y}, _colour(series, rows)
    fields = ("confidence", "accuracy", "accuracy_low", "accuracy_high", "rows", series)
    between = {**at, "y": y | {"field": "accuracy_low"}, "y2": {"field": "accuracy_high"}, **colour}
    dashed: Spec = {"type": "line", "strokeDash": [4, 4], "strokeWidth": 1.5}
    point: Spec = {"type": "point", "filled": True, "opacity": 1, "size": 60}
    text: Spec = {"type": "text", "align": "left", "dx": 8, "fontSize": 12}
    drawn = [
        _chart(diagonal, fields[:2], dashed, {**at, "color": {"value": _QUIET}}, title, (size, size)),
        _chart(rows, fields, {"type": "rule", "strokeWidth": 1.5}, between, None, (size, size)),
        _chart(rows, fields, point, {**at, **colour}, None, (size, size)),
    ]
    if series is None:
        counts = {**at, "text": {"field": "rows"}, "color": {"value": _QUIET}}
        drawn.append(_chart(rows, fields, text, counts, None, (size, size)))
    return layers(*drawn)


def layers(*specs: Spec) -> Spec:
    """Charts drawn over each other on the same axes; the title, size and look are those of the first."""
    drawn = ("data", "mark", "encoding")
    layer = [copy.deepcopy({key: spec[key] for key in drawn}) for spec in specs]
    for axis in ("x", "y"):  # Vega-Lite would join different titles with a comma
        for one in layer[1:]:
            one["encoding"][axis]["title"] = layer[0]["encoding"][axis]["title"]
    return {key: value for key, value in specs[0].items() if key not in drawn} | {"layer": layer}


def stacked(*specs: Spec) -> Spec:
    """Charts one below the other, each with scales of its own; the look is that of the first."""
    shared = ("$schema", "config")
    parts = [{key: value for key, value in spec.items() if key not in shared} for spec in specs]
    return {
        **{key: copy.deepcopy(specs[0][key]) for key in shared},
        "vconcat": parts,
        "spacing": 28,
        "resolve": {"scale": {"color": "independent"}},
    }


def save(spec: Spec, path: Path) -> None:
    """Write the chart as .json (the spec), .svg, .png (at twice its size) or .html (needs no network)."""
    kind = path.suffix.lower()
    if kind == ".json":
        write_text(path, json.dumps(spec, indent=2, ensure_ascii=False) + "\n")
    elif kind == ".svg":
        write_text(path, _converter().vegalite_to_svg(spec))
    elif kind == ".png":
        write_bytes(path, _converter().vegalite_to_png(spec, scale=2))
    elif kind == ".html":
        write_text(path, _converter().vegalite_to_html(spec, bundle=True))
    else:
        raise GlassformerError(
            f"A chart cannot be saved as {path.name}.",
            expected="Expected a name ending in .json, .svg, .png or .html.",
        )


def svg(spec: Spec) -> str | None:
    """The chart as SVG to put into a page, in the page's own text colour; None without the extra `plots`."""
    try:
        converter = _converter()
    except GlassformerError:
        return None
    spec = copy.deepcopy(spec)
    config = spec["config"]
    config["background"] = "transparent"
    config["title"]["color"] = "currentColor"
    config["axis"] |= {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "gridColor": "currentColor",
    }
    config["axis"] |= {"labelOpacity": 0.75, "titleOpacity": 0.75, "gridOpacity": 0.12}
    config["legend"] |= {"labelColor": "currentColor", "titleColor": "currentColor"}
    # Several charts share a page, and each numbers its clips and gradients from 0.
    unique = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
    drawn = converter.vegalite_to_svg(spec)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>c{unique}-", drawn)


def show(spec: Spec) -> Any:
    """The chart as an Altair object, which a notebook displays."""
    try:
        import altair
    except ImportError:
        raise _missing() from None
    return altair.Chart.from_dict(spec)


def _chart(
    rows: Rows,
    fields: Sequence[str | None],
    mark: Spec,
    encoding: Spec,
    title: str | None,
    size: tuple[int, int],
) -> Spec:
    values = [{name: _drawable(_finite(row.get(name))) for name in fields if name} for row in rows]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "config": copy.deepcopy(_CONFIG),
        **({"title": _drawable(title)} if title else {}),
        "width": size[0],
        "height": size[1],
        "data": {"values": values},
        "mark": mark,
        "encoding": encoding,
    }


def _quantity(
    name: str, title: str | None, log: bool, *, zero: bool, nice: bool = True, num_ticks: int = 6
) -> Spec:
    scale: Spec = {"type": "log", "nice": False} if log else {"zero": zero, "nice": nice}
    # Large numbers as 20k, so that labels never collide; d3's own "s" would also write 0.5 as 500m.
    label = "abs(datum.value) >= 1000 ? format(datum.value, '~s') : format(datum.value, '~g')"
    return {
        "field": name,
        "type": "quantitative",
        "title": _words(name) if title is None else title,
        "scale": scale,
        "axis": {"tickCount": num_ticks, "labelExpr": label},
    }


def _colour(series: str | None, rows: Rows) -> Spec:
    if series is None:
        return {"color": {"value": PALETTE[0]}}
    order = list(dict.fromkeys(_drawable(row.get(series)) for row in rows))
    return {"color": {"field": series, "type": "nominal", "scale": {"domain": order}}}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drawable(value: Any) -> Any:
    """Text with its control characters written out: XML, and so SVG, has none, and vl-convert ends the process."""
    return (
        _UNDRAWABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", value) if isinstance(value, str) else value
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _converter() -> Any:
    try:
        import vl_convert
    except ImportError:
        raise _missing() from None
    return vl_convert


def _missing() -> GlassformerError:
    return GlassformerError(
        "Drawing a chart needs Altair and vl-convert, which are not installed.",
        do="Install them with: pip install 'glassformer[plots]'. A chart saved as .json needs neither.",
    )
