"""The gradient through a block: how what arrives at its output is shared among the stream and its layers.

    pre       y = x + f(norm(x))                     dx = dy + norm'(f'(dy))         what arrives goes two ways
    post      y = norm(x + f(x))                     ds = norm'(dy);  dx = ds + f'(ds)
    parallel  y = x + f(norm1(x)) + g(norm2(x))      dx = dy + norm1'(f'(dy)) + norm2'(g'(dy))

f' and norm' stand for the gradient taken back through a layer; where a number was used twice, the gradients of its
uses add up. In the first line dy alone is why deep models learn at all: the residual stream hands it down from block
to block as it is (He et al. 2016). In the second it passes a norm at every turn, which is why post needs a warm-up
(Xiong et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from glassformer.look.backward_attention import Turn, attention
from glassformer.look.backward_layers import Ledger, Stream, feed_forward, norm
from glassformer.model.block import Block
from glassformer.model.config import Activation
from glassformer.model.norms import Norm


def through_block(
    ledger: Ledger,
    block: Block,
    dy: Stream,
    *,
    activation: Activation,
    turn: Turn | None = None,
    memory: Float[Tensor, "batch key width"] | None = None,
) -> Stream:
    """From the gradient at resid_post to that at resid_pre, noting all on the way. `turn` is RoPE's table, `memory`
    the encoder's output, which cross-attention read."""
    x, mlp, norm2 = ledger.seen("resid_pre"), block.mlp, block.norm2

    def through_attention(dout: Stream, read: Stream) -> Stream:
        return attention(ledger, block.attn, dout, read, turn=turn)

    def through_cross(dout: Stream, read: Stream) -> Stream:
        assert block.cross is not None and memory is not None
        return attention(ledger, block.cross, dout, read, memory=memory)

    def through_mlp(dout: Stream, read: Stream) -> Stream:
        assert mlp is not None
        return feed_forward(ledger, mlp, dout, read, activation)

    ledger.write("resid_post", dy, "d loss / d resid_post, from the rest of the model")
    if block.parallel and norm2 is not None:
        by_mlp = _branch(ledger, "mlp_out", "ln2", norm2, through_mlp, dy, x)
        dx = dy + by_mlp + _branch(ledger, "attn_out", "ln1", block.norm1, through_attention, dy, x)
        return ledger.write("resid_pre", dx, "dx = dy + the gradient through mlp + that through attn")

    add = _residual if block.pre else _residual_then_norm
    middle = ledger.seen("resid_mid")
    if mlp is not None and norm2 is not None:
        read = ledger.seen("resid_mid_cross") if block.cross is not None else middle
        dy = add(ledger, "mlp_out", "ln2", norm2, through_mlp, dy, read)
    if block.norm_cross is not None:
        ledger.write("resid_mid_cross", dy, _SUM.format("mlp") if mlp else _SAME)
        dy = add(ledger, "cross_attn_out", "ln_cross", block.norm_cross, through_cross, dy, middle)
    after = "cross_attn" if block.cross is not None else "mlp" if mlp is not None else ""
    ledger.write("resid_mid", dy, _SUM.format(after) if after else _SAME)
    dy = add(ledger, "attn_out", "ln1", block.norm1, through_attention, dy, x)
    return ledger.write("resid_pre", dy, _SUM.format("attn"))


_SUM = "dx = what passes by + the gradient through {}"
_SAME = "d loss / d resid_post: nothing lies between"
_WEIGHTS = {"ln1": "norm1", "ln_cross": "norm_cross", "ln2": "norm2"}
"""Places are named as TransformerLens names them, weights as our modules are."""

Layer = Callable[[Stream, Stream], Stream]
"""(dout, what the layer read) -> the gradient at what it read."""


def _branch(
    ledger: Ledger, out: str, place: str, module: Norm, layer: Layer, dy: Stream, x: Stream
) -> Stream:
    """f(norm(x)), without what passes by: through f, then through the norm before it."""
    ledger.write(out, dy, "d(a + b) = da + db: an added term gets all of what arrives")
    dread = layer(dy, ledger.seen(f"{place}.normalized"))
    return norm(ledger, module, dread, x, weight=_WEIGHTS[place], place=place)


def _residual(
    ledger: Ledger, out: str, place: str, module: Norm, layer: Layer, dy: Stream, x: Stream
) -> Stream:
    """pre: y = x + f(norm(x))."""
    return dy + _branch(ledger, out, place, module, layer, dy, x)


def _residual_then_norm(
    ledger: Ledger, out: str, place: str, module: Norm, layer: Layer, dy: Stream, x: Stream
) -> Stream:
    """post: y = norm(x + f(x))."""
    dsum = norm(ledger, module, dy, x + ledger.seen(out), weight=_WEIGHTS[place], place=place)
    ledger.write(out, dsum, "d(a + b) = da + db: an added term gets all of what arrives")
    return dsum + layer(dsum, x)
