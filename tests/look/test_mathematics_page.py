"""The page of the mathematics: formulas are explain's, code is the code, the arithmetic holds, the example runs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import glassformer as gf
from glassformer.cli.main import main
from glassformer.look.explain import explain
from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer

PAGE = (Path(__file__).parents[2] / "docs/mathematics.md").read_text("utf-8")
STEPS = re.findall(
    r"^### \d+\. (.+?)\n\n.*?```text\n(.*?)\n\n(.*?)\n```\n\n(.*?)(?=\n\n|\n\Z)", PAGE, re.M | re.S
)


def test_its_titles_and_formulas_are_those_of_explain_for_a_model_of_the_demos_kind() -> None:
    config = ModelConfig(vocab=30, width=16, layers=2, heads=4, context=8)
    found = explain(build(config), [1, 2, 3, 4])
    assert [(title, formula) for title, formula, _, _ in STEPS] == [(s.title, s.formula) for s in found]
    assert re.findall(r"^## (.+)", PAGE, re.M)[:-1] == list(
        dict.fromkeys(s.section.split(", ")[0] for s in found)
    )


def test_every_line_of_code_on_it_is_in_the_file_it_names_and_every_place_in_the_table() -> None:
    package, count = Path(gf.__file__).parent, 0
    known = gf.look(build(ModelConfig(vocab=9, width=8, layers=2, heads=2, context=4)), [1, 2], "*")
    for title, _, _, below in STEPS:
        code = re.findall(r"`(\w+/\w+\.py)`: `(.+?)` *$", below, re.M)
        assert code, title
        for path, line in code:
            lines = [
                each.strip().partition("  #")[0] for each in (package / path).read_text("utf-8").splitlines()
            ]
            assert line in lines, f"{path} no longer holds: {line}"
            count += 1
        assert all(place in known for place in re.findall(r"^place `(.+)`", below, re.M))
    assert count > 30


NUMBER = r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?"


def arithmetic() -> Iterator[tuple[str, str, str]]:
    """(name, what is computed, what it gives) of every line that computes something."""
    for _, _, numbers, _ in STEPS:
        whole: list[str] = []
        for line in numbers.splitlines():  # a line goes on where nothing stands before it
            if line.startswith(" "):
                whole[-1] += f" {line.strip()}"
            else:
                whole.append(line)
        for line in whole:
            name, right, *value = re.sub(r" +\((?:entries|of|it was) .*\)$", "", line).split(" = ")
            if value:
                yield name.strip(), right.strip(), value[0].strip()


def school(text: str) -> float:
    text = re.sub(r"the other [\d,]+ terms: ", "", text)
    for sign, python in {"×": "*", "√": "sqrt", "e^(": "exp(", "ln(": "log(", "²": "**2", "^": "**"}.items():
        text = text.replace(sign, python)
    names = {name: getattr(math, name) for name in ("sqrt", "exp", "log", "sin", "cos")} | {"max": max}
    return float(eval(text, {"__builtins__": {}}, names))


def unit(number: str) -> float:
    """How far a rounded number may be from what it stands for; whole numbers stand for themselves."""
    head, _, tail = number.partition("e")
    return 0.5 * 10.0 ** (int(tail or 0) - len(head.partition(".")[2])) if "." in head else 0.0


def test_every_line_on_it_can_be_computed_again_from_what_it_shows() -> None:
    lines = list(arithmetic())
    assert len(lines) > 45
    for name, right, value in lines:
        found, slack = school(right), unit(value.lstrip("-"))
        for number in re.finditer(
            NUMBER, re.sub(r"the other [\d,]+", lambda other: "x" * len(other[0]), right)
        ):
            start, end = number.span()
            moved = f"{right[:start]}{float(number[0]) + unit(number[0])!r}{right[end:]}"
            slack += abs(school(moved) - found)
        assert abs(found - float(value)) <= 1.1 * slack + 1e-12, (name, right, value)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in a folder."""
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])
    config = ModelConfig(vocab=257, width=16, layers=2, heads=2, context=32)
    folder = tmp_path_factory.mktemp("explain") / "model"
    return gf.save_model(folder, build(config), tokenizer)


def test_its_example_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(code.replace("runs/demo-1", run.as_posix()), {})
    assert "Query meets key" in capsys.readouterr().out


def test_the_verb_prints_the_explanation_as_a_text_and_as_one_document(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(run), "the cat", "--head", "1", "--weight", "blocks.1.mlp.up.weight[3, 5]"]
    assert main(["explain", *given]) == 0
    shown = capsys.readouterr().out
    found = gf.explain(gf.load(run), "the cat", head=1, weight="blocks.1.mlp.up.weight[3, 5]")
    assert shown == found.text()
    assert main(["explain", *given, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "glassformer.explanation" and len(document["steps"]) == len(found.steps)
    assert document["choices"]["weight"] == "blocks.1.mlp.up.weight[3, 5]"
    assert main(["explain", str(run), "the cat", "--layer", "5"]) == 2


def test_the_verb_explains_a_plain_network_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("a,b,label\n" + "".join(f"{i % 7},{i % 3},{'yn'[i % 2]}\n" for i in range(60)), "utf-8")
    network = tmp_path / "run"
    settings = ["--task", "classify", "--data.target", "label", "--train.steps", "2", "--run", str(network)]
    assert main(["train", str(rows), *settings]) == 0
    capsys.readouterr()
    assert main(["explain", str(network), str(rows), "--position", "4", "--target", "y"]) == 0
    shown = capsys.readouterr().out
    assert "What does the network make of row 4?" in shown and 'score of "y"' in shown
    assert main(["explain", str(network), str(rows), "--target", "z"]) == 2
