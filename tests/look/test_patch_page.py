"""docs/patch.md cannot lie, and the verbs `patch` and `ablate` show what the functions give."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from patch_models import worded

import glassformer as gf
from glassformer.cli.main import main
from glassformer.look.ablate import How
from glassformer.look.parts import part
from glassformer.use.load import save_model

PAGE = (Path(__file__).parents[2] / "docs" / "patch.md").read_text(encoding="utf-8")


def test_the_examples_run() -> None:
    names: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(example, names)
    assert names["found"].recovered.shape == (2, 4)


def test_every_way_to_ablate_has_its_row_and_every_part_named_there_can_be() -> None:
    assert re.findall(r"^\| `(\w+)` \| (?!head|neuron|all|the same|a head)", PAGE, re.M) == list(
        get_args(How)
    )
    table = PAGE[PAGE.index("| name | part |") : PAGE.index("Measured on SmolLM2-135M, four times")]
    sizes = {"vocab": 9, "width": 36, "heads": 9, "layers": 20, "feedforward": 144, "context": 4}
    for name in re.findall(r"`([\w.]+)`", table):
        kind = "encoder-decoder" if "coder" in name else "decoder"
        assert part(name, gf.ModelConfig.model_validate({"kind": kind, **sizes})).name == name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("made"))


def saved(path: Path, **changes: Any) -> Path:
    loaded = worded(**changes)
    save_model(path, loaded.model.float(), loaded.tokenizer)
    return path


def test_the_map_and_the_document_hold_what_the_function_gives(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "map.json"
    given = ["patch", str(folder), "a cat", "a dog", "--answer", "x", "--instead", "y", "--device", "cpu"]
    assert main([*given, "--json", "--out", str(picture)]) == 0
    shown = json.loads(capsys.readouterr().out)
    found = gf.patch(gf.load(folder), "a cat", "a dog", metric=("x", "y"))
    assert shown["schema"] == "glassformer.patched" and shown["rows"] == found.to_dict()["rows"]
    assert json.loads(picture.read_text())["mark"] == {"type": "rect"}
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert f"{found.clean:.4g}" in printed and "c / d" in printed
    lines = [row.split()[1:] for row in printed.splitlines() if re.match(r"\s+[012]\s", row)]
    cells = [cell for line in lines for cell in line]
    for cell, value in zip(cells, found.recovered.flatten().tolist(), strict=True):
        assert cell == "·" if value == 0 else float(cell) == pytest.approx(value, abs=0.006)


def test_a_map_too_wide_for_the_screen_gives_its_strongest_cells(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "abcdefghijklmnopqrstuvwxyz and so on"
    assert main(["patch", str(folder), text, text.upper(), "--loss"]) == 0
    captured = capsys.readouterr()
    assert "strongest cells" in captured.err and "blocks.0.resid_pre" in captured.out


def test_a_subject_is_traced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["patch", str(folder), "the cat", "--subject", "cat", "--samples", "2", "--place", "mlp"]
    assert main([*given, "--window", "2"]) == 0
    assert "c*" in capsys.readouterr().out
    assert main([*given, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    found = gf.causal_trace(gf.load(folder), "the cat", "cat", samples=2, places="mlp")
    assert shown["schema"] == "glassformer.causal_trace"
    assert shown["total_effect"] == found.total_effect and shown["rows"] == found.to_dict()["rows"]


def test_parts_are_ablated_together_or_one_by_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one text\nanother\n")
    given = [
        "ablate",
        str(folder),
        "the cat",
        "--what",
        "L0H1",
        "L1mlp",
        "--how",
        "mean",
        "--over",
        str(texts),
    ]
    assert main([*given, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    found = gf.ablate(gf.load(folder), "the cat", ["L0H1", "L1mlp"], how="mean", over=["one text", "another"])
    assert shown["effects"] == found.to_dict()["effects"] and shown["schema"] == "glassformer.ablated"
    assert main([*given, "--one-by-one"]) == 0
    printed = capsys.readouterr().out
    assert " L0H1 " in printed and " L1mlp " in printed and "position" not in printed
    assert main(given) == 0
    assert " c " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a cat"], "One text was given"),
        (["a cat", "a dog", "--samples", "3"], "--samples has no effect without --subject"),
        (["a cat", "a dog", "--subject", "cat"], "corrupt has no effect with --subject"),
        (["a cat", "--subject", "cat", "--loss"], "--loss has no effect with --subject"),
        (["a cat", "a dog", "--answer", "x"], "Of --answer and --instead, one was given"),
        (["a cat", "a dog", "--answer", "x", "--instead", "y", "--loss"], "no effect with --loss"),
        (["a cat", "a dogs"], "5 and 6 tokens"),
        (["a cat", "--subject", "dog"], "'dog' is not in the text"),
        (["a cat", "--subject", "cat", "--place", "mlp", "--place", "attn"], "one of resid, mlp, attn"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    arguments: list[str], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["patch", str(folder), *arguments]) == 2
    assert told in capsys.readouterr().err


def test_an_encoder_and_an_encoder_decoder_are_patched_by_the_same_verb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reads = saved(tmp_path / "reads", family="encoder")
    assert main(["patch", str(reads), "a <|mask|> c", "x <|mask|> c", "--answer", "b", "--instead", "d"]) == 0
    assert "<|mask|>" in capsys.readouterr().out
    pair = saved(tmp_path / "pair", family="encoder-decoder")
    given = ["patch", str(pair), "ein", "der", "--target", "a", "--loss", "--place", "decoder.*.cross_attn.z"]
    assert main(given) == 0
    assert "H3" in capsys.readouterr().out
    assert main(["ablate", str(pair), "ein", "--target", "ab", "--what", "decoder.L0X1"]) == 0
