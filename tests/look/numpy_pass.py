"""Every recorded number once more, in NumPy and float64, from the recorded numbers it is made of.

`expected(trace, place)` takes the place's inputs out of the trace and its weights out of the model, and applies the
formula as the papers write it: head by head, with loops where the model has one product. It shares no code with the
model. A place without a formula here is a KeyError, so none is passed over.

The model keeps its tables of positions as float32 whatever its weights are; so do the ones made here.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from scipy.special import erf, expit

from glassformer.look.trace import Trace
from glassformer.model.mlp import Network

Array = np.ndarray[Any, np.dtype[np.float64]]

ACTIVATIONS = {
    "none": lambda x: x,
    "step": lambda x: (x > 0).astype(float),
    "sigmoid": expit,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
    "silu": lambda x: x * expit(x),
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def expected(trace: Trace, place: str) -> Array:
    return (_Rows if isinstance(trace.reading.model, Network) else _Pass)(trace).at(place)


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    result: Array = powers / powers.sum(-1, keepdims=True)
    return result


class _Known:
    """The trace's numbers and the model's weights, in float64."""

    def __init__(self, trace: Trace) -> None:
        self.trace, self.config = trace, trace.reading.model.config
        self.state = dict(trace.reading.model.named_parameters())

    def seen(self, place: str) -> Array:
        result: Array = self.trace[place].double().numpy()
        return result

    def weight(self, name: str) -> Array:
        result: Array = self.state[name].detach().double().numpy()
        return result

    def linear(self, x: Array, name: str, rows: slice = slice(None)) -> Array:
        y: Array = x @ self.weight(f"{name}.weight")[rows].T
        return y + self.weight(f"{name}.bias")[rows] if f"{name}.bias" in self.state else y


class _Rows(_Known):
    """A plain network."""

    def at(self, place: str) -> Array:
        config = self.config
        if place == "inputs":
            return self.trace.reading.inputs[0].double().numpy()
        if place == "scores":
            last = f"layers.{config.layers - 1}.post" if config.layers else "inputs"
            return self.linear(self.seen(last), "head")
        if place == "probabilities":
            scores = self.seen("scores")
            return softmax(scores) if config.head == "distribution" else expit(scores)
        layer = int(place.split(".")[1])
        if place.endswith(".post"):
            return np.asarray(ACTIVATIONS[config.activation](self.seen(f"layers.{layer}.pre")))
        before = f"layers.{layer - 1}.post" if layer else "inputs"
        return self.linear(self.seen(before), f"layers.{layer}")


class _Pass(_Known):
    """A Transformer of any kind."""

    def at(self, place: str) -> Array:
        inside = re.fullmatch(r"(blocks|encoder|decoder)\.(\d+)\.(.+)", place)
        if inside:
            return self.in_block(inside[1], int(inside[2]), inside[3])
        stack, _, last = (
            place.rpartition(".") if place.startswith(("encoder.", "decoder.")) else ("", "", place)
        )
        if ".ln_final" in place or "embed_ln" in place:
            stack, last = (place.split(".", 1)) if place.startswith(("encoder.", "decoder.")) else ("", place)
        if last.startswith("ln_final"):
            name = "encoder_norm" if stack == "encoder" else "norm"
            return self.norm(self.stream_end(stack or "blocks"), name, last)
        if last.startswith(("embed", "pos_embed", "type_embed")):
            return self.embedded(stack, last)
        return self.head(last)

    # what comes before the blocks

    def embedded(self, stack: str, last: str) -> Array:
        ids = self.trace.reading.inputs[-1 if stack != "encoder" else 0].numpy()
        if last == "embed":
            scale = math.sqrt(self.config.width) if self.config.scale_embeddings else 1.0
            return self.weight("embed.weight")[ids] * scale
        if last == "pos_embed":
            return self.positions(ids.shape[1])
        if last == "type_embed":
            return self.weight("types.weight")[np.zeros_like(ids)]
        return self.norm(self.sum_of_embeddings(stack), "embed_norm", last)

    def sum_of_embeddings(self, stack: str) -> Array:
        own = f"{stack}." if stack else ""
        x = self.seen(f"{own}embed")
        for name in ("pos_embed", "type_embed"):
            if own + name in self.trace:
                x = x + self.seen(own + name)
        return x

    def positions(self, length: int) -> Array:
        d = self.config.width
        if self.config.positions == "learned":
            return self.weight("positions.weight")[:length]
        table = np.zeros((length, d))
        for p in range(length):
            for i in range(d):
                angle = p / 10000 ** ((i - i % 2) / d)
                table[p, i] = math.cos(angle) if i % 2 else math.sin(angle)
        if self.config.positions == "sinusoidal_halves":
            table = np.concatenate([table[:, 0::2], table[:, 1::2]], axis=1)
        return table.astype(np.float32).astype(np.float64)

    # a block

    def in_block(self, stack: str, layer: int, last: str) -> Array:
        block, post = f"{stack}.{layer}", self.config.norm_place == "post"

        def seen(name: str) -> Array:
            return self.seen(f"{block}.{name}")

        cross = f"{block}.cross_attn_out" in self.trace
        middle = "resid_mid_cross" if cross else "resid_mid"
        reads = {  # what each part reads, and, of norms after the sum, the sum
            "attn": seen("resid_pre") if post else None,
            "cross_attn": None if not cross else seen("resid_mid" if post else "ln_cross.normalized"),
        }
        if last == "resid_pre":
            own = "" if stack == "blocks" else stack
            if layer:
                return self.seen(f"{stack}.{layer - 1}.resid_post")
            normed = f"{own}.embed_ln.normalized".lstrip(".")
            return self.seen(normed) if normed in self.trace else self.sum_of_embeddings(own)
        if last.startswith("ln1"):
            before = seen("resid_pre") + (seen("attn_out") if post else 0)
            return self.norm(before, f"{block}.norm1", last)
        if last.startswith("ln_cross"):
            before = seen("resid_mid") + (seen("cross_attn_out") if post else 0)
            return self.norm(before, f"{block}.norm_cross", last)
        if last.startswith("ln2"):
            before = seen("resid_pre" if self.config.parallel else middle)
            return self.norm(before + (seen("mlp_out") if post else 0), f"{block}.norm2", last)
        if last.startswith(("attn", "cross_attn")):
            part, name = ("cross_attn", last[11:]) if last.startswith("cross") else ("attn", last[5:])
            x = reads[part] if reads[part] is not None else seen("ln1.normalized")
            weights = f"{block}.cross" if part == "cross_attn" else f"{block}.attn"
            return self.attention(f"{block}.{part}", weights, name, x, causal=stack != "encoder")
        if last.startswith("mlp"):
            x = seen(middle) if post else (seen("ln2.normalized"))
            return self.feedforward(block, last, x)
        if last == "resid_mid":
            return seen("ln1.normalized") if post else seen("resid_pre") + seen("attn_out")
        if last == "resid_mid_cross":
            return seen("ln_cross.normalized") if post else seen("resid_mid") + seen("cross_attn_out")
        if last == "resid_post":
            if not self.config.ff_width:
                return seen(middle)
            if self.config.parallel:
                return seen("resid_pre") + seen("attn_out") + seen("mlp_out")
            return seen("ln2.normalized") if post else seen(middle) + seen("mlp_out")
        raise KeyError(last)

    def norm(self, x: Array, weights: str, last: str) -> Array:
        wide = x - x.mean(-1, keepdims=True) if self.config.norm == "layernorm" else x
        scale = np.sqrt((wide**2).mean(-1, keepdims=True) + self.config.norm_epsilon)
        if last.endswith(".scale"):
            return np.asarray(scale)
        assert last.endswith(".normalized"), last
        y = wide / scale * self.weight(f"{weights}.weight")
        return y + self.weight(f"{weights}.bias") if f"{weights}.bias" in self.state else y

    def attention(self, place: str, weights: str, name: str, x: Array, *, causal: bool) -> Array:
        config = self.config
        heads, kv, size = config.num_heads, config.num_kv_heads, config.head_width
        cross = place.endswith("cross_attn")
        causal = causal and config.kind != "encoder" and not cross
        ends = np.cumsum([0, heads * size, kv * size, kv * size])

        def seen(one: str) -> Array:
            return self.seen(f"{place}.{one}")

        def met(one: str) -> Array:
            """As the queries or keys meet, grouped keys once for each query head: (batch, position, head, size)."""
            y = seen(f"rot_{one}" if f"{place}.rot_{one}" in self.trace else one)
            return y if y.shape[2] == heads else np.stack([y[:, :, h * kv // heads] for h in range(heads)], 2)

        if name in ("q", "k", "v"):
            number = "qkv".index(name)
            given = self.stack_end("encoder") if cross and name != "q" else x
            y = self.linear(given, f"{weights}.qkv", slice(ends[number], ends[number + 1]))
            y = y.reshape(*y.shape[:2], -1, size)
            return (
                self.norm(y, f"{weights}.k_norm", ".normalized")
                if cross and name == "k" and config.qk_norm
                else y
            )
        if name in ("rot_q", "rot_k"):
            y = seen(name[-1])
            y = self.norm(y, f"{weights}.{name[-1]}_norm", ".normalized") if config.qk_norm else y
            return self.turned(y) if config.positions == "rope" and not cross else y
        if name == "dots":
            q, k = met("q"), met("k")
            return np.stack([q[:, :, h] @ k[:, :, h].transpose(0, 2, 1) for h in range(heads)], 1)
        if name == "scaled":
            return seen("dots") / math.sqrt(size)
        if name == "scores":
            return self.masked(seen("scaled"), causal=causal, alibi=config.positions == "alibi" and not cross)
        if name == "pattern":
            return softmax(seen("scores"))
        if name == "z":
            pattern, v = seen("pattern"), seen("v")
            return np.stack([pattern[:, h] @ v[:, :, h * kv // heads] for h in range(heads)], 2)
        if name == "result":
            z, out = seen("z"), self.weight(f"{weights}.out.weight")
            return np.stack([z[:, :, h] @ out[:, h * size : (h + 1) * size].T for h in range(heads)], 2)
        if name == "out":
            return self.linear(seen("z").reshape(*x.shape[:2], -1), f"{weights}.out")
        raise KeyError(name)

    def turned(self, y: Array) -> Array:
        """Su et al. 2021 as a product of complex numbers: entries i and i + n/2 are one."""
        width, half = self.config.rotary_width, self.config.rotary_width // 2
        angle = np.outer(np.arange(y.shape[1]), self.config.rope_base ** (-2.0 * np.arange(half) / width))
        turn = np.cos(angle).astype(np.float32) + 1j * np.sin(angle).astype(np.float32).astype(np.float64)
        z = (y[..., :half] + 1j * y[..., half:width]) * turn[None, :, None]
        return np.concatenate([z.real, z.imag, y[..., width:]], -1)

    def masked(self, scores: Array, *, causal: bool, alibi: bool) -> Array:
        _, heads, queries, keys = scores.shape
        scores = scores.copy()
        power = 2 ** math.floor(math.log2(heads))
        slopes = [2.0 ** (-8 * (h + 1) / power) for h in range(power)]
        slopes += [2.0 ** (-4 * (2 * h + 1) / power) for h in range(heads - power)]
        for q in range(queries):
            for k in range(keys):
                if alibi:
                    scores[:, :, q, k] -= np.float32(slopes).astype(np.float64) * abs(q - k)
                if causal and k > q:
                    scores[:, :, q, k] = -np.inf
        return scores

    def feedforward(self, block: str, last: str, x: Array) -> Array:
        width = self.config.ff_width
        up, first, second = f"{block}.mlp.up", slice(0, width), slice(width, 2 * width)
        if last == "mlp.pre":
            return self.linear(x, up, first)
        if last == "mlp.pre_linear":
            return self.linear(x, up, second)
        if last == "mlp.post":
            post = np.asarray(ACTIVATIONS[self.config.activation](self.seen(f"{block}.mlp.pre")))
            return post * self.seen(f"{block}.mlp.pre_linear") if self.config.gated else post
        assert last == "mlp_out", last
        return self.linear(self.seen(f"{block}.mlp.post"), f"{block}.mlp.down")

    # what comes after the blocks

    def stream_end(self, stack: str) -> Array:
        layers = self.config.num_encoder_layers if stack == "encoder" else self.config.layers
        return self.seen(f"{stack}.{layers - 1}.resid_post")

    def stack_end(self, stack: str) -> Array:
        """What a stack gives out."""
        normed = "ln_final.normalized" if stack == "blocks" else f"{stack}.ln_final.normalized"
        return self.seen(normed) if normed in self.trace else self.stream_end(stack)

    def head(self, last: str) -> Array:
        config = self.config
        x = self.stack_end("decoder" if config.kind == "encoder-decoder" else "blocks")
        if last == "pooled":
            return np.tanh(self.linear(x[:, 0], "pooler")) if config.pooler else x.mean(1)
        if last == "class_logits":
            return self.linear(self.seen("pooled"), "head")
        if last == "logits":
            if config.head_transform:
                x = np.asarray(ACTIVATIONS[config.activation](self.linear(x, "transform")))
                x = self.norm(x, "transform_norm", ".normalized")
            y: Array = x @ self.weight("embed.weight" if config.tied else "head.weight").T
            return y + self.weight("head.bias") if config.head_bias else y
        if last in ("probabilities", "class_probabilities"):
            return softmax(self.seen(last.replace("probabilities", "logits")))
        if last == "loss":
            chances, ids = softmax(self.seen("logits")), self.trace.reading.inputs[-1].numpy()
            return -np.log(np.take_along_axis(chances[:, :-1], ids[:, 1:, None], -1))[..., 0]
        raise KeyError(last)
