"""`glassformer convert`: any form to any other with the same weights; settings without effect are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import glassformer as gf
from glassformer.cli.main import main
from glassformer.model.stacks import build
from glassformer.use.load import weights_digest


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A model folder of ours with the demo's settings."""
    tokenizer = gf.Tokenizer.train(gf.TokenizerConfig(vocab=280), [b"the cat sat on the mat. " * 50])
    config = gf.ModelConfig(vocab=tokenizer.vocab_size, width=32, layers=2, heads=4, context=16)
    return gf.save_model(tmp_path / "own", build(config), tokenizer)


def test_from_ours_around_through_every_form_and_back_the_weights_are_the_same(
    own: Path, tmp_path: Path
) -> None:
    steps = [
        ("a.gguf", ["--dtype", "f32"]), ("hf", []), ("b.gguf", ["--dtype", "f32"]), ("again", ["--to", "glassformer"]),
        ("hf2", ["--to", "huggingface"]),
    ]  # fmt: skip
    source, before = own, gf.load(own)
    for name, options in steps:
        assert main(["convert", str(source), str(tmp_path / name), *options]) == 0
        source = tmp_path / name
        after = gf.load(source)
        assert weights_digest(after.model) == weights_digest(before.model), name
        assert after.tokenizer.digest == before.tokenizer.digest
    kinds = {
        name: json.loads((tmp_path / name / "config.json").read_text())["model_type"]
        for name in ("hf", "again")
    }
    assert kinds == {"hf": "arcee", "again": "glassformer"}


def test_it_says_what_was_written(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.gguf"
    assert main(["convert", str(own), str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "schema": "glassformer.convert", "version": 1, "source": str(own), "out": str(out), "form": "gguf f16",
        "bytes": out.stat().st_size,
    }  # fmt: skip
    assert main(["convert", str(out), str(tmp_path / "hf")]) == 0
    assert "huggingface" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("out", "options", "says"),
    [
        ("x.gguf", ["--to", "glassformer"], "--to is for folders"),
        ("folder", ["--dtype", "f16"], "--dtype is for GGUF files"),
        ("x.gguf", ["--dtype", "q4_0"], "q4_0"),
        ("own/model.safetensors", [], "is no model folder"),
    ],
)
def test_settings_without_effect_and_places_that_are_no_models_are_refused(
    own: Path, tmp_path: Path, out: str, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (own / "model.safetensors").read_bytes()
    assert main(["convert", str(own), str(tmp_path / out), *options]) == 2
    assert says in capsys.readouterr().err
    assert (own / "model.safetensors").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_holds_something_else_is_never_replaced(own: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("mine")
    for to in ("glassformer", "huggingface"):
        assert main(["convert", str(own), str(tmp_path / "mine"), "--to", to]) == 2
    assert (tmp_path / "mine" / "precious.txt").read_text() == "mine"
