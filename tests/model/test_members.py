"""Encoder and encoder-decoder: against NumPy, packed against alone, cached against whole, their places and shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glassformer.configs import build as build_config
from glassformer.errors import ConfigError
from glassformer.model import count
from glassformer.model.config import ModelConfig
from glassformer.model.places import find, names
from glassformer.model.shapes import shapes
from glassformer.model.stacks import Decoder, Encoder, EncoderDecoder, build
from glassformer.model.transformer import places_within
from glassformer.use.cache import Cache

BERT = {
    "kind": "encoder", "positions": "learned", "norm": "layernorm", "norm_place": "post", "bias": True,
    "activation": "gelu", "embed_norm": True, "token_types": 2, "head_bias": True, "head_transform": True,
}  # fmt: skip
THE_2017 = {
    "kind": "encoder-decoder", "positions": "sinusoidal", "norm": "layernorm", "norm_place": "post", "bias": True,
    "activation": "relu", "scale_embeddings": True,
}  # fmt: skip
MEMBERS = {
    "encoder": {"kind": "encoder"},
    "BERT": BERT,
    "BERT, classes": {
        **BERT, "head": "classes", "classes": 3, "pooler": True, "head_bias": False, "head_transform": False,
    },
    "mean of vectors, classes": {"kind": "encoder", "head": "classes", "classes": 3},
    "vectors alone": {"kind": "encoder", "head": "none", "pooler": True},
    "2017": THE_2017,
    "pre-norm encoder-decoder": {"kind": "encoder-decoder", "encoder_layers": 1, "gated": True, "qk_norm": True},
    "alibi encoder-decoder": {"kind": "encoder-decoder", "positions": "alibi", "tied": False},
    "learned positions": {"kind": "encoder-decoder", "positions": "learned", "kv_heads": 2},
}  # fmt: skip
every_member = pytest.mark.parametrize("options", MEMBERS.values(), ids=MEMBERS)


def random(config: ModelConfig) -> torch.nn.Module:
    model = build(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    return model.eval()


def run(model, see=lambda name, y: y):
    ids = torch.arange(22).view(2, 11)
    return model(ids[:, :7], ids, see=see) if isinstance(model, EncoderDecoder) else model(ids, see=see)


@every_member
def test_the_config_tells_every_tensor_by_name_shape_and_order(tiny, options):
    config = tiny(**options)
    found = {name: tuple(weight.shape) for name, weight in build(config).named_parameters()}
    assert found == shapes(config)
    assert count.parameters(config).total == sum(w.numel() for w in build(config).parameters())


@every_member
def test_the_table_of_places_lists_what_a_pass_emits_in_order(tiny, options):
    config = tiny(**options)
    seen = {}
    run(build(config), lambda name, y: seen.setdefault(name, y))
    assert sorted(seen) == sorted(names(config))
    if config.norm_place == "pre":  # after a layer, its norm comes later than what it adds
        assert list(seen) == names(config)
    sizes = {
        "batch": 2, "one": 1, "width": 24, "vocab": 29, "head": 4, "kv_head": config.num_kv_heads, "class": 3,
        "head_size": config.head_width, "feedforward": config.ff_width, "next": 10,
    }  # fmt: skip
    for name, y in seen.items():
        read = 7 if name.startswith("encoder.") else 11
        positions = {"position": read, "query": read, "key": read}
        if ".cross_attn." in name:
            positions |= {"key": 7, "position": 7 if name.endswith((".k", ".v")) else 11}
        assert tuple(y.shape) == tuple({**sizes, **positions}[axis] for axis in find(name).axes), name


@every_member
def test_looking_changes_nothing(tiny, options):
    model = random(tiny(**options))
    torch.testing.assert_close(run(model, lambda name, y: y), run(model), atol=1e-12, rtol=0)


def test_the_2017_transformer_equals_its_formulas_in_numpy(tiny):
    """Vaswani et al. 2017, section 3, written out again without our code or torch's layers."""
    config = tiny(**THE_2017, layers=2, encoder_layers=1)
    model = random(config)
    w = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    source, ids = np.array([3, 1, 4, 1, 5]), np.array([9, 2, 6])

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    def attend(x, y, name, causal):
        matrix, bias, z = w[f"{name}.qkv.weight"], w[f"{name}.qkv.bias"], []
        q, k, v = (
            t @ matrix[i * 24 : i * 24 + 24].T + bias[i * 24 : i * 24 + 24] for i, t in enumerate((x, y, y))
        )
        for head in range(4):
            part = slice(6 * head, 6 * head + 6)
            scores = q[:, part] @ k[:, part].T / np.sqrt(6)
            if causal:
                scores[np.triu_indices(len(x), 1)] = -np.inf
            pattern = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            z.append(pattern @ v[:, part])
        return np.concatenate(z, 1) @ w[f"{name}.out.weight"].T + w[f"{name}.out.bias"]

    def feed_forward(x, name):
        hidden = np.maximum(x @ w[f"{name}.up.weight"].T + w[f"{name}.up.bias"], 0)
        return hidden @ w[f"{name}.down.weight"].T + w[f"{name}.down.bias"]

    def embed(tokens):
        angle = np.arange(len(tokens))[:, None] / 10000 ** (np.arange(0, 24, 2) / 24)
        table = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(len(tokens), 24)
        return w["embed.weight"][tokens] * np.sqrt(24) + table

    memory = embed(source)
    memory = norm(memory + attend(memory, memory, "encoder.0.attn", False), "encoder.0.norm1")
    memory = norm(memory + feed_forward(memory, "encoder.0.mlp"), "encoder.0.norm2")
    x = embed(ids)
    for name in ("decoder.0", "decoder.1"):
        x = norm(x + attend(x, x, f"{name}.attn", True), f"{name}.norm1")
        x = norm(x + attend(x, memory, f"{name}.cross", False), f"{name}.norm_cross")
        x = norm(x + feed_forward(x, f"{name}.mlp"), f"{name}.norm2")
    expected = x @ w["embed.weight"].T
    found = model(torch.tensor(source)[None], torch.tensor(ids)[None])[0].detach().numpy()
    np.testing.assert_allclose(found, expected, atol=3e-6, rtol=0)  # our table of sines is float32


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rope", "alibi", "none"])
def test_pairs_in_one_row_are_as_if_each_were_alone(tiny, positions):
    model = random(tiny(kind="encoder-decoder", positions=positions))
    generator = torch.Generator().manual_seed(1)
    pairs = [
        tuple(torch.randint(0, 29, (1, length), generator=generator) for length in (m, n, n))
        for m, n in ((5, 3), (2, 6), (4, 4))
    ]
    alone = sum(model.loss(s, i, t, num_targets=13) for s, i, t in pairs)
    source, ids, targets = (torch.full((1, 16), fill) for fill in (0, 0, -100))
    source_segments, segments = torch.full((1, 16), -1), torch.full((1, 16), -1)
    at = read = 0
    for number, (s, i, t) in enumerate(pairs):
        m, n = s.shape[1], i.shape[1]
        source[0, read : read + m], source_segments[0, read : read + m] = s, number
        ids[0, at : at + n], targets[0, at : at + n], segments[0, at : at + n] = i, t, number
        read, at = read + m, at + n
    packed = model.loss(
        source, ids, targets, source_segments=source_segments, segments=segments, num_targets=13
    )
    # the table of rope's angles is float32, so the same distance elsewhere differs in its last digits
    torch.testing.assert_close(packed, alone, atol=1e-6 if positions == "rope" else 1e-12, rtol=0)
    packed.backward()  # a padded row has no softmax of nothing
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


def test_places_count_within_each_segment():
    assert places_within(torch.tensor([[0, 0, 0, 1, 1, -1]])).tolist() == [[0, 1, 2, 0, 1, 0]]


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rope", "alibi"])
def test_writing_token_by_token_from_a_cache_equals_writing_at_once(tiny, positions):
    config = tiny(kind="encoder-decoder", positions=positions, kv_heads=2)
    model = random(config)
    source, ids = torch.arange(12).view(2, 6), torch.arange(14).view(2, 7)
    padded = torch.tensor([[0] * 6, [0] * 4 + [-1] * 2])
    memory = model.read(source, segments=padded)
    whole = model.write(ids, memory)
    cache = Cache(config, batch=2, dtype=torch.float64)
    steps = [model.write(ids[:, t : t + 1], memory, cache=cache) for t in range(7)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-12, rtol=0)
    shorter = model.write(ids[1:], model.read(source[1:, :4]))
    torch.testing.assert_close(whole[1:], shorter, atol=1e-12, rtol=0)  # padding is not read


def test_an_encoder_sees_what_comes_after_and_a_decoder_does_not(tiny):
    ids = torch.arange(8)[None]
    changed = ids.clone()
    changed[0, -1] = 20
    encoder, decoder = random(tiny(kind="encoder")), random(tiny())
    assert not torch.equal(encoder(ids)[:, 0], encoder(changed)[:, 0])
    assert torch.equal(decoder(ids)[:, :-1], decoder(changed)[:, :-1])


def test_an_encoders_padding_is_not_read(tiny):
    for options in (MEMBERS["encoder"], MEMBERS["mean of vectors, classes"], BERT):
        model = random(tiny(**options))
        ids = torch.arange(8)[None]
        whole = model(ids, segments=torch.tensor([[0] * 5 + [-1] * 3]))
        alone = model(ids[:, :5])
        torch.testing.assert_close(whole if whole.ndim == 2 else whole[:, :5], alone, atol=1e-12, rtol=0)


def test_the_loss_of_masked_tokens_is_that_of_the_logits_at_their_places(tiny):
    model = random(tiny(**BERT))
    ids, places = torch.arange(22).view(2, 11), torch.tensor([[1, 4], [0, 10]])
    targets = torch.tensor([[7, 8], [9, 3]])
    logits = model(ids).gather(1, places[..., None].expand(-1, -1, 29))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model.loss(ids, targets, places=places), expected)


@every_member
def test_every_weight_gets_a_gradient(tiny, options):
    model = random(tiny(**options))
    run(model).square().sum().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert without == [] or (options.get("head") == "none" and without == ["pooler.weight", "pooler.bias"])


def test_settings_of_another_kind_are_refused_all_at_once():
    wrong = {
        "encoder_layers": 2,
        "head": "classes",
        "pooler": True,
        "token_types": 2,
        "heads": 4,
        "width": 24,
    }
    with pytest.raises(ConfigError) as caught:
        build_config(ModelConfig, wrong, origin="The recipe")
    assert all(
        f"{name} has no effect" in str(caught.value)
        for name in ("encoder_layers", "head", "pooler", "token_types")
    )
    assert isinstance(build(ModelConfig(vocab=5, width=8)), Decoder)
    assert isinstance(build(ModelConfig(vocab=5, width=8, kind="encoder")), Encoder)
