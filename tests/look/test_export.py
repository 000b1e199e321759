from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from glassformer.errors import UsageError
from glassformer.look.export import MOST_CELLS, picture, save_trace
from glassformer.look.trace import Trace, look
from glassformer.model.config import ModelConfig
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.stacks import build


@pytest.fixture(scope="module")
def trace() -> Trace:
    config = ModelConfig(vocab=50, width=16, layers=2, heads=2, context=300, init="xavier")
    return look(build(config).bfloat16(), [3, 1, 4, 1, 5], "*")


def test_arrays_come_back_as_they_were(trace: Trace, tmp_path: Path) -> None:
    with np.load(save_trace(trace, tmp_path / "t.npz")) as arrays:
        assert arrays["ids"].tolist() == [3, 1, 4, 1, 5]
        assert set(arrays.files) == {"ids", *trace}
        for name, tensor in trace.items():
            assert np.array_equal(arrays[name], tensor.float().numpy()), name


def test_the_document_names_every_place_and_holds_masked_scores_as_words(
    trace: Trace, tmp_path: Path
) -> None:
    read = json.loads(save_trace(trace, tmp_path / "t.json").read_text())
    assert (read["schema"], read["tokens"]) == ("glassformer.trace", ["3", "1", "4", "1", "5"])
    places = {row["place"]: row for row in read["places"]}
    assert list(places) == list(trace)
    assert places["blocks.0.attn.scores"]["values"][0][0][0][1] == "-Infinity"
    assert np.shape(places["blocks.1.mlp.post"]["values"]) == tuple(trace["blocks.1.mlp.post"].shape)


def test_a_picture_shows_the_named_head_cell_by_cell(trace: Trace, tmp_path: Path) -> None:
    spec = picture(trace, "blocks.1.attn.pattern", head=1)
    expected = trace["blocks.1.attn.pattern"][0, 1].float()
    for cell in spec["data"]["values"]:
        assert cell["value"] == pytest.approx(float(expected[cell["y"], cell["x"]]))
    assert spec["title"] == "blocks.1.attn.pattern, head 1"
    for place in ("embed", "blocks.0.attn.k", "blocks.0.ln1.scale", "loss"):
        assert picture(trace, place)["data"]["values"], place
    assert save_trace(trace, tmp_path / "t.svg").read_text().startswith("<svg")


def test_what_is_too_large_for_a_picture_is_cut_and_says_so() -> None:
    config = ModelConfig(vocab=50, width=320, layers=1, heads=2, context=300)
    spec = picture(look(build(config), [1, 2], "embed"), "embed")
    assert spec["title"] == f"embed (the first {MOST_CELLS} of 2 x 320)"
    assert len(spec["data"]["values"]) == 2 * MOST_CELLS


def test_a_networks_trace_is_saved_without_tokens(tmp_path: Path) -> None:
    network = Network(NetworkConfig(inputs=3, outputs=2, hidden=(5,)), seed=2)
    trace = look(network, torch.ones(4, 3))
    assert "tokens" not in json.loads(save_trace(trace, tmp_path / "n.json").read_text())
    with np.load(save_trace(trace, tmp_path / "n.npz")) as arrays:
        assert arrays["layers.0.post"].shape == (4, 5) and "ids" not in arrays.files


def test_another_ending_is_refused(trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be saved as t\.pt"):
        save_trace(trace, tmp_path / "t.pt")
