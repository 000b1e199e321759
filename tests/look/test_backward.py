"""The backward pass by hand: against autograd, finite differences, and what theory says must be zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.look.backward import BlockBackward, block_backward
from glassformer.look.backward_attention import rotate_back, softmax
from glassformer.look.backward_layers import SLOPES
from glassformer.look.trace import look
from glassformer.model.config import ModelConfig
from glassformer.model.feedforward import ACTIVATIONS
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.positions import rotate, rotations
from glassformer.model.stacks import build
from glassformer.model.transformer import Transformer

PAIR = {"kind": "encoder-decoder"}
BERT: dict[str, Any] = {"kind": "encoder", "norm_place": "post", "norm": "layernorm", "bias": True}
MEMBERS: dict[str, dict[str, Any]] = {
    "rope": {},
    "part of rope": {"rotary_fraction": 0.5},
    "gpt-2": {"positions": "learned", "norm": "layernorm", "bias": True, "activation": "gelu_tanh"},
    "llama": {"gated": True, "activation": "silu", "kv_heads": 2, "tied": False},
    "qwen": {"gated": True, "activation": "silu", "kv_heads": 1, "qkv_bias": True, "qk_norm": True},
    "layernorm on queries": {"norm": "layernorm", "bias": True, "qk_norm": True, "activation": "relu"},
    "alibi": {"positions": "alibi", "kv_heads": 2, "activation": "gelu"},
    "no positions": {"positions": "none", "layers": 1},
    "2017 decoder": {"positions": "sinusoidal", "norm_place": "post", "norm": "layernorm", "bias": True},
    "post with rmsnorm": {"norm_place": "post", "gated": True, "activation": "gelu"},
    "gpt-neox": {"parallel": True, "rotary_fraction": 0.25, "norm": "layernorm", "bias": True},
    "parallel and gated": {"parallel": True, "gated": True, "kv_heads": 2, "activation": "gelu_tanh"},
    "attention alone": {"feedforward": 0},
    "attention alone, post": {"feedforward": 0, "norm_place": "post"},
    "other head size": {"head_size": 4, "kv_heads": 2},
    "bert": {**BERT, "positions": "learned", "activation": "gelu", "embed_norm": True},
    "encoder with alibi": {"kind": "encoder", "positions": "alibi"},
    "marian": {**PAIR, "norm_place": "post", "norm": "layernorm", "positions": "sinusoidal", "bias": True},
    "pair with all": {**PAIR, "qk_norm": True, "qkv_bias": True, "kv_heads": 2, "gated": True, "activation": "silu"},
    "pair of attention alone": {**PAIR, "feedforward": 0, "encoder_layers": 1},
}  # fmt: skip


def made(**changes: Any) -> Transformer:
    """Weights large enough that every term shows, drawn around the values they would have."""
    small = {"vocab": 29, "width": 32, "layers": 2, "heads": 4, "context": 16, "feedforward": 24}
    model = build(ModelConfig.model_validate(small | changes)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            gain = "norm" in name and name.endswith("weight")
            weight.normal_(1.0 if gain else 0.0, 0.25, generator=generator)
    return model


def explained(model: Transformer, layer: int | str = 0, **settings: Any) -> BlockBackward:
    ids = torch.randint(29, (2, 9), generator=torch.Generator().manual_seed(2))
    pair = model.config.kind == "encoder-decoder"
    return block_backward(model, ids, layer, **({"target": ids.flip(1)[:, :7]} if pair else {}), **settings)


def blocks(model: Transformer) -> list[str]:
    return [f"{stack.name}.{layer}" for stack in model.stacks for layer in range(stack.layers)]


@pytest.mark.parametrize("member", MEMBERS)
def test_every_gradient_of_every_block_equals_autograds(member: str) -> None:
    model = made(**MEMBERS[member])
    for block in blocks(model):
        found = explained(model, block)
        differences = found.check()
        weights = {name for name, _ in model.named_parameters() if name.startswith(f"{block}.")}
        places = {name for name in found.reading.places() if name.startswith(f"{block}.")}
        assert differences.keys() == weights | places
        assert max(differences.values()) <= 1e-10
        for name, difference in differences.items():  # and not because all numbers are small
            largest = found[name].abs().max().item()
            assert difference <= 1e-12 * largest + 1e-15, name
            assert largest > 1e-6 or name.endswith(("qkv.bias",)), name


def test_the_shares_of_the_encoders_output_add_up_to_its_gradient() -> None:
    model = made(**MEMBERS["pair with all"])
    by_hand = sum(explained(model, layer)[f"decoder.{layer}.memory"] for layer in (0, 1))
    below = explained(model, "encoder.1")  # its output goes through one norm to the decoder, and nowhere else
    memory = look(model, below.reading.inputs[0], "encoder.1.resid_post", target=below.reading.inputs[1])
    x = memory["encoder.1.resid_post"].requires_grad_()
    (through_norm,) = torch.autograd.grad(model.get_submodule("encoder_norm")(x), x, by_hand)
    torch.testing.assert_close(through_norm, below["encoder.1.resid_post"], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("member", ["gpt-2", "alibi", "bert", "no positions"])
def test_a_bias_on_the_keys_gets_no_gradient_where_they_are_not_turned(member: str) -> None:
    changes = MEMBERS[member]
    model = made(**changes, **({} if changes.get("bias") else {"qkv_bias": True}))
    _, key, value = _biases(model, explained(model))
    assert key.abs().max() <= 1e-14 < 1e-6 < value.abs().max()


def test_with_rope_it_does_get_one_in_the_entries_that_turn() -> None:
    model = made(qkv_bias=True, rotary_fraction=0.5)
    key = _biases(model, explained(model))[1].view(4, 8)
    assert key[:, :4].abs().max() > 1e-6 and key[:, 4:].abs().max() <= 1e-14


def _biases(model: Transformer, found: BlockBackward) -> tuple[Tensor, ...]:
    return found["blocks.0.attn.qkv.bias"].split(model.get_submodule("blocks.0.attn").sizes)


def test_every_activation_has_the_slope_of_its_own_curve() -> None:
    x = torch.linspace(-5, 5, 998, dtype=torch.float64)  # without 0, where relu has a corner
    assert SLOPES.keys() == ACTIVATIONS.keys()
    for name, f in ACTIVATIONS.items():
        central = (f(x + 1e-5) - f(x - 1e-5)) / 2e-5
        torch.testing.assert_close(SLOPES[name](x), central, rtol=0, atol=2e-9)
    assert SLOPES["relu"](torch.zeros(1)).item() == 0  # as torch has it


def test_a_softmax_gives_back_rows_that_sum_to_nothing_and_never_blames_the_masked() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, dp = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    scores[:, 3:] = -torch.inf
    ds = softmax(dp, scores.softmax(-1))
    assert ds.sum(-1).abs().max() < 1e-15 and not ds[:, 3:].any()
    jacobian = torch.autograd.functional.jacobian(lambda s: s.softmax(-1), scores[0, :3])
    torch.testing.assert_close(ds[0, :3], dp[0, :3] @ jacobian)


def test_turning_back_undoes_the_turn() -> None:
    x = torch.randn(2, 7, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for width in (4, 8):
        turn = rotations(7, width, 10000.0).double()
        turned = rotate(x.transpose(1, 2), turn).transpose(1, 2)
        torch.testing.assert_close(rotate_back(turned, turn), x, rtol=0, atol=1e-6)  # float32 angles


def test_the_last_tokens_query_is_blamed_for_nothing_since_no_loss_follows_it() -> None:
    found = explained(made(), 1)
    assert not found["blocks.1.resid_pre"][:, -1].any() and found["blocks.1.resid_pre"][:, -2].any()


def test_a_loss_of_ones_own_and_a_class_to_ask_about() -> None:
    model = made(kind="encoder", head="classes", classes=3)
    with pytest.raises(UsageError, match=r"head 'classes' has no loss.*Give `of`"):
        explained(model)
    found = explained(model, of=lambda logits: logits[0, 2])
    assert max(found.check().values()) <= 1e-13
    assert not found["blocks.0.resid_pre"][1].any()  # the other row has no part in it
    with pytest.raises(UsageError, match="`of` gives 6 numbers"):
        explained(model, of=lambda logits: logits)


def test_the_model_stays_as_it_was_and_single_precision_says_how_far_it_is_off() -> None:
    model = made().float()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    found = explained(model, double=False)
    assert found["blocks.0.resid_pre"].dtype == torch.float32
    assert 1e-10 < max(found.check().values()) < 1e-5
    assert max(explained(model).check().values()) < 1e-10
    for name, weight in model.named_parameters():
        assert weight.equal(before[name]) and weight.grad is None and weight.requires_grad


def test_gradients_come_in_the_order_of_the_way_back_each_with_its_formula() -> None:
    found = explained(made(), 1)
    names = [row["name"].removeprefix("blocks.1.") for row in found.rows()]
    assert names[:5] == ["resid_post", "mlp_out", "mlp.down.weight", "mlp.post", "mlp.pre"]
    assert names[-1] == "resid_pre" and names.index("attn.pattern") < names.index("attn.scores")
    assert all(row["formula"] for row in found.rows())
    row = next(row for row in found.rows() if row["name"] == "blocks.1.attn.pattern")
    pattern = found["blocks.1.attn.hook_pattern"]  # TransformerLens's spelling
    assert row["length"] == pattern.norm().item() and row["shape"] == [2, 4, 9, 9]
    assert found.to_dict()["tokens"][:2] == [str(int(i)) for i in found.reading.inputs[0][0, :2]]


@pytest.mark.parametrize("layer", [2, "blocks.9", "encoder.0"])
def test_a_block_that_is_not_there_is_answered_with_those_that_are(layer: int | str) -> None:
    with pytest.raises(UsageError, match=r"no block '.*'blocks\.[01]'"):
        explained(made(), layer)


def test_what_has_no_gradient_here_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match=r"no 'blocks.0.mlp.prae'.*'blocks.0.mlp.pre'"):
        explained(made())["blocks.0.mlp.prae"]
    with pytest.raises(UsageError, match="no next one"):
        block_backward(made(), [3], 0)
    network = Network(NetworkConfig(inputs=2, outputs=2))
    with pytest.raises(UsageError, match="no blocks"):
        block_backward(network, torch.zeros(1, 2), 0)


def test_the_picture_has_a_row_for_each_place_and_a_column_for_each_token() -> None:
    found = explained(made(), 1)
    cells = found.chart()["data"]["values"]
    assert {cell["token"] for cell in cells} == set(range(9))
    names = [n for n in found if n in found.seen and not n.endswith(".scale")]
    assert {cell["place"] for cell in cells} == set(range(len(names)))
    cell = next(c for c in cells if (c["place"], c["token"]) == (names.index("blocks.1.attn.scores"), 3))
    expected = found["blocks.1.attn.scores"][0, :, 3].norm().log10().item()
    assert cell["length"] == pytest.approx(expected)


@pytest.mark.parametrize("member", ["gpt-2", "llama", "marian", "post with rmsnorm"])
def test_one_neurons_products_sum_to_the_gradients_of_the_whole(member: str) -> None:
    model = made(**MEMBERS[member])
    block = blocks(model)[-1]
    found = explained(model, block)
    neuron = found.neuron(5)
    rows = neuron.rows()
    for name, column in (("mlp.post", "dpost"), ("mlp.pre", "dpre")):
        expected = found[f"{block}.{name}"][..., 5].flatten().tolist()
        assert [row[column] for row in rows] == pytest.approx(expected, rel=1e-12, abs=1e-16)
    up, down = found[f"{block}.mlp.up.weight"], found[f"{block}.mlp.down.weight"]
    expected_of = {"in": up[5], "down": down[:, 5]} | ({"up": up[24 + 5]} if model.config.gated else {})
    assert neuron.weights.keys() == expected_of.keys()
    for of, expected in expected_of.items():
        torch.testing.assert_close(neuron.gradient(of), expected, rtol=1e-11, atol=1e-16)
        terms = neuron.weight_terms(3, of)
        assert sum(t["product"] for t in terms) == pytest.approx(expected[3].item(), rel=1e-11)
        assert neuron.weight_rows()[3][f"dw_{of}"] == pytest.approx(expected[3].item(), rel=1e-11)
    terms = neuron.dpost_terms(2)
    assert sum(term["product"] for term in terms) == pytest.approx(rows[2]["dpost"], rel=1e-11)
    sizes = [abs(term["product"]) for term in terms]
    assert sizes == sorted(sizes, reverse=True) and len(terms) == 32


def test_a_neuron_that_is_not_there_is_refused() -> None:
    for index in (-1, 24):
        with pytest.raises(UsageError, match="neurons 0 to 23"):
            explained(made()).neuron(index)
    with pytest.raises(UsageError, match="no neurons"):
        explained(made(feedforward=0)).neuron(0)
    neuron = explained(made()).neuron(0)
    with pytest.raises(UsageError, match=r"no weights 'up'.*in"):
        neuron.weight_terms(0, "up")
    with pytest.raises(UsageError, match="0 to 31"):
        neuron.weight_terms(32)
    with pytest.raises(UsageError, match="0 to 17"):
        neuron.dpost_terms(18)
