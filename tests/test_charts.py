"""Charts are plain data that Vega-Lite accepts, and that look the same saved, inlined and shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

altair = pytest.importorskip("altair")

from glassformer import charts  # noqa: E402
from glassformer.errors import GlassformerError  # noqa: E402

ROWS = [
    {"step": step, "loss": 5.0 / (1 + step) + (curve == "validation"), "curve": curve}
    for step in range(20)
    for curve in ("training", "validation")
]
CELLS = [
    {"query": q, "key": k, "weight": 1 / (q + 1) if k <= q else None} for q in range(4) for k in range(4)
]
BINS = [
    {"confidence": c, "accuracy": c**2, "accuracy_low": c**3, "accuracy_high": c, "rows": 9, "model": name}
    for c in (0.3, 0.8, 0.95)
    for name in ("before", "after")
]
SPECS = {
    "line": charts.line(ROWS, "step", "loss", series="curve", title="Loss", y_title="loss (nats per token)"),
    "log": charts.line(ROWS[2:], "step", "loss", log_x=True, log_y=True),
    "bars": charts.bars(
        [{"engine": "eager", "speed": 1.0}, {"engine": "compiled", "speed": 2.0}], "engine", "speed"
    ),
    "grouped bars": charts.bars(ROWS[:6], "step", "loss", series="curve"),
    "heatmap": charts.heatmap(CELLS, "key", "query", "weight", labels=["a", '"', "\n", "a"]),
    "layers": charts.layers(
        charts.line(ROWS, "step", "loss", faint=True, y_title="loss"), charts.line(ROWS, "step", "loss")
    ),
    "reliability": charts.reliability(BINS[::2], title="Digits"),
    "two reliabilities": charts.reliability(BINS, series="model"),
    "empty": charts.line([], "step", "loss"),
}


@pytest.mark.parametrize("name", SPECS)
def test_every_kind_of_chart_is_valid_vega_lite_and_draws_without_a_word_of_warning(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    charts.show(SPECS[name]).to_dict(validate=True)
    assert charts.svg(SPECS[name]) is not None
    assert capfd.readouterr().err == ""


def test_values_that_are_not_finite_leave_a_gap_and_the_spec_stays_json() -> None:
    spec = charts.line([{"x": 1, "y": float("nan")}, {"x": 2, "y": float("inf")}, {"x": 3}], "x", "y")
    values = json.loads(json.dumps(spec, allow_nan=False))["data"]["values"]
    assert [row["y"] for row in values] == [None, None, None]


def test_layers_share_titles_and_look() -> None:
    spec = charts.layers(charts.line(ROWS, "step", "loss", y_title="nats"), charts.line(ROWS, "step", "loss"))
    assert [one["encoding"]["y"]["title"] for one in spec["layer"]] == ["nats", "nats"]
    assert {"config", "width", "height"} <= spec.keys()


def test_a_reliability_diagram_has_its_diagonal_intervals_points_and_counts() -> None:
    spec = charts.reliability(BINS[::2], title="Digits")
    diagonal, intervals, points, counts = spec["layer"]
    assert diagonal["data"]["values"] == [{"confidence": e, "accuracy": e} for e in (0.0, 1.0)]
    ends = [intervals["encoding"][axis]["field"] for axis in ("y", "y2")]
    assert ends == ["accuracy_low", "accuracy_high"] and points["encoding"]["y"]["field"] == "accuracy"
    assert counts["encoding"]["text"]["field"] == "rows" and spec["title"] == "Digits"
    assert all(one["encoding"]["x"]["scale"]["domain"] == [0, 1] for one in spec["layer"])


@pytest.mark.parametrize(
    ("suffix", "begins"), [("json", b"{"), ("svg", b"<svg"), ("png", b"\x89PNG"), ("html", b"<!")]
)
def test_a_chart_is_saved_as_what_its_name_says(tmp_path: Path, suffix: str, begins: bytes) -> None:
    charts.save(SPECS["line"], tmp_path / f"chart.{suffix}")
    assert (tmp_path / f"chart.{suffix}").read_bytes().lstrip().startswith(begins)


def test_a_saved_page_holds_everything_it_needs(tmp_path: Path) -> None:
    charts.save(SPECS["line"], tmp_path / "chart.html")
    page = (tmp_path / "chart.html").read_text("utf-8")
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GlassformerError, match=r"\.png"):
        charts.save(SPECS["line"], tmp_path / "chart.jpeg")


def test_an_inlined_chart_takes_the_pages_colour_and_shares_no_ids_with_another() -> None:
    def drawn(spec: dict[str, Any]) -> str:
        picture = charts.svg(spec)
        assert picture is not None
        return picture

    one, other = drawn(SPECS["heatmap"]), drawn(SPECS["line"])
    assert "currentColor" in one and "currentColor" in other
    identities = [set(re.findall(r'\bid="([^"]+)"', picture)) for picture in (one, other)]
    assert identities[0] and not identities[0] & identities[1]
    used = set(re.findall(r"url\(#([^)]+)\)", one))
    assert used <= identities[0]


def test_without_the_extra_a_spec_is_still_saved_and_drawing_says_what_to_install(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["altair"] = sys.modules["vl_convert"] = None  # what an import finds when nothing is installed
from pathlib import Path
from glassformer import charts
from glassformer.errors import GlassformerError
spec = charts.line([{"x": 1, "y": 2}], "x", "y")
charts.save(spec, Path(sys.argv[1]) / "chart.json")
assert charts.svg(spec) is None
for draw in (lambda: charts.save(spec, Path("chart.png")), lambda: charts.show(spec)):
    try:
        draw()
    except GlassformerError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("pip install 'glassformer[plots]'") == 2
    assert json.loads((tmp_path / "chart.json").read_text())["mark"]


def test_cells_may_hold_words_and_be_wider_than_high() -> None:
    rows = [{"x": x, "y": 0, "v": x - 1.0, "w": f"<{x}>"} for x in range(3)]
    spec = charts.heatmap(rows, "x", "y", "v", words="w", diverging=True, size=(300, 40))
    cells, text = spec["layer"]
    assert (spec["width"], spec["height"]) == (300, 40)
    assert cells["encoding"]["color"]["scale"] == {"scheme": "blueorange", "domain": [-1, 1]}
    assert [row["w"] for row in text["data"]["values"]] == ["<0>", "<1>", "<2>"]
    assert charts.svg(spec) is None or "&lt;1&gt;" in str(charts.svg(spec))


def test_dots_have_their_words_beside_them() -> None:
    rows = [{"a": 1.0, "b": 2.0, "token": "cat", "kind": "animal"}]
    dots, text = charts.points(rows, "a", "b", words="token", series="kind")["layer"]
    assert dots["mark"]["type"] == "point" and text["encoding"]["text"]["field"] == "token"
    assert "layer" not in charts.points(rows, "a", "b")


def test_characters_that_no_svg_may_hold_are_written_out_everywhere() -> None:
    bad = "".join(map(chr, [0, 1, 27, 0xFFFE, 0xD800])) + "a"
    rows = [{"x": 0, "y": 0, "v": 1.0, "w": bad}]
    for spec in (
        charts.heatmap(rows, "x", "y", "v", labels=[bad], words="w", title=bad),
        charts.bars(rows, "w", "v", series="w", title=bad),
        charts.points(rows, "x", "y", words="w"),
        charts.line(rows, "x", "v", series="w"),
    ):
        drawn = charts.svg(spec)  # without it the process ends
        assert drawn is None or r"\x00\x01\x1b" in drawn
