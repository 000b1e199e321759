"""Looking changes nothing and leaves nothing behind: not a bit of the output, not a hook, not a megabyte."""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

import glassformer as gf
from glassformer.errors import ModelError, UsageError
from glassformer.look import trace as tracing
from glassformer.look.trace import shape
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.places import names
from glassformer.model.stacks import build

WIDE = {"vocab": 31, "width": 32, "layers": 2, "heads": 4, "context": 48}
MODELS: dict[str, dict[str, Any]] = {
    "default": {},
    "gpt2": {"positions": "learned", "norm": "layernorm", "bias": True, "activation": "gelu_tanh"},
    "llama": {"gated": True, "kv_heads": 2, "activation": "silu", "qk_norm": True},
    "encoder": {
        "kind": "encoder",
        "norm": "layernorm",
        "norm_place": "post",
        "embed_norm": True,
        "bias": True,
    },
    "encoder-decoder": {"kind": "encoder-decoder", "positions": "sinusoidal"},
}
IDS, SOURCE = torch.arange(40).view(2, 20) % 31, torch.arange(46).view(2, 23) % 31
BY_HAND = (".dots", ".scaled", ".scores", ".pattern", ".scale", ".normalized", ".result")
"""Places that only the explicit path of attention, a norm or the heads' sum goes through."""


def drawn(own: dict[str, Any], **sizes: Any) -> Any:
    model = build(gf.ModelConfig(**{**WIDE, **sizes, **own}))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(weight.numel()))
    return model.eval()


def output(model: Any, **see: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = (
            model(SOURCE, IDS, **see) if model.config.kind == "encoder-decoder" else model(IDS, **see)
        )
    return result


def traced(model: Any, places: Any) -> gf.Trace:
    if model.config.kind == "encoder-decoder":
        return gf.look(model, SOURCE, places, target=IDS)
    return gf.look(model, IDS, places)


@pytest.mark.parametrize("name", MODELS)
def test_recording_what_the_fast_path_goes_through_changes_no_bit_of_the_output(name: str) -> None:
    model = drawn(MODELS[name])
    fast = [place for place in names(model.config) if not place.endswith(BY_HAND)]
    trace = traced(model, fast)
    assert set(trace) == set(fast) and len(fast) > 15
    assert torch.equal(trace["logits"], output(model))


@pytest.mark.parametrize("name", MODELS)
def test_recording_attention_changes_no_bit_where_attention_is_explicit_anyway(name: str) -> None:
    model = drawn(MODELS[name])
    model.use_attention("explicit")
    places = [place for place in names(model.config) if not place.endswith(BY_HAND[4:])]
    assert torch.equal(traced(model, places)["logits"], output(model))


@pytest.mark.parametrize("name", MODELS)
def test_recording_everything_changes_no_bit_of_the_path_that_shows_everything(name: str) -> None:
    model, seen = drawn(MODELS[name]), set()

    def see(place: str, y: Tensor) -> Tensor:
        seen.add(place)
        return y

    shown = output(model, see=see)
    trace = traced(model, "*")
    assert torch.equal(trace["logits"], shown) and seen == set(trace)
    torch.testing.assert_close(shown, output(model), rtol=1e-5, atol=1e-4)


def test_a_thousand_traces_leave_no_hook_and_no_memory() -> None:
    model = drawn({})
    process = psutil.Process()
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    for number in range(1100):
        gf.look(model, IDS, "*")
        if number == 99:  # the first fill torch's and Python's own stores
            gc.collect()
            before = process.memory_info().rss
    gc.collect()
    assert process.memory_info().rss - before <= 5e6
    for module in model.modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            assert not getattr(module, kind), (module, kind)
    assert all(weight._backward_hooks is None and weight.grad is None for weight in model.parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("name", MODELS)
def test_what_is_held_is_what_was_asked_for_to_the_byte(name: str) -> None:
    model = drawn(MODELS[name])
    for places in ("*", "*.attn.pattern", ["*.attn.v", "*.mlp.pre", "*.resid_post"]):
        trace = traced(model, places)
        foretold = [4 * math.prod(shape(trace.reading, place)) for place in trace]
        held = [tensor.untyped_storage().nbytes() for tensor in trace.values()]
        assert held == foretold == [tensor.numel() * tensor.element_size() for tensor in trace.values()]


MEASURE = """
import ctypes, gc, re, sys
from pathlib import Path
import torch
import glassformer as gf
from glassformer.model.stacks import build

def memory(what):
    return 1024 * int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

config = gf.ModelConfig(vocab=49152, width=576, layers=30, heads=9, kv_heads=3, feedforward=1536, gated=True,
                        activation="silu", context=512)
model, ids, kept = build(config).eval(), torch.arange(512)[None], {}
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = memory("VmRSS")
with torch.no_grad():
    kept = gf.look(model, ids, sys.argv[1]) if sys.argv[1] else {"": model(ids)}
print(memory("VmHWM") - before, sum(y.untyped_storage().nbytes() for y in kept.values()),
      sum(y.numel() * y.element_size() for y in kept.values()))
"""
"""In a process of its own, since what others have freed would hide what this one takes."""


@pytest.mark.sampled
@pytest.mark.slow
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks are counted by Linux alone"
)
def test_a_trace_of_a_135m_model_holds_what_it_was_asked_for_and_peaks_below_twice_that() -> None:
    """SmolLM2's shape, 512 tokens. Held are the bytes asked for; the peak over a plain pass is more, as glibc does
    not fill holes of just the right size between what is kept."""
    found = {}
    for places in ("", "blocks.*.resid_post", "blocks.*.attn.pattern", "blocks.29.*"):
        command = [sys.executable, "-c", MEASURE, places]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        risen, held, asked = map(int, done.stdout.split())
        print(f"{places or 'plain pass'}: asked {asked / 1e6:.0f} MB, peak {risen / 1e6:.0f} MB")
        assert held == asked > 3e7
        found[places] = risen, asked
    plain, _ = found.pop("")
    assert all(risen <= plain + 2 * asked + 32e6 for risen, asked in found.values()), found


def test_what_is_held_is_no_part_of_the_model_or_of_its_inputs() -> None:
    """A row as long as the context asks for all of the table of positions: a copy is given, not the weight."""
    model = drawn(MODELS["gpt2"], context=20)
    trace = traced(model, "pos_embed")
    before = trace["pos_embed"].clone()
    with torch.no_grad():
        model.positions.weight.zero_()
    assert torch.equal(trace["pos_embed"], before)
    rows = torch.ones(3, 2)
    inputs = gf.look(Network(NetworkConfig(inputs=2, outputs=2, hidden=())), rows, "inputs")["inputs"]
    rows.zero_()
    assert torch.equal(inputs, torch.ones(3, 2))


def test_a_request_larger_than_memory_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = drawn({})
    needed = sum(tensor.numel() * tensor.element_size() for tensor in traced(model, "*").values())
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(tracing, "free_memory_bytes", lambda free=free: free)
        if fits:
            traced(model, "*")
            continue
        with pytest.raises(
            ModelError, match=r"\d places hold [\d.]+ .?i?B for this text; .* are free. Ask for fewer"
        ):
            traced(model, "*")


def test_weights_that_are_not_finite_are_named_and_healthy_ones_are_not() -> None:
    model = drawn({})
    assert traced(model, "logits").warnings == ()
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[3, :2] = float("nan")
        model.norm.weight[0] = float("inf")
    first, second = traced(model, "logits").warnings
    assert first == "blocks.1.mlp.up.weight: 2 of 4,096 weights are not finite."
    assert second == "norm.weight: 1 of 32 weights are not finite."


def test_outputs_that_overflow_though_the_weights_are_finite_are_counted() -> None:
    model = drawn({"tied": False})
    with torch.no_grad():
        model.head.weight[5] = 3e38
    (warning,) = traced(model, "embed").warnings
    assert "of the model's 1,240 outputs are not finite, though its weights are" in warning


@pytest.mark.parametrize(
    ("own", "place", "says"),
    [
        ({}, "decoder.0.cross_attn.pattern", "blocks.0.attn.pattern"),
        ({}, "pos_embed", "embed"),
        ({}, "blocks.0.mlp.pre_linear", "blocks.0.mlp.pre"),
        ({"kind": "encoder"}, "loss", "logits"),
        ({"kind": "encoder-decoder"}, "blocks.0.attn.pattern", "decoder.0.attn.pattern"),
        ({"feedforward": 0}, "blocks.1.mlp.post", "blocks.1.resid_post"),
        ({}, "blocks.7.*", "blocks."),
    ],
)
def test_a_place_of_another_architecture_is_answered_with_the_nearest_of_this_one(
    own: dict[str, Any], place: str, says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        traced(drawn(own), place)
    assert f"no place {place!r}" in str(caught.value) and says in str(caught.value)
