"""The example of docs/scale.md is what the program prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from glassformer.cli.main import main

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e\d+)?")


def parts(text: str) -> tuple[str, list[float]]:
    """The words, and the numbers between them; the last digits are another machine's own."""
    folded = " ".join(re.sub(r"[─\s]+", " ", text).split())
    return NUMBER.sub("#", folded), [float(one.replace(",", "")) for one in NUMBER.findall(folded)]


def test_the_fit_of_the_docs_is_what_the_program_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (ROOT / "docs/scale.md").read_text("utf-8")
    example = text[text.index("## An example") :]
    command, printed, doubts = re.findall(r"```\n(.*?)```", example, re.S)[:3]
    words = re.sub(r"law\.json", str(tmp_path / "law.json"), command).replace(
        '"nats per token"', "nats_per_token"
    )
    monkeypatch.chdir(ROOT)
    assert main([word.replace("_per_", " per ") for word in words.split()[1:]]) == 0
    told = capsys.readouterr()
    for shown, made in ((printed, told.out), (doubts, told.err.partition("\n")[2])):
        assert parts(shown)[0] == parts(made)[0]
        assert parts(shown)[1] == pytest.approx(parts(made)[1], rel=0.05, abs=0.02)
