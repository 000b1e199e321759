"""The gradient through attention, from what it adds to the stream back to what it read.

    forward (Vaswani et al. 2017)           backward, from the bottom up
    q, k, v = W_q x, W_k x, W_v x           dx = W_q^T dq + W_k^T dk + W_v^T dv
    rot_q, rot_k = R q, R k                 dq = R^T drot_q, dk = R^T drot_k: turned back by the same angle
    dots    = rot_q . rot_k                 drot_q_i = sum_j ddots_ij rot_k_j
                                            drot_k_j = sum_i ddots_ij rot_q_i
    scaled  = dots / sqrt(d_head)           ddots = dscaled / sqrt(d_head)
    scores  = scaled + mask                 dscaled = dscores: a constant was added
    pattern = softmax(scores)               dscores = pattern (dpattern - sum_j pattern_j dpattern_j)
    z       = pattern v                     dpattern_ij = dz_i . v_j,  dv_j = sum_i pattern_ij dz_i
    out     = sum_h W_o,h z_h + b           dz_h = W_o,h^T dout

i counts queries, j keys, h heads. The mask needs no line of its own: where it forbids a key the pattern is 0, and
so is dscores. Each row of dscores sums to 0, because a softmax does not notice a number added to all of its
scores; a bias on the keys adds just such a number, b . q_i, so its gradient is 0 where nothing (RoPE, QK norm)
stands between it and the product.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.look.backward_layers import Ledger, Stream, linear, norm, write_linear
from glassformer.model.attention import Attention
from glassformer.model.norms import Norm

Heads = Float[Tensor, "batch position head head_size"]
Scores = Float[Tensor, "batch head query key"]
Turn = Float[Tensor, "2 position half"]


def attention(
    ledger: Ledger,
    module: Attention,
    dout: Stream,
    x: Stream,
    *,
    turn: Turn | None = None,
    memory: Float[Tensor, "batch key width"] | None = None,
) -> Stream:
    """dx. With `memory`, the encoder's output, this is cross-attention: keys and values were made of that, and its
    gradient is noted too."""
    cross = memory is not None
    at, weight = ("cross_attn", "cross") if cross else ("attn", "attn")
    groups = module.heads // module.kv_heads

    dz = _output(ledger, module, dout, at, weight)
    dots, dv = _blend(ledger, module, dz, at, groups)
    q, k = (_as_multiplied(ledger, at, name) for name in ("q", "k"))
    dq = torch.einsum("bhij,bjhe->bihe", dots, share(k, groups))
    dk = unshare(torch.einsum("bhij,bihe->bjhe", dots, q), groups)

    dq = _unturned(ledger, module.q_norm, f"{at}.q", f"{weight}.q_norm", dq, turn)
    if memory is None:
        dk = _unturned(ledger, module.k_norm, f"{at}.k", f"{weight}.k_norm", dk, turn)
        sums = torch.cat([dq.flatten(2), dk.flatten(2), dv.flatten(2)], dim=-1)
        dx, *dweights = linear(sums, x, module.qkv.weight)
        write_linear(ledger, f"{weight}.qkv", *dweights, bias=module.qkv.bias is not None)
        return dx

    ledger.write(f"{at}.k", dk, "dk_j = sum_i ddots_ij q_i")
    size, keys = module.sizes[:2]
    if module.k_norm is not None:  # keys are remembered after their norm, so it is computed again
        rows = slice(size, size + keys)
        raw = memory @ module.qkv.weight[rows].T + (0 if module.qkv.bias is None else module.qkv.bias[rows])
        dk = norm(ledger, module.k_norm, dk, raw.view_as(dk), weight=f"{weight}.k_norm")
    dx, dw_q, db_q = linear(dq.flatten(2), x, module.qkv.weight[:size])
    dmemory, dw_kv, db_kv = linear(
        torch.cat([dk.flatten(2), dv.flatten(2)], dim=-1), memory, module.qkv.weight[size:]
    )
    dweights = [torch.cat([dw_q, dw_kv]), torch.cat([db_q, db_kv])]
    write_linear(ledger, f"{weight}.qkv", *dweights, bias=module.qkv.bias is not None)
    ledger.write("memory", dmemory, "dmemory = W_k^T dk + W_v^T dv, this block's share")
    return dx


def _output(ledger: Ledger, module: Attention, dout: Stream, at: str, weight: str) -> Heads:
    """out = sum_h W_o,h z_h + b: dz_h = W_o,h^T dout. Every head's share of the sum gets all of dout."""
    z = ledger.seen(f"{at}.z")
    dz, *dweights = linear(dout, z.flatten(2), module.out.weight)
    write_linear(ledger, f"{weight}.out", *dweights, bias=module.out.bias is not None)
    each = dout[:, :, None].expand(*z.shape[:3], -1)
    ledger.write(f"{at}.result", each, "dresult_h = dout, for every head h")
    return ledger.write(f"{at}.z", dz.view_as(z), "dz_h = W_o,h^T dout")


def _blend(ledger: Ledger, module: Attention, dz: Heads, at: str, groups: int) -> tuple[Scores, Heads]:
    """z_i = sum_j pattern_ij v_j, the pattern a softmax of scaled products: ddots and dv."""
    pattern, v = ledger.seen(f"{at}.pattern"), ledger.seen(f"{at}.v")
    shared = torch.einsum("bhij,bihe->bjhe", pattern, dz)
    dv = ledger.write(f"{at}.v", unshare(shared, groups), "dv_j = sum_i pattern_ij dz_i")
    dpattern = torch.einsum("bihe,bjhe->bhij", dz, share(v, groups))
    ledger.write(f"{at}.pattern", dpattern, "dpattern_ij = dz_i . v_j")
    dscores = softmax(dpattern, pattern)
    ledger.write(f"{at}.scores", dscores, "dscores = pattern (dpattern - sum_j pattern_j dpattern_j)")
    ledger.write(f"{at}.scaled", dscores, "dscaled = dscores: the mask is a constant")
    ddots = dscores / math.sqrt(module.head_size)
    return ledger.write(f"{at}.dots", ddots, "ddots = dscaled / sqrt(d_head)"), dv


def softmax(
    dp: Float[Tensor, "*rows entries"], p: Float[Tensor, "*rows entries"]
) -> Float[Tensor, "*rows entries"]:
    """p = softmax(s): dp_i/ds_j = p_i ([i = j] - p_j), so ds = p (dp - sum_j p_j dp_j). A score is blamed by how
    much better its entry is than the average of all; each row sums to 0."""
    return p * (dp - (p * dp).sum(-1, keepdim=True))


def rotate_back(dy: Heads, turn: Turn) -> Heads:
    """RoPE turned the pair (x[i], x[i + half]) by an angle (Su et al. 2021); a rotation's transpose is its
    inverse, so the gradient turns by the same angle the other way. Entries from 2 half on were left alone."""
    cos, sin = turn.to(dy.dtype)[:, :, None]  # positions come before heads here
    half = cos.shape[-1]
    first, second, rest = dy[..., :half], dy[..., half : 2 * half], dy[..., 2 * half :]
    return torch.cat([first * cos + second * sin, second * cos - first * sin, rest], dim=-1)


def share(y: Heads, groups: int) -> Heads:
    """Grouped-query attention (Ainslie et al. 2023): each key and value head, once for every query head."""
    return y.repeat_interleave(groups, dim=2)


def unshare(dy: Heads, groups: int) -> Heads:
    """What was used several times gets the sum of its users' gradients."""
    summed: Tensor = dy.reshape(*dy.shape[:2], -1, groups, dy.shape[3]).sum(3)
    return summed


def _as_multiplied(ledger: Ledger, at: str, name: str) -> Heads:
    """Queries or keys as they met in the product: after QK norm and RoPE where there is either."""
    turned = f"{at}.rot_{name}"
    return ledger.seen(turned if ledger.has(turned) else f"{at}.{name}")


def _unturned(
    ledger: Ledger, module: Norm | None, place: str, weight: str, dy: Heads, turn: Turn | None
) -> Heads:
    """From rot_q back to q: RoPE first, since it came last, then QK norm (Henry et al. 2020)."""
    at, _, name = place.rpartition(".")
    other = "sum_j ddots_ij k_j" if name == "q" else "sum_i ddots_ij q_i"
    if module is None and turn is None:
        return ledger.write(place, dy, f"d{name} = {other}")
    ledger.write(f"{at}.rot_{name}", dy, f"drot_{name} = {other.replace('ij ', 'ij rot_')}")
    dy = dy if turn is None else rotate_back(dy, turn)
    if module is None:
        return ledger.write(place, dy, f"d{name} = R^T drot_{name}: turned back by the position's angles")
    dy = norm(ledger, module, dy, ledger.seen(place), weight=weight)
    return ledger.write(
        place, dy, f"d{name}: drot_{name}{'' if turn is None else ' turned back'}, through the norm"
    )
