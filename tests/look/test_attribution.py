"""Direct logit attribution closes, and each share is what autograd says of it with scales and later layers held."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from family import FAMILY, IDS, asked, drawn
from torch import Tensor

import glassformer as gf
from glassformer.errors import ModelError, UsageError
from glassformer.look.attribution import Per
from glassformer.look.reading import Reading
from glassformer.model.transformer import Transformer

TOKEN, INSTEAD = 5, 11

members = pytest.mark.parametrize("settings", FAMILY.values(), ids=FAMILY)


class _Held:
    """A `see` that runs the model with every norm's scale and every layer's output as they were, each output with
    a leaf of zeros beside it: the gradient of a logit there is what one unit written there adds to it."""

    def __init__(self, trace: gf.Trace) -> None:
        self.trace, self.leaves = trace, dict[str, Tensor]()

    def __call__(self, name: str, y: Tensor, /) -> Tensor:
        if name.endswith(".scale"):
            return self.trace[name]
        if name.endswith(("embed", "attn_out", "mlp_out")):
            self.leaves[name] = torch.zeros_like(self.trace[name]).requires_grad_()
            return self.trace[name] + self.leaves[name]
        return y


def directions(
    model: Transformer, settings: dict[str, Any], position: int
) -> tuple[gf.Trace, dict[str, Tensor]]:
    trace = gf.look(model, places="*", **asked(settings))
    held = _Held(trace)
    logits = Reading.of(model, **asked(settings)).run(held)[0, position]
    leaves = {name: leaf for name, leaf in held.leaves.items() if not name.startswith("encoder.")}
    gradients = torch.autograd.grad(logits[TOKEN] - logits[INSTEAD], list(leaves.values()))
    kept = dict(zip(leaves, gradients, strict=True))
    return trace, {name: g[position] if g.ndim == 2 else g[0, position] for name, g in kept.items()}


@members
@pytest.mark.parametrize("per", get_args(Per))
def test_the_components_sum_to_the_difference_and_to_the_logit(settings: dict[str, Any], per: Per) -> None:
    for dtype, most in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        model = drawn(settings, dtype=dtype)
        logits = Reading.of(model, **asked(settings)).run()[0]
        for position in (0, 2, -1):
            found = gf.attribute(
                model, token=TOKEN, instead=INSTEAD, position=position, per=per, **asked(settings)
            )
            right = (logits[position, TOKEN].double() - logits[position, INSTEAD].double()).item()
            assert found.logit == pytest.approx(right, abs=1e-5 if dtype == torch.float32 else 1e-12)
            assert abs(found.total - right) <= most and abs(found.remainder) <= most and abs(right) > 0.01
            alone = gf.attribute(model, token=TOKEN, position=position, per=per, **asked(settings))
            assert abs(alone.total - logits[position, TOKEN].item()) <= most


@members
def test_each_layer_adds_what_autograd_says_with_scales_and_later_layers_held(
    settings: dict[str, Any],
) -> None:
    model, position = drawn(settings), 3
    trace, gradients = directions(model, settings, position)
    found = gf.attribute(
        model, token=TOKEN, instead=INSTEAD, position=position, per="layer", **asked(settings)
    )
    for name, gradient in gradients.items():
        written = trace[name][position] if name.endswith("pos_embed") else trace[name][0, position]
        torch.testing.assert_close(found.parts[name], gradient @ written, rtol=0, atol=1e-10)
    others = set(found.parts) - set(gradients)
    assert all(name.endswith(".bias") for name in others)  # of norms and the head
    assert len(others) > 0 or not (model.config.bias or model.config.head_bias)


@members
def test_heads_neurons_and_tokens_add_what_numpy_makes_of_the_trace(settings: dict[str, Any]) -> None:
    model, position = drawn(settings), 3
    trace, gradients = directions(model, settings, position)
    heads, tokens, neurons = (
        gf.attribute(model, token=TOKEN, instead=INSTEAD, position=position, per=per, **asked(settings)).parts
        for per in ("head", "token", "neuron")
    )
    kinds = 0
    for name, gradient in gradients.items():
        place, g = name.removesuffix("_out"), gradient.numpy()
        block: Any = (
            model.get_submodule(".".join(name.split(".")[:2])) if place.endswith(("attn", "mlp")) else None
        )
        if name.endswith("attn_out"):
            weight = (block.cross if "cross" in name else block.attn).out.weight.numpy().reshape(16, 4, -1)
            value = np.repeat(trace[f"{place}.v"][0].numpy(), 4 // model.config.num_kv_heads, axis=1)
            shares = np.stack([
                trace[f"{place}.pattern"][0, h, position].numpy() * (value[:, h] @ weight[:, h].T @ g)
                for h in range(4)
            ])  # fmt: skip
            np.testing.assert_allclose(tokens[f"{place}.result"], shares, rtol=0, atol=1e-10)
            result = trace[f"{place}.result"][0, position].numpy() @ g
            np.testing.assert_allclose(heads[f"{place}.result"], result, rtol=0, atol=1e-10)
            np.testing.assert_allclose(neurons[f"{place}.result"], result, rtol=0, atol=1e-10)
        elif name.endswith("mlp_out"):
            written = (
                trace[f"{place}.post"][0, position].numpy() * block.mlp.down.weight.numpy()
            )  # (width, neuron)
            np.testing.assert_allclose(neurons[f"{place}.post"], g @ written, rtol=0, atol=1e-10)
        kinds += place.endswith(("attn", "mlp"))
    assert kinds == 3 * (1 + (model.config.ff_width > 0) + (model.config.kind == "encoder-decoder"))


def test_left_out_the_token_is_what_the_model_says() -> None:
    model = drawn({})
    said = int(model(torch.tensor([IDS]))[0, 2].argmax())
    assert gf.attribute(model, IDS, position=2).token == said
    assert gf.attribute(model, IDS, position=-4).position == 2
    with pytest.raises(UsageError, match="compared with itself"):
        gf.attribute(model, IDS, instead=said, position=2)


@pytest.mark.parametrize("top", [1, 7, None])
def test_rows_are_the_largest_first_and_sum_to_the_total(top: int | None) -> None:
    found = gf.attribute(drawn({}), IDS, TOKEN, INSTEAD, per="token", top=top)
    rows, every = found.rows(), np.concatenate([part.numpy().ravel() for part in found.parts.values()])
    assert sum(row["value"] for row in rows) == pytest.approx(found.total, abs=1e-12)
    shown = rows[:top]
    largest = sorted(np.abs(every), reverse=True)[: len(shown)]
    assert [abs(row["value"]) for row in shown] == pytest.approx(largest)
    assert len(rows) == (len(every) if top is None else top + 1)
    for row in shown:
        if row.get("source") is not None:
            part = found.parts[f"blocks.{row['layer']}.attn.result"]
            assert part[row["head"], row["source"]].item() == row["value"]
            assert row["component"].endswith(f"from {row['source']} '{IDS[row['source']]}'")


def test_what_cannot_be_attributed_is_refused_with_a_reason() -> None:
    with pytest.raises(ModelError, match="head_transform"):
        gf.attribute(
            drawn({"kind": "encoder", "head_transform": True, "bias": True, "norm": "layernorm"}), IDS
        )
    with pytest.raises(ModelError, match="head is for none"):
        gf.attribute(drawn({"kind": "encoder", "head": "none"}), IDS)
    with pytest.raises(UsageError, match=r"no position 6.*0 to 5"):
        gf.attribute(drawn({}), IDS, position=6)
    with pytest.raises(UsageError, match="no token 23"):
        gf.attribute(drawn({}), IDS, 23)
    with pytest.raises(UsageError, match="'neuron'"):
        gf.attribute(drawn({}), IDS, per="neurons")  # type: ignore[arg-type]


def test_the_model_stays_as_it_is_and_the_chart_has_a_bar_for_each_row() -> None:
    model = drawn({"dropout": 0.5}).train()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    found = gf.attribute(model, IDS, TOKEN, INSTEAD, per="neuron", top=5)
    assert model.training and all(weight.equal(before[name]) for name, weight in model.named_parameters())
    assert len(found.chart()["data"]["values"]) == 6
    told = found.to_dict()
    assert told["remainder"] == told["logit"] - told["total"] and told["rows"][-1]["component"].endswith(
        " others"
    )
