"""Blocks against torch's TransformerEncoderLayer and TransformerDecoderLayer, norms before and after."""

import pytest
import torch
from torch import nn

from glassformer.model.block import Block

NAMES = {
    "norm1": "norm1", "self_attn": "attn", "multihead_attn": "cross",
    "in_proj_": "qkv.", "out_proj": "out", "linear1": "mlp.up", "linear2": "mlp.down",
}  # fmt: skip


def share(ours: nn.Module, theirs: nn.Module, *, cross: bool) -> None:
    """Torch's layer with our block's weights."""
    norms = {"norm2": "norm_cross", "norm3": "norm2"} if cross else {"norm2": "norm2"}
    mine = ours.state_dict()
    for name, parameter in theirs.named_parameters():
        for old, new in {**NAMES, **norms}.items():
            if old in name:
                name = name.replace(old, new)
                if old.startswith("norm"):
                    break
        nn.init.normal_(mine[name], std=0.05)
        parameter.data.copy_(mine[name])
    assert len(mine) == len(list(theirs.parameters()))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_an_encoder_block_equals_torchs(tiny, activation, place, dtype, tolerance):
    config = tiny(norm="layernorm", norm_place=place, bias=True, activation=activation)
    ours = Block(config, 0, causal=False).to(dtype)
    theirs = nn.TransformerEncoderLayer(
        24,
        4,
        96,
        dropout=0.0,
        activation=activation,
        batch_first=True,
        norm_first=place == "pre",
        dtype=dtype,
    )
    share(ours, theirs, cross=False)
    x = torch.randn(2, 9, 24, dtype=dtype)
    torch.testing.assert_close(ours(x), theirs(x), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_a_decoder_block_that_reads_memory_equals_torchs(tiny, place, dtype, tolerance):
    config = tiny(norm="layernorm", norm_place=place, bias=True, activation="relu")
    ours = Block(config, 0, cross=True).to(dtype)
    theirs = nn.TransformerDecoderLayer(
        24, 4, 96, dropout=0.0, batch_first=True, norm_first=place == "pre", dtype=dtype
    )
    share(ours, theirs, cross=True)
    x, memory = torch.randn(2, 9, 24, dtype=dtype), torch.randn(2, 13, 24, dtype=dtype)
    mask = nn.Transformer.generate_square_subsequent_mask(9, dtype=dtype)
    expected = theirs(x, memory, tgt_mask=mask, tgt_is_causal=True)
    torch.testing.assert_close(
        ours(x, memory=ours.cross.remember(memory)), expected, atol=tolerance, rtol=tolerance
    )


def test_dropout_acts_while_training_and_only_then(tiny):
    block = Block(tiny(dropout=0.5), 0)
    x = torch.randn(2, 9, 24)
    assert not torch.equal(block(x), block(x))
    assert torch.equal(block.eval()(x), block(x))
