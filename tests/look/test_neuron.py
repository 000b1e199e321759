"""One neuron's sheet: its terms add up, its direct effect is what the logits lose without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import glassformer as gf
from glassformer.cli.main import main
from glassformer.errors import UsageError
from glassformer.look.neuron import WeightedSum
from glassformer.look.reading import Reading
from glassformer.look.trace import Recorder
from glassformer.model.config import ModelConfig
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.stacks import build
from glassformer.model.transformer import Transformer
from glassformer.text.columns import Columns
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded, save_model
from glassformer.use.predict import predictor

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
MEMBERS: dict[str, dict[str, Any]] = {
    "rope": {},
    "gated, grouped, qk norm": {"gated": True, "activation": "silu", "kv_heads": 2, "qk_norm": True},
    "layernorm and biases": {"norm": "layernorm", "bias": True, "positions": "learned", "activation": "gelu"},
    "post-norm": {"norm": "layernorm", "norm_place": "post", "bias": True, "positions": "sinusoidal"},
    "parallel": {"parallel": True, "positions": "alibi"},
    "untied": {"tied": False, "scale_embeddings": True, "head_bias": True},
    "encoder": {"kind": "encoder", "positions": "learned"},
    "encoder-decoder": {"kind": "encoder-decoder", "positions": "sinusoidal"},
    "encoder-decoder, post-norm": {
        "kind": "encoder-decoder", "norm_place": "post", "norm": "layernorm", "bias": True, "positions": "learned",
    },
}  # fmt: skip


def made(dtype: torch.dtype = torch.float32, **changes: Any) -> Transformer:
    config = ModelConfig.model_validate(
        {"vocab": 23, "width": 16, "layers": 3, "heads": 4, "context": 16, "feedforward": 20, **changes}
    )
    model = build(config).to(dtype).eval().requires_grad_(False)
    for number, weight in enumerate(model.parameters()):
        draw = torch.Generator().manual_seed(number)
        weight.copy_(torch.randn(weight.shape, generator=draw, dtype=dtype) * 0.3 + (weight.ndim == 1) * 0.7)
    return model


def target(changes: dict[str, Any]) -> list[int] | None:
    return [7, 8, 2, 2, 1] if changes.get("kind") == "encoder-decoder" else None


@pytest.mark.parametrize("member", MEMBERS)
def test_the_terms_and_the_bias_are_the_pre_activation(member: str) -> None:
    """L20."""
    changes = MEMBERS[member]
    model, wrote = made(**changes), target(changes)
    for layer, number in ((0, 3), (2, 19)):
        sheet = gf.neuron(model, IDS, layer, number, position=-2, target=wrote)
        name = f"{model.stacks[-1].name}.{layer}.mlp"
        trace = gf.look(model, IDS, f"{name}.*", target=wrote)
        assert [one.name for one in sheet.sums] == (["pre", "pre_linear"] if model.config.gated else ["pre"])
        for one in sheet.sums:
            # the sheet looks at the norm, which then computes line by line and differs in the last bits
            assert one.seen == pytest.approx(float(trace[f"{name}.{one.name}"][0, -2, number]), abs=1e-5)
            assert abs(one.remainder) < 1e-5
            shown = [row["term"] for row in sheet.rows() if row["sum"] == one.name]
            assert sum(shown[:-1]) == pytest.approx(shown[-1], abs=1e-12) and shown[-1] == one.seen
        assert sheet.post == pytest.approx(float(trace[f"{name}.post"][0, -2, number]), abs=1e-5)
        product = sheet.activated * (sheet.sums[1].seen if model.config.gated else 1.0)
        assert sheet.post == pytest.approx(product, abs=1e-6)
        over = [row["post"] for row in sheet.position_rows()]
        assert over == pytest.approx(trace[f"{name}.post"][0, :, number].tolist(), abs=1e-5)


class Frozen:
    """Every layer's output and every norm's scale as they were, and one neuron silent."""

    def __init__(self, seen: dict[str, Tensor], post: str, neuron: int) -> None:
        self.seen, self.post, self.neuron = seen, post, neuron

    def __call__(self, name: str, y: Tensor, /) -> Tensor:
        if name == self.post:
            y = y.clone()
            y[..., self.neuron] = 0
            return y
        own = name == self.post.replace("mlp.post", "mlp_out")
        frozen = name.endswith((".scale", "attn_out", "mlp_out")) and not own
        return self.seen.get(name, y) if frozen else y


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("member", MEMBERS)
def test_the_direct_effect_is_what_the_logits_lose_when_only_this_neuron_falls_silent(
    member: str, layer: int
) -> None:
    changes = MEMBERS[member]
    model, wrote = made(torch.float64, **changes), target(changes)
    reading = Reading.of(model, IDS, target=wrote)
    recorder = Recorder(reading.places(), "*")
    whole = reading.run(recorder)
    trace = recorder.seen[f"{model.stacks[-1].name}.{layer}.mlp.post"][0, -1]
    number = int(trace.abs().argmax())  # one that is not silent already
    sheet = gf.neuron(model, IDS, layer, number, target=wrote)
    post = f"{model.stacks[-1].name}.{layer}.mlp.post"
    without = reading.run(Frozen(recorder.seen, post, number))
    assert sheet.per_unit is not None and abs(sheet.post) > 0.01
    lost = (whole - without)[0, -1]
    torch.testing.assert_close(sheet.post * sheet.per_unit, lost, rtol=0, atol=1e-10)
    assert float(lost.abs().max()) > 1e-5
    best = sheet.token_rows()[0]
    assert best["id"] == int(sheet.per_unit.argmax()) and best["logit"] == pytest.approx(
        float(lost[best["id"]])
    )
    assert sheet.token_rows(suppressed=True)[0]["id"] == int(sheet.per_unit.argmin())


def test_terms_are_sorted_by_size_and_equal_ones_keep_their_order() -> None:
    inputs, weights = torch.tensor([1.0, -2.0, 2.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 5.0, -1.0])
    one = WeightedSum("pre", inputs.double(), weights.double(), 0.5, 1.25)
    assert one.order == [1, 2, 0, 4, 3] and one.remainder == pytest.approx(0.75)
    rows = one.rows(["a", "b", "c", "d", "e"], top=2)
    assert [row["input"] for row in rows] == ["b", "c", "other 3 terms", "bias", "remainder", "= pre"]
    assert [row["term"] for row in rows] == [-2, 2, 0, 0.5, 0.75, 1.25]


def test_what_has_no_straight_way_to_a_token_names_none() -> None:
    bert = made(kind="encoder", head_transform=True, positions="learned")
    pair = made(kind="encoder-decoder", positions="learned")
    for sheet in (
        gf.neuron(bert, IDS, 0, 0),
        gf.neuron(made(kind="encoder", head="classes", classes=3, positions="learned"), IDS, 0, 0),
        gf.neuron(pair, IDS, 0, 0, target=[1, 2], stack="encoder"),
    ):
        assert (
            sheet.per_unit is None
            and sheet.token_rows() == []
            and sheet.chart_names == ("terms", "positions")
        )
    assert sheet.place == "encoder.0.mlp" and len(sheet.labels) == len(IDS)


@pytest.fixture
def network() -> Network:
    made = Network(NetworkConfig(inputs=2, outputs=3, hidden=(4, 5), activation="tanh"))
    for number, bias in enumerate(module.bias for module in [*made.layers, made.head]):
        bias.data.normal_(generator=torch.Generator().manual_seed(number))
    return made


def test_a_plain_network_is_summed_layer_by_layer(network: Network) -> None:
    x = torch.tensor([[0.5, 2.0], [-1.0, 3.0]])
    first = network.layers[0](x)
    second = network.layers[1](first.tanh())
    for layer, number, pre, post in (
        (0, 2, first, first.tanh()), (1, 4, second, second.tanh()), (2, 1, network.scores(x), network(x))
    ):  # fmt: skip
        sheet = gf.neuron(network, x, layer, number, position=1)
        assert sheet.sums[0].seen == pytest.approx(float(pre[1, number].detach()))
        assert sheet.post == pytest.approx(float(post[1, number].detach()))
        assert sheet.over["post"].tolist() == pytest.approx(post[:, number].tolist())
        assert abs(sheet.sums[0].remainder) < 1e-6
    assert sheet.write_rows() == [] and sheet.activation == "softmax"
    assert {row["to"] for row in gf.neuron(network, x, 1, 4).write_rows()} == {
        f"output {k}" for k in range(3)
    }
    assert gf.neuron(network, x, 0, 0).write_rows()[0]["to"].startswith("neuron ")
    with pytest.raises(UsageError, match="no layer 3"):
        gf.neuron(network, x, 3, 0)


def test_a_trained_network_names_its_columns_and_its_answers(network: Network) -> None:
    columns = Columns(
        features=("height", "weight"), mean=(1.0, 2.0), scale=(2.0, 0.5), kind="classes", targets=("kind",),
        classes=("cat", "dog", "owl"),
    )  # fmt: skip
    sheet = gf.neuron(predictor(network, columns), [{"height": 3.0, "weight": 2.5}], 0, 1)
    assert {row["input"]: row["x"] for row in sheet.rows() if "x" in row} == {"height": 1.0, "weight": 1.0}
    answer = gf.neuron(predictor(network, columns), [{"height": 3.0, "weight": 2.5}], 1, 0)
    assert {row["to"] for row in answer.write_rows()} == {"cat", "dog", "owl"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"layer": 3, "neuron": 0}, r"no layer 3. This model has layers 0 to 2"),
        ({"layer": 0, "neuron": 20}, r"no neuron 20. This model has neurons 0 to 19"),
        ({"layer": 0, "neuron": 0, "position": 8}, r"no position 8. 0 to 7"),
        ({"layer": 0, "neuron": 0, "stack": "encoder"}, r"no stack 'encoder'"),
        ({"layer": 0, "neuron": 0, "top": 0}, r"top is 0"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        gf.neuron(made(), IDS, **settings)
    with pytest.raises(UsageError, match="attention alone"):
        gf.neuron(made(feedforward=0), IDS, 0, 0)


def test_the_chart_shows_the_other_terms_as_one_bar(tmp_path: Path) -> None:
    sheet = gf.neuron(made(bias=True, norm="layernorm"), IDS, 1, 2, top=4)
    bars = sheet.chart()["data"]["values"]
    assert [bar["input"] for bar in bars[4:]] == ["other 12 terms", "bias", "= pre"]
    assert sum(bar["term"] for bar in bars[:-1]) == pytest.approx(bars[-1]["term"], abs=1e-5)
    assert len(sheet.chart("positions")["data"]["values"]) == 2 * len(IDS)
    assert len(sheet.chart("tokens")["data"]["values"]) == 8
    with pytest.raises(UsageError, match=r"no chart 'heads'. It can be terms, positions, tokens"):
        sheet.chart("heads")


def test_the_verb_prints_the_bill_of_a_transformer_and_of_a_plain_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])
    model = made(vocab=257)
    loaded = Loaded(model, tokenizer, model.config, tmp_path)
    folder = str(save_model(tmp_path / "model", model, tokenizer))
    command = ["view", "neuron", folder, "the cat", "--layer", "1", "--neuron", "7"]
    assert main([*command, "--top", "3", "--out", str(tmp_path / "n.json"), "--chart", "positions"]) == 0
    out = capsys.readouterr().out
    assert "other 13 terms" in out and "promotes" in out and "suppresses" in out
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "glassformer.neuron" and len(told["terms"]["pre"]) == 16 + 2
    assert told["post"] == pytest.approx(gf.neuron(loaded, "the cat", 1, 7).post, abs=1e-5)
    assert main([*command, "--rows", "x.csv"]) == 2
    assert main([*command, "--chart", "terms"]) == 2
    assert "--chart has no effect without --out" in capsys.readouterr().err
