"""The verbs of laws, through the program: what is printed, kept and refused, and that they are one another's input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import glassformer as gf
from glassformer.cli.main import main


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A study of a known law: 4 budgets, 7 sizes, 0.3 % of noise."""
    C = np.repeat(1e18 * 4.0 ** np.arange(4), 7)  # noqa: N806 # the field's symbols
    N = 0.1 * np.sqrt(C) * np.tile(8.0 ** np.linspace(-1, 1, 7), 4)  # noqa: N806
    D = C / (6 * N)  # noqa: N806
    loss = (1.7 + 400 / N**0.34 + 1800 / D**0.37) * np.exp(
        0.003 * np.random.default_rng(0).standard_normal(28)
    )
    lines = [f"r{k},{n},{d},{y}" for k, (n, d, y) in enumerate(zip(N, D, loss, strict=True))]
    path = tmp_path_factory.mktemp("study") / "study.csv"
    path.write_text("\n".join(["run,params,tokens,val_loss", *lines]), "utf-8")
    return str(path)


def asked(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["scale", *words]) == code
    told = capsys.readouterr()
    return " ".join(told.out.split()), told.err  # sentences are folded to the terminal's width


def test_a_law_that_was_kept_forecasts_and_divides_compute_as_in_python(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    law, page, chart, spec = (
        str(tmp_path / name) for name in ("law.json", "law.html", "law.png", "law.vl.json")
    )
    out, err = asked(capsys, "fit", table, "--unit", "nats per token", "--tokenizer", "bpe",
                     "--profile", "a", "--out", law, "--out", page,
                     "--out", chart, "--out", spec)  # fmt: skip
    assert "L = E + A / N^alpha + B / D^beta, fitted to 28 runs" in out and "Profile of a" in out
    assert "Loss in nats per token (tokenizer: bpe)" in out
    assert all(f"It is in {path}." in err for path in (law, page, chart, spec))
    assert json.loads(Path(spec).read_text("utf-8"))["layer"] and Path(chart).read_bytes()[:4] == b"\x89PNG"
    forecaster = gf.Forecaster.load(law)
    out, _ = asked(capsys, "forecast", law, "--flops", "1e21", "--next", "--json")
    told = json.loads(out)
    assert told["schema"] == "glassformer.forecast" and told["loss"] == forecaster.forecast(flops=1e21).loss
    assert {"cap", "runs", "grid", "width"} == set(told["next"])
    out, _ = asked(capsys, "forecast", table, "--unit", "nats per token", "--flops", "1e21")
    assert "Nine times out of ten it will lie between" in out and "nats per token" in out
    out, _ = asked(capsys, "optimum", law, "--flops", "1e21", "--serve", "1T", "--json")
    found = gf.optimum(gf.Law.load(law), flops=1e21, serve=1e12)
    assert json.loads(out)["N"] == found.N and json.loads(out)["schema"] == "glassformer.optimum"


def test_a_page_of_a_forecast_is_kept_with_the_next_run(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "f.html"
    asked(capsys, "forecast", table, "--params", "1B", "--tokens", "20B", "--cap", "1e21", "--out", str(page))
    assert "Which run next" in page.read_text("utf-8")


def test_a_published_law_divides_compute_and_its_loss_is_refused(
    table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = asked(capsys, "optimum", "besiroglu-2024", "--flops", "5.76e23")
    assert "72.4B parameters on 1.33T tokens" in out and "C = 6 N D" in out and "need not be yours" in err
    out, _ = asked(capsys, "optimum", "muennighoff-2023", "--flops", "1e22", "--unique", "25B")
    assert "read 9.49 times" in out
    _, err = asked(capsys, "forecast", "besiroglu-2024", "--flops", "1e24", code=2)
    assert "on another text it means nothing" in err and "--exponents besiroglu-2024" in err
    out, _ = asked(capsys, "fit", table, "--exponents", "besiroglu-2024", "--json")
    told = {row["number"]: row["value"] for row in json.loads(out)["values"]}
    assert told["alpha"] == 0.34781 and told["beta"] == 0.36585 and told["E"] == pytest.approx(1.7, abs=0.2)
    _, err = asked(capsys, "optimum", "besiroglu", "--flops", "1e24", code=2)
    assert "did you mean 'besiroglu-2024'" in err


def test_parabolas_are_told_beside_the_other_approaches(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "a.html"
    out, _ = asked(capsys, "fit", table, "--approach", "isoflop", "--out", str(page))
    assert "By isoflop, the best size grows as C^" in out and "3: chinchilla" in out and page.is_file()
    out, _ = asked(capsys, "fit", table, "--approach", "isoflop", "--json")
    assert {row["approach"] for row in json.loads(out)["approaches"]} == {"2: isoflop", "3: chinchilla"}


def test_every_doubt_is_told_on_stderr_with_its_effect(
    table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = asked(capsys, "fit", table, "--bootstrap", "50")
    assert "warning: unit: nobody says" in err and "Effect: " in err and "warning" not in out
    out, _ = asked(capsys, "fit", table, "--bootstrap", "50", "--json")
    assert {"name", "message", "effect"} == set(json.loads(out)["doubts"][0])


def test_what_json_prints_is_no_law_to_forecast_from(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = asked(capsys, "fit", table, "--json", "--bootstrap", "20")
    (tmp_path / "printed.json").write_text(out, "utf-8")
    _, err = asked(capsys, "forecast", str(tmp_path / "printed.json"), "--flops", "1e21", code=2)
    assert "--out law.json" in err


def test_settings_without_an_effect_are_refused(table: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["optimum", "besiroglu-2024", "--flops", "1e22", "--unit", "nats"], "is a law already"),
        (["fit", table, "--approach", "tied", "--exponents", "besiroglu-2024"], "Leave one of the two out"),
        (["fit", table, "--approach", "isoflop", "--profile", "a"], "no numbers to profile"),
    ):
        _, err = asked(capsys, *words, code=2)
        assert said in err
