"""The map of token vectors, against scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import glassformer as gf
from glassformer.cli.main import main
from glassformer.errors import UsageError
from glassformer.look.embedding import distinct
from glassformer.model.config import ModelConfig
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.stacks import build
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded, save_model

WORDS = b"the cat sat on the mat and the dog sat on the log and the cat and the dog ran " * 20


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bpe", vocab=280), [WORDS])
    config = ModelConfig(
        vocab=tokenizer.vocab_size + 7,
        width=24,
        layers=1,
        heads=2,
        context=40,
        positions="learned",
        tied=False,
    )
    model = build(config).eval().requires_grad_(False)
    for number, weight in enumerate(
        (model.embed.weight, model.head.weight, model.get_parameter("positions.weight"))
    ):
        weight.normal_(0.1, 0.3, generator=torch.Generator().manual_seed(number))
    return Loaded(model, tokenizer, config, Path("made"))


@pytest.mark.parametrize("of", ["embed", "head", "positions"])
def test_coordinates_are_scikit_learn_s_up_to_sign(loaded: Loaded, of: str) -> None:
    """L24."""
    found = gf.embedding_map(loaded, of=of, components=5)  # type: ignore[arg-type] # parametrised
    weight = {
        "embed": loaded.model.embed.weight,
        "head": loaded.model.head.weight,
        "positions": loaded.model.get_parameter("positions.weight"),
    }[of]
    rows = weight[list(found.ids)].double().numpy()
    theirs = PCA(5, svd_solver="full").fit(rows)
    expected = theirs.transform(rows)
    signs = np.sign((expected * found.coordinates.numpy()).sum(0))
    assert np.abs(found.coordinates.numpy() * signs - expected).max() < 1e-5
    assert found.explained == pytest.approx(theirs.explained_variance_ratio_.tolist(), abs=1e-10)


def test_the_sign_is_that_of_the_largest_entry_so_the_map_is_always_the_same(loaded: Loaded) -> None:
    found = gf.embedding_map(loaded)
    largest = found.components.gather(1, found.components.abs().argmax(1, keepdim=True))
    assert bool((largest > 0).all())
    assert found.coordinates.equal(gf.embedding_map(loaded).coordinates)
    turned = build(loaded.config)  # rows in another order only reorder the points
    turned.embed.weight.data = loaded.model.embed.weight.clone()
    again = gf.embedding_map(Loaded(turned, loaded.tokenizer, loaded.config, Path("made")), found.ids[::-1])
    torch.testing.assert_close(again.coordinates.flip(0), found.coordinates)


def test_tokens_that_are_drawn_by_default_are_text_longer_ones_first(loaded: Loaded) -> None:
    found = gf.embedding_map(loaded)
    lengths = [len(word.strip()) > 1 for word in found.words]
    assert len(found.ids) == 100 and lengths == sorted(lengths, reverse=True) and lengths[0]
    assert " the" in found.words and "the" not in loaded.tokenizer.specials
    assert all(word.isprintable() and word.strip() and "\ufffd" not in word for word in found.words)
    assert gf.embedding_map(loaded, of="positions").words == tuple(str(p) for p in range(40))


def test_tokens_are_named_by_text_or_number_and_what_is_none_is_told(loaded: Loaded) -> None:
    found = gf.embedding_map(loaded, [" the", " cat", 65])
    assert found.words == (" the", " cat", loaded.tokenizer.decode([65]))
    with pytest.raises(UsageError, match=r"'the cat xyz' is \d+ tokens: .* one token"):
        gf.embedding_map(loaded, [" the", "the cat xyz"])
    with pytest.raises(UsageError, match=r"There is no row 999. 0 to 285"):
        gf.embedding_map(loaded, [1, 999])
    with pytest.raises(UsageError, match="more than once: ' the'"):
        gf.embedding_map(loaded, [" the", " the", " cat"])
    with pytest.raises(UsageError, match="2 to 2 components"):
        gf.embedding_map(loaded, [1, 2], components=3)


def test_neighbours_are_the_nearest_by_cosine_in_the_whole_vocabulary(loaded: Loaded) -> None:
    found = gf.embedding_map(loaded, [1, 2, 3])
    rows = loaded.model.embed.weight.double().numpy()
    cosines = rows @ rows[70] / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows[70])
    cosines[70] = -2
    near = found.neighbours(70, top=6)
    assert [row["id"] for row in near] == np.argsort(-cosines)[:6].tolist()
    assert [row["cosine"] for row in near] == pytest.approx(sorted(cosines, reverse=True)[:6])
    assert found.neighbours(found.names[70])[0] == near[0]
    with pytest.raises(UsageError, match="no token 'xyz'"):
        found.neighbours("xyz")


def test_what_has_no_such_vectors_says_so() -> None:
    with pytest.raises(UsageError, match="no vectors for positions: its config says 'rope'"):
        gf.embedding_map(build(ModelConfig(vocab=20, width=8, heads=1, layers=1)), of="positions")
    headless = build(ModelConfig(kind="encoder", head="none", vocab=20, width=8, heads=1, layers=1))
    with pytest.raises(UsageError, match="has no head"):
        gf.embedding_map(headless, of="head")
    with pytest.raises(UsageError, match="takes a Transformer, not a Network"):
        gf.embedding_map(Network(NetworkConfig(inputs=3, outputs=2)))  # type: ignore[arg-type] # the test
    same = build(ModelConfig(vocab=20, width=8, heads=1, layers=1))
    same.embed.weight.data.fill_(1.0)
    with pytest.raises(UsageError, match="all the same"):
        gf.embedding_map(same)


def test_names_in_a_chart_tell_apart_what_looks_alike() -> None:
    assert distinct(["a", " a", "\n", "?", "?", ""], [1, 2, 3, 4, 5, 6]) == [
        "a", "·a", "\\n", "? #4", "? #5", "(empty)"
    ]  # fmt: skip


def test_no_two_names_of_the_picture_cover_each_other_and_every_dot_is_there(loaded: Loaded) -> None:
    spec = gf.embedding_map(loaded).chart()
    values = spec["layer"][1]["data"]["values"]
    assert len(values) == 100 and 10 < sum(bool(row["name"]) for row in values) <= 100
    low = {axis: min(row[axis] for row in values) for axis in ("c1", "c2")}
    span = {axis: max(row[axis] for row in values) - low[axis] for axis in low}
    boxes = [
        ((row["c1"] - low["c1"]) / span["c1"] * 720, (row["c2"] - low["c2"]) / span["c2"] * 560, len(row["name"]))
        for row in values
        if row["name"]
    ]  # fmt: skip
    for n, (x, y, length) in enumerate(boxes):
        for other_x, other_y, other in boxes[n + 1 :]:
            apart = abs(y - other_y) > 10 or x + 6 * length < other_x or other_x + 6 * other < x
            assert apart


def test_the_verb_maps_or_lists_neighbours(
    loaded: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(save_model(tmp_path / "model", loaded.model, loaded.tokenizer))
    assert main(["view", "embedding", folder, "--out", str(tmp_path / "map.json"), "--top", "3"]) == 0
    captured = capsys.readouterr()
    assert "explained by c1" in captured.out and "97 more rows" in captured.err
    assert main(["view", "embedding", folder, "--near", " the", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "glassformer.embedding_map"
    near = gf.embedding_map(loaded).neighbours(" the", 16)
    assert [row["id"] for row in told["neighbours"]] == [row["id"] for row in near]
    assert told["neighbours"][0]["cosine"] == pytest.approx(near[0]["cosine"])
    assert "layer" in json.loads((tmp_path / "map.json").read_text())
