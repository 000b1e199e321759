"""The report tells the whole run on one page that needs nothing else."""

from __future__ import annotations

import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up_run import make

from glassformer.run.folder import Run
from glassformer.run.report import write_report

SECTIONS = [
    "How it learned",
    "What it writes",
    "Where it looks",
    "Pace and steadiness",
    "The text",
    "What it cost",
    "How this machine was used",
    "Checkpoints",
    "What happened",
    "How to make it again",
]


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order."""

    empty = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.empty:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def sections(page: str) -> list[str]:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    return re.findall(r"<h2>(.*?)</h2>", page)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make(tmp_path_factory.mktemp("runs") / "demo-1", steps=600)


def test_the_page_tells_everything_and_loads_nothing(made_up: Run) -> None:
    page = (made_up.path / "report.html").read_text("utf-8")
    pytest.importorskip("vl_convert")
    assert sections(page) == SECTIONS
    assert page.count("<svg") >= 8
    assert not re.search(r"<(script|link|img|iframe)|@import|src=|href=\"(?!#)", page)
    assert "default-src 'none'" in page
    numbers = ["210 TFLOP", "6.84M", "0.857", "9,150 J", "learning_rate = 0.02"]
    words = [
        "Chosen: bf16 masters, compiled, by measuring 5 ways.",
        "9 of 660 documents are empty.",
        "tensor blocks.3.attn.q",
        "safetensors",
    ]
    assert [told for told in numbers + words if told not in page] == []
    assert str(made_up.path) not in page


def test_text_the_model_wrote_is_never_markup(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "<b>run", {"name": "<i>recipe"}, {})
    run.events.append("sample", step=1, prompt="<u>", text="<u></pre><script>alert(1)</script>&amp;")
    run.events.append("attention", layer=0, head=0, tokens=["<s>", '"]\n'], pattern=[[1.0, 0.0], [0.5, 0.5]])
    run.events.append("warning", message="<script>")
    page = write_report(run).read_text("utf-8")
    assert "<script" not in page and "<i>recipe" not in page and "<b>run" not in page
    assert "<b>&lt;u&gt;</b>&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;" in page
    assert sections(page) == ["What it writes", "Where it looks", "What happened", "How to make it again"]


def test_without_the_extra_the_same_page_has_tables_and_says_how_to_get_charts(
    made_up: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)  # what an import finds when it is not installed
    page = write_report(made_up).read_text("utf-8")
    assert "<svg" not in page and "pip install &#x27;glassformer[plots]&#x27;" in page.replace("'", "&#x27;")
    assert sections(page) == SECTIONS


def reliable(**more: object) -> dict[str, object]:
    """An event `calibration` as a classifier of <b>markup</b> would give it."""
    row = {"low": 0.8, "high": 0.9, "rows": 40, "confidence": 0.85, "accuracy": 0.8, "scores": "as trained",
           "accuracy_low": 0.65, "accuracy_high": 0.9}  # fmt: skip
    mistake = {
        "row": "rows.csv row 7",
        "shown": "x 1",
        "says": "<b>cat",
        "sure": 0.9,
        "is": "dog",
        "sure_of_that": 0.1,
    }
    event: dict[str, object] = {
        "part": "test", "kind": "classes", "num_rows": 40, "accuracy": 0.8, "confidence": 0.85, "ece": 0.05,
        "ece_by_chance_high": 0.11, "verdict": "It can be taken at its word.", "advice": "T = 1.20",
        "temperature": {"value": 1.2, "ece": 0.0312}, "warnings": ["Only 8 rows are wrong."], "bins": [row],
        "mistakes": [mistake],
    }  # fmt: skip
    return event | more


def test_a_run_on_rows_shows_whether_it_can_be_believed_and_what_it_learned_from(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {}, {})
    run.events.append("start", unit="row", loss_unit="nats per row")
    run.events.append("text_report", report={"table": [{"part": "training", "rows": 120}], "warnings": []})
    run.events.append("step", step=1, loss=3.0, tokens_per_second=10.0)
    run.events.append("validation", step=1, loss=2.0, accuracy=0.8125, test_accuracy=0.75)
    run.events.append("sample", step=1, prompt="x 1\n", text="says cat (90%), but it is dog (10%)")
    run.events.append("calibration", **reliable())
    page = write_report(run).read_text("utf-8")
    assert {"Says 70%, right 70%?", "What it says", "The table"} <= set(sections(page))
    for told in ("expected calibration error", "It can be taken at its word.", "65.0% to 90.0%", "0.031", "T = 1.20",
                 "Only 8 rows are wrong.", "rows.csv row 7", "81.25%", "75.00%", "nats per row",
                 "Rows per second"):  # fmt: skip
        assert told in page, told
    assert "<b>cat" not in page and "token" not in page.lower().replace("tokens_per", "")


def test_mistakes_with_pictures_are_drawn_side_by_side(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {}, {})
    mistake = {"row": "a.png", "shown": "██\n░░", "says": "1", "sure": 0.9, "is": "7", "sure_of_that": 0.1}
    run.events.append("calibration", **reliable(mistakes=[mistake], temperature=None))
    page = write_report(run).read_text("utf-8")
    assert "██\n░░" in page and "but it is 7 (10.0%)" in page
    assert sections(page)[0] == "Says 70%, right 70%?"


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"model": {"width": 8}}, {})
    assert sections(write_report(run).read_text("utf-8")) == ["How to make it again"]
    run.events.append("step", step=1, loss=3.0, utilisation=None)
    assert "How it learned" in sections(write_report(run).read_text("utf-8"))


def test_a_run_that_diverged_has_a_report(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {}, {})
    for step, loss in enumerate([3.0, 2.0, math.inf, math.nan, math.nan], start=1):
        run.events.append("step", step=step, loss=loss, grad_norm=loss)
    run.events.append("validation", step=5, loss=math.nan, bits_per_byte=math.nan)
    run.events.append("stopped", steps=5, train_loss=math.nan, val_loss=math.nan)
    page = write_report(run).read_text("utf-8")
    assert "NaN" in page and "How it learned" in sections(page)
