"""Steps of the feed-forward layer, by one neuron of it: its weighted sum, its activation, what it writes."""

from __future__ import annotations

from collections.abc import Iterator

from glassformer.look.arithmetic import FORMULAS, Line, Vector, activated, sum_of_products
from glassformer.look.explain_seen import Seen, Step, bias_at, weight_at
from glassformer.look.source import Source, line_of


def feedforward(seen: Seen, stream: str) -> Iterator[Step]:
    """`stream` is the block's place that the layer reads."""
    mlp, n, j = seen.shown_block.mlp, seen.neuron, seen.entry
    assert mlp is not None and n is not None
    section = f"Block {seen.layer}: feed-forward, neuron {n}"
    x, width = seen.here(seen.block(stream)), seen.config.ff_width
    pre = float(seen.here(seen.block("mlp.pre"))[n])
    post = float(seen.here(seen.block("mlp.post"))[n])
    up, bias = mlp.up.weight.detach(), ["", " + b"][mlp.up.bias is not None]
    lines = [sum_of_products(f"pre[{n}]", up[n], x, pre, plus=bias_at(mlp.up.bias, n))]
    right = activated(seen.config.activation, pre)
    formula = f"pre = W_up x{bias}"
    if mlp.gated:
        formula = f"pre = W_gate x{bias},  pre_linear = W_up x{bias}"
        linear = float(seen.here(seen.block("mlp.pre_linear"))[n])
        plus = bias_at(mlp.up.bias, width + n)
        lines.append(sum_of_products(f"pre_linear[{n}]", up[width + n], x, linear, plus=plus))
        right = (*right, " × ", linear)
    yield Step(
        section,
        "A neuron weighs what it reads",
        f"The layer has {width:,} neurons. Each multiplies the entries of the vector by weights of its own and sums: "
        "large where the vector is what the neuron looks for."
        + (" A second sum of the same kind will multiply the result." if mlp.gated else ""),
        formula,
        tuple(lines),
        (_forward("self.up(x).chunk" if mlp.gated else "self.activation(see(\"pre\", self.up(x)"),),
        seen.block("mlp.pre"),
    )  # fmt: skip
    symbols = f"{seen.config.activation}(pre)" + (" × pre_linear" if mlp.gated else "")
    yield Step(
        section,
        "The neuron fires, or does not",
        "A curve is put on the sum. Without it, all layers together would be one matrix.",
        f"post = {symbols},  {seen.config.activation}(x) = {FORMULAS[seen.config.activation]}",
        (Line(f"post[{n}]", right, post),),
        (_forward("* see(" if mlp.gated else "self.activation(see(\"pre\", self.up(x)"),
         *_activation(seen.config.activation)),
        seen.block("mlp.post"),
    )  # fmt: skip
    neurons, out = seen.here(seen.block("mlp.post")), seen.here(seen.block("mlp_out"))
    plus, written = bias_at(mlp.down.bias, j), weight_at(mlp.down.weight, j, n)
    yield Step(
        section,
        "The neurons write",
        "Each neuron has a vector that it writes, as strongly as it fired. All of them sum up.",
        "mlp_out = W_down post" + (" + b" if plus is not None else ""),
        (
            Line(f"neuron {n} into entry {j}", (post, " × ", written), post * written),
            sum_of_products(f"mlp_out[{j}]", neurons, mlp.down.weight.detach()[j], float(out[j]), plus=plus,
                            names=lambda i: f"neuron {i}"),
            Vector.of("mlp_out", out),
        ),
        (_forward("self.down("),),
        seen.block("mlp_out"),
    )  # fmt: skip


def _activation(name: str) -> list[Source]:
    """Where an activation of our own is; the others are torch's."""
    own = {"relu_squared": "F.relu(x).square()", "gelu_tanh": "approximate="}
    return [line_of("model/feedforward.py", name, own[name])] if name in own else []


def _forward(fragment: str) -> Source:
    return line_of("model/feedforward.py", "FeedForward.forward", fragment)
