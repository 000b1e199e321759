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
        "bf16 masters, compiled",
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
