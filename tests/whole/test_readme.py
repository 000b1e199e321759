"""The README's Python, run as it stands on a text of one's own; only the model is smaller."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from as_a_user import write_project

README = Path(__file__).parents[2] / "README.md"
SMALL = """{
    "tokenizer.kind": "bytes", "model.width": 16, "model.layers": 1, "model.context": 16,
    "train.steps": 2, "train.batch": 2, "train.sample_tokens": 2, "engine.compile": "off",
    "engine.precision": "fp32", "engine.attention": "explicit",
}"""


def test_the_python_in_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (write_project(tmp_path) / "texts").rename(tmp_path / "my_texts")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSFORMER_HOME", str(tmp_path / "home"))
    found = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert found
    code = found[1].replace('{"model.width": 256}', SMALL)
    assert code != found[1]
    exec(compile(code, str(README), "exec"), {})
    shown = capsys.readouterr().out
    assert "Once upon a time" in shown and "blocks.0.attn.pattern" in shown
    assert (tmp_path / "runs/my_texts-1/report.html").exists()


def test_the_readme_names_the_two_commands_that_make_knows() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert f"make {target}" in README.read_text(encoding="utf-8")
        assert re.search(rf"^{target}:", makefile, re.M)
