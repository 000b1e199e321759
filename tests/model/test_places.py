"""The table of places against what a forward pass really emits."""

import pytest
import torch

from glassformer.errors import UsageError
from glassformer.model.places import PLACES, canonical, find, names
from glassformer.model.stacks import Decoder

OPTIONS = {
    "default": {},
    "grouped, gated, untied": {"kv_heads": 2, "gated": True, "tied": False},
    "learned positions, layernorm, biases": {"positions": "learned", "norm": "layernorm", "bias": True},
    "sinusoidal, post": {"positions": "sinusoidal", "norm_place": "post"},
    "alibi, qk norm": {"positions": "alibi", "qk_norm": True},
    "attention alone": {"feedforward": 0},
    "no positions, other sizes": {"positions": "none", "head_size": 10, "feedforward": 7},
}
IDS = torch.arange(22).view(2, 11)

every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


class Recorder:
    """Keeps every place it is asked about, and puts `replace`'s values where it has them."""

    def __init__(self, only=None, replace=None):
        self.seen, self.only, self.replace = {}, only, replace or {}

    def __call__(self, name, y):
        assert name not in self.seen, f"{name} twice"
        self.seen[name] = self.replace[name](y) if name in self.replace else y
        return self.seen[name]

    def wants(self, name):
        return self.only is None or name in self.only


@every_option
def test_the_table_lists_exactly_what_a_forward_pass_emits(tiny, options):
    config, see = tiny(**options), Recorder()
    Decoder(config)(IDS, see=see)
    assert sorted(see.seen) == sorted(names(config))


def test_names_come_in_the_order_of_the_forward_pass(tiny):
    for config in (tiny(), tiny(positions="learned", gated=True)):
        see = Recorder()
        Decoder(config)(IDS, see=see)
        assert list(see.seen) == names(config)


@every_option
def test_shapes_are_the_tables_axes(tiny, options):
    config, see = tiny(**options), Recorder()
    Decoder(config)(IDS, see=see)
    sizes = {
        "batch": 2, "position": 11, "query": 11, "key": 11, "one": 1, "width": 24, "vocab": 29, "head": 4,
        "kv_head": config.num_kv_heads, "head_size": config.head_width, "feedforward": config.ff_width,
        "next": 10,
    }  # fmt: skip
    for name, y in see.seen.items():
        assert tuple(y.shape) == tuple(sizes[axis] for axis in find(name).axes), name


@every_option
def test_looking_changes_no_more_than_rounding(tiny, options):
    model = Decoder(tiny(**options)).double()
    torch.testing.assert_close(model(IDS, see=Recorder()), model(IDS), atol=1e-12, rtol=0)


@every_option
def test_a_see_that_wants_nothing_leaves_the_logits_bit_for_bit(tiny, options):
    model, see = Decoder(tiny(**options)), Recorder(only=())
    assert torch.equal(model(IDS, see=see), model(IDS))
    assert not any(".dots" in name or ".pattern" in name or ".scale" in name for name in see.seen)


@every_option
def test_replacing_any_place_changes_what_follows(tiny, options):
    config = tiny(**options)
    model = Decoder(config, seed=3).double()
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # no zero that would hide a change
        before = model(IDS)
        for name in names(config):
            changed = model(IDS, see=Recorder(only=(name,), replace={name: lambda y: 1.5 * y + 0.1}))
            if name.endswith(".scores"):  # a softmax does not see what is added to all of a row
                changed = model(IDS, see=Recorder(only=(name,), replace={name: lambda y: 1.5 * y}))
            follows = name not in ("probabilities", "loss")
            assert torch.allclose(changed, before, atol=1e-9) != follows, name


@every_option
def test_putting_back_what_was_seen_changes_nothing(tiny, options):
    model, first = Decoder(tiny(**options)).double(), Recorder()
    expected = model(IDS, see=first)
    values = {name: (lambda y, name=name: first.seen[name]) for name in first.seen}
    assert torch.equal(model(IDS, see=Recorder(replace=values)), expected)


def test_the_parts_add_up_to_the_stream(tiny):
    see = Recorder()
    logits = Decoder(tiny()).double()(IDS, see=see)
    s = see.seen
    for block in ("blocks.0", "blocks.1"):
        torch.testing.assert_close(s[f"{block}.resid_mid"], s[f"{block}.resid_pre"] + s[f"{block}.attn_out"])
        torch.testing.assert_close(s[f"{block}.resid_post"], s[f"{block}.resid_mid"] + s[f"{block}.mlp_out"])
        torch.testing.assert_close(s[f"{block}.attn_out"], s[f"{block}.attn.result"].sum(2))
        z = torch.einsum("bhqk,bkhs->bqhs", s[f"{block}.attn.pattern"], s[f"{block}.attn.v"])
        torch.testing.assert_close(s[f"{block}.attn.z"], z)
        torch.testing.assert_close(s[f"{block}.attn.scaled"], s[f"{block}.attn.dots"] / 6**0.5)
    assert s["logits"] is logits
    torch.testing.assert_close(s["probabilities"].sum(-1), torch.ones(2, 11).double())
    told = s["probabilities"][:, :-1].gather(-1, IDS[:, 1:, None])[..., 0]
    torch.testing.assert_close(s["loss"], -told.log())


def test_gradients_reach_every_place(tiny):
    model = Decoder(tiny(gated=True, positions="learned", activation="silu"))
    kept = {}

    def keep(name, y):
        y.requires_grad_() if y.is_leaf else y.retain_grad()
        kept[name] = y
        return y

    model(IDS, see=keep).square().sum().backward()
    assert [name for name, y in kept.items() if y.grad is None] == ["probabilities", "loss"]


def test_transformerlens_spellings_are_aliases():
    assert canonical("blocks.0.attn.hook_q") == "blocks.0.attn.q"
    assert canonical("hook_embed") == "embed"
    assert canonical("blocks.11.ln1.hook_scale") == "blocks.11.ln1.scale"
    assert canonical("blocks.3.hook_resid_pre") == "blocks.3.resid_pre"
    assert find("blocks.3.attn.hook_pattern").name == "blocks.{layer}.attn.pattern"


def test_every_place_of_transformerlenss_decoder_has_ours(tiny):
    """The names of a one-layer HookedTransformer with LayerNorm."""
    theirs = [
        "hook_embed", "hook_pos_embed", "ln_final.hook_scale", "ln_final.hook_normalized",
        *(f"blocks.0.hook_{y}" for y in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")),
        *(f"blocks.0.{ln}.hook_{name}" for ln in ("ln1", "ln2") for name in ("scale", "normalized")),
        *(f"blocks.0.attn.hook_{y}" for y in ("q", "k", "v", "attn_scores", "pattern", "z", "result")),
        *(f"blocks.0.mlp.hook_{name}" for name in ("pre", "post")),
    ]  # fmt: skip
    ours = names(tiny(layers=1, positions="learned", norm="layernorm"))
    assert {canonical(name) for name in theirs} <= set(ours)


def test_a_wrong_place_is_refused_with_the_nearest_names():
    with pytest.raises(UsageError, match=r"no place 'blocks\.0\.attn\.patern'.*attn\.pattern"):
        find("blocks.0.attn.patern")


def test_meanings_are_written_for_every_place():
    assert all(place.meaning and place.axes for place in PLACES)
    assert len({place.name for place in PLACES}) == len(PLACES)
