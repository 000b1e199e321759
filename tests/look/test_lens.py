"""The logit lens: every number against NumPy's, the end against the model, the verb against both."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family import FAMILY, IDS, SOURCE, asked, drawn
from numpy.typing import NDArray
from scipy.special import log_softmax
from scipy.stats import entropy

import glassformer as gf
from glassformer import charts
from glassformer.cli.main import main
from glassformer.errors import ModelError, UsageError
from glassformer.look import lens as module
from glassformer.look.reading import Reading
from glassformer.model.transformer import Transformer

ROOT = Path(__file__).parents[2]
members = pytest.mark.parametrize("settings", FAMILY.values(), ids=FAMILY)


def read_out(model: Transformer, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The last norm and the head, in NumPy."""
    norm: Any = model.norm
    if norm is not None:
        x = x - x.mean(-1, keepdims=True) if norm.centred else x
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + norm.epsilon) * norm.weight.numpy()
        x = x if norm.bias is None else x + norm.bias.numpy()
    bias: Any = model.head.bias
    return np.asarray(x @ model.head.weight.numpy().T + (0 if bias is None else bias.numpy()))


@members
def test_every_number_is_what_numpy_makes_of_the_stream(settings: dict[str, Any]) -> None:
    model = drawn(settings)
    seen = gf.lens(model, token=5, top=3, **asked(settings))
    trace = gf.look(model, places="*", **asked(settings))
    final = log_softmax(trace["logits"][0].numpy(), axis=-1)
    assert [stage.layer for stage in seen.stages] == [0, 1, 2, 3]
    for row in seen.rows():
        at = row["position"]
        logits = read_out(model, trace[row["place"]][0, at].numpy())
        p = np.exp(log_softmax(logits))
        assert row["rank"] == np.count_nonzero(logits > logits[5]) and row["chosen"] == "5"
        assert row["probability"] == pytest.approx(p[5], abs=1e-12)
        assert row["entropy"] == pytest.approx(entropy(p), abs=1e-10)
        assert row["kl"] == pytest.approx(entropy(np.exp(final[at]), p), abs=1e-10)
        assert [one["id"] for one in row["top"]] == np.argsort(-logits)[:3].tolist()
        assert [one["probability"] for one in row["top"]] == pytest.approx(np.sort(p)[::-1][:3])
        assert row["token"] == str(IDS[at])


@members
def test_the_last_layer_says_what_the_model_says(settings: dict[str, Any]) -> None:
    model = drawn(settings, dtype=torch.float32)
    seen = gf.lens(model, top=23, **asked(settings))
    said = Reading.of(model, **asked(settings)).run()[0]
    ours = torch.zeros_like(said).scatter(-1, seen.top_ids[-1], seen.top_probabilities[-1])
    torch.testing.assert_close(ours, said.softmax(-1), rtol=0, atol=1e-6)
    assert list(seen.chosen) == said.argmax(-1).tolist()
    assert not seen.rank[-1].any() and float(seen.kl[-1].max()) <= 1e-6 < float(seen.kl[0].min())


@members
def test_half_shows_the_stream_between_the_parts_of_a_block(settings: dict[str, Any]) -> None:
    model = drawn(settings)
    if settings.get("parallel") or settings.get("feedforward") == 0:
        with pytest.raises(UsageError, match="half has no effect"):
            gf.lens(model, half=True, **asked(settings))
        return
    seen = gf.lens(model, half=True, **asked(settings))
    pair = settings.get("kind") == "encoder-decoder"
    assert [stage.name for stage in seen.stages][:4] == [
        "0",
        "0+attn",
        *(["0+cross"] if pair else []),
        "1",
        "1+attn",
    ][:4]
    assert len(seen.stages) == 1 + 3 * (3 if pair else 2)
    trace = gf.look(model, places="*.resid_mid", **asked(settings))
    for row in seen.rows(-1):
        if row["place"] in trace.tensors:
            logits = read_out(model, trace[row["place"]][0, -1].numpy())
            assert row["top"][0]["id"] == logits.argmax()


def test_an_encoder_is_read_through_its_transform() -> None:
    model = drawn(
        {"kind": "encoder", "head_transform": True, "bias": True, "norm": "layernorm", "activation": "gelu"}
    )
    seen = gf.lens(model, IDS, top=23)
    said = model(torch.tensor([IDS]))[0].softmax(-1)
    ours = torch.zeros_like(said).scatter(-1, seen.top_ids[-1], seen.top_probabilities[-1])
    torch.testing.assert_close(ours, said, rtol=0, atol=1e-12)


def test_however_few_logits_exist_at_a_time_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = drawn({}), list[int]()
    whole = gf.lens(model, IDS).to_dict()
    monkeypatch.setattr(module, "_CHUNK_LOGITS", 2 * 23)
    model.head.register_forward_hook(lambda head, given, logits: sizes.append(logits.numel()))
    parts = gf.lens(model, IDS).to_dict()
    assert sizes[1:] == [2 * 23] * 12  # the first is the model's own
    for one, other in zip(whole["rows"], parts["rows"], strict=True):
        assert one["rank"] == other["rank"] and one["kl"] == pytest.approx(other["kl"], abs=1e-12)


def test_what_has_no_lens_is_told_why() -> None:
    with pytest.raises(UsageError, match="plain network scores no tokens"):
        gf.lens(gf.Network(gf.NetworkConfig(inputs=2, outputs=2)), [[0.0, 1.0]])  # type: ignore[arg-type, list-item]
    with pytest.raises(ModelError, match="head is for classes"):
        gf.lens(drawn({"kind": "encoder", "head": "classes", "classes": 2}), IDS)
    with pytest.raises(ModelError, match="no blocks"):
        gf.lens(drawn({"layers": 0}), IDS)
    with pytest.raises(UsageError, match="2 rows were given"):
        gf.lens(drawn({}), torch.tensor([IDS, IDS]))
    with pytest.raises(UsageError, match="top is 0"):
        gf.lens(drawn({}), IDS, top=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level decoder on disk, with room in its vocabulary for a token that its tokenizer lacks."""
    tokenizer = gf.Tokenizer.train(gf.TokenizerConfig(kind="bytes"), [b""])
    model = drawn({"vocab": 260}, dtype=torch.float32)
    return gf.save_model(tmp_path_factory.mktemp("lens") / "model", model, tokenizer)


def test_a_token_is_one_or_told_how_it_splits(folder: Path) -> None:
    loaded = gf.load(folder)
    with pytest.raises(UsageError, match=r"'ab' is 2 tokens: 'a', 'b'\. Expected exactly one"):
        gf.lens(loaded, "cat", token="ab")
    with pytest.raises(UsageError, match="'' is no token"):
        gf.lens(loaded, "cat", token="")
    with pytest.raises(UsageError, match="as numbers"):
        gf.lens(loaded.model, IDS, token="a")
    assert gf.lens(loaded, "cat", token="<|endoftext|>").chosen == (256,) * 3
    assert gf.lens(loaded, "cat", token=258).rows()[0]["chosen"] == "<258>"


def test_an_encoder_guesses_what_a_mask_hides(tmp_path: Path) -> None:
    tokenizer = gf.Tokenizer.train(gf.TokenizerConfig(kind="bytes", mask_token=True), [b""])
    model = drawn({"kind": "encoder", "vocab": 258}, dtype=torch.float32)
    loaded = gf.load(gf.save_model(tmp_path / "model", model, tokenizer))
    last = gf.lens(loaded, "c<|mask|>t", top=2).rows(2)[-1]
    guessed = gf.fill(loaded, "c<|mask|>t", top=2)
    assert last["token"] == "<|mask|>" and [one["id"] for one in last["top"]] == [
        one["id"] for one in guessed
    ]
    assert [one["probability"] for one in last["top"]] == pytest.approx(
        [one["probability"] for one in guessed]
    )


def test_the_chart_writes_what_each_layer_would_say_into_its_cell() -> None:
    model = drawn({"context": 40})
    grid, rank, probability = gf.lens(model, list(range(20))).chart()["vconcat"]
    cells = grid["layer"][0]["data"]["values"]
    assert len(cells) == 4 * 12 and {cell["position"] for cell in cells} == set(range(12))
    seen = gf.lens(model, list(range(20)))
    assert [cell["says"] for cell in cells if cell["position"] == 11] == [
        row["top"][0]["token"] for row in seen.rows(-1)
    ]
    assert [row["rank + 1"] for row in rank["data"]["values"]] == [row["rank"] + 1 for row in seen.rows(-1)]
    assert [row["probability"] for row in probability["data"]["values"]] == seen.probability[:, -1].tolist()


def test_the_verb_prints_what_the_functions_return(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing = tmp_path / "lens.json"
    command = ["lens", str(folder), "the cat", "--token", "s", "--position", "2", "--top", "2"]
    more = ["--rather-than", "t", "--per", "layer", "--out", str(drawing)]
    assert main([*command, *more, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    loaded = gf.load(folder)
    seen = gf.lens(loaded, "the cat", token="s", top=2)
    why = gf.attribute(loaded, "the cat", "s", "t", position=2, per="layer")
    assert told == {**seen.to_dict(), "attribution": why.to_dict()}
    assert len(json.loads(drawing.read_text("utf-8"))["vconcat"]) == 2

    assert main([*command, *more[:4], "--half"]) == 0
    shown = capsys.readouterr().out
    assert "rank of s" in shown and "why s rather than t" in shown and "2+attn" in shown
    assert f"{why.rows()[0]['value']:.4g}" in shown and "remainder" in shown
    assert main([*command, "--per", "head"]) == 2
    assert "--per has no effect" in capsys.readouterr().err


def test_the_page_s_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "lens.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, {})
    assert json.loads((tmp_path / "lens.json").read_text("utf-8"))["vconcat"]


def test_a_pair_reads_its_source_by_name() -> None:
    model = drawn(FAMILY["pair"])
    rows = gf.attribute(model, SOURCE, 5, 11, target=IDS, per="token", top=None).rows()
    crossed = [row for row in rows if "cross_attn" in row["component"] and "source" in row]
    assert {row["source_token"] for row in crossed} == {str(i) for i in SOURCE} and len(crossed) == 3 * 4 * 4


def test_charts_stand_below_each_other_with_one_look() -> None:
    line = charts.line([{"x": 0, "y": 1}, {"x": 1, "y": 2}], "x", "y")
    spec = charts.stacked(line, charts.stacked(line, line))
    assert spec["config"] == line["config"] and "config" not in spec["vconcat"][0]
    assert len(spec["vconcat"][1]["vconcat"]) == 2
