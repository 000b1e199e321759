"""One block's backward pass by hand: from the gradient at its output to that of every place and weight in it.

    found = block_backward(loaded, "the cat sat", 3)
    found["blocks.3.attn.pattern"]            d loss / d pattern, (batch, head, query, key), like the pattern
    found["blocks.3.mlp.up.weight"]           d loss / d weight
    found.rows()                              every gradient in the order it was computed, with its formula
    found.check()                             name -> how far from autograd's
    found.neuron(7).rows()                    one neuron, down to single products

Autograd says how much the loss changes with the block's output; inside the block it has no part. Numbers here are
float64, so that what remains between both is a few units in the 16th digit.
The way back is `backward_block.py` (residuals), `backward_layers.py` (linear maps, norms, feed-forward) and
`backward_attention.py`; the page is docs/backward.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glassformer import charts
from glassformer.errors import UsageError, nearest
from glassformer.look.backward_attention import Turn
from glassformer.look.backward_block import through_block
from glassformer.look.backward_layers import Ledger, Step
from glassformer.look.backward_neuron import NeuronBackward, neuron_backward
from glassformer.look.reading import Model, Reading, Text
from glassformer.look.trace import Graph, Recorder
from glassformer.model.block import Block
from glassformer.model.config import ModelConfig
from glassformer.model.places import canonical, chained
from glassformer.model.shapes import stacks
from glassformer.model.transformer import Transformer

Objective = Callable[[Tensor], Tensor]
"""One number made of what the model's forward returns."""


def block_backward(
    model: Model,
    text: Text,
    layer: int | str,
    *,
    target: Text | None = None,
    of: Objective | None = None,
    double: bool = True,
) -> BlockBackward:
    """The gradient of the loss by every place and weight of one block, by the chain rule.

    `layer` is a number from 0, of an encoder-decoder one of its decoder; or a block's name, `encoder.2`. The loss
    is the mean of -log p over the tokens that came next (of an encoder, over the tokens that stand there); `of`
    makes another number of the model's output. With `double=False` it is all done in the model's own float32.
    """
    reading = Reading.of(model, text, target=target)
    if double or reading.model.head.weight.dtype not in (torch.float32, torch.float64):
        reading = reading.in_double()
    block = _block_name(reading, layer)
    of = _loss(reading) if of is None else of
    seen, loss, arriving = _run(reading, block, of)
    ledger, module = Ledger(block, seen), reading.model.get_submodule(block)
    assert isinstance(module, Block)
    memory = _memory_place(reading, block)
    with torch.no_grad():
        through_block(
            ledger, module, arriving, activation=_config(reading).activation,
            turn=_turn(reading, len(seen[f"{block}.resid_pre"][0])), memory=None if memory is None else seen[memory],
        )  # fmt: skip
    return BlockBackward(reading, block, loss, tuple(ledger.steps), seen, of)


@dataclass(frozen=True, slots=True)
class BlockBackward(Mapping[str, Tensor]):
    """Place or weight -> its gradient, in the order in which they were computed."""

    reading: Reading = field(repr=False)
    block: str
    loss: float
    steps: tuple[Step, ...] = field(repr=False)
    seen: Mapping[str, Tensor] = field(repr=False)
    """What the forward pass left at each place."""
    of: Objective = field(repr=False)

    def __getitem__(self, name: str) -> Tensor:
        for step in self.steps:
            if step.name in (name, canonical(name)):
                return step.gradient
        raise UsageError(f"{self.block} has no {name!r}; {nearest(canonical(name), list(self))}")

    def __iter__(self) -> Iterator[str]:
        return (step.name for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each gradient: name, formula, shape, its Euclidean length and its largest entry."""
        return [
            {
                "name": name,
                "formula": formula,
                "shape": list(gradient.shape),
                "length": gradient.norm().item(),
                "largest": gradient.abs().max().item(),
            }
            for name, gradient, formula in self.steps
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": "glassformer.block_backward",
            "version": 1,
            "block": self.block,
            "loss": self.loss,
            "tokens": self.tokens,
            "gradients": self.rows(),
        }

    @property
    def tokens(self) -> list[str]:
        """The texts of the positions that pass through this block, row after row."""
        side = 0 if self.block.startswith("encoder.") else -1
        return self.reading.words(self.reading.inputs[side].flatten().tolist())

    def check(self) -> dict[str, float]:
        """Name -> the largest difference from what autograd gives for the same loss, the whole model through. The
        share of the encoder's output is left out, since other blocks have one too."""
        weights = self.reading.weights()
        inside = {
            name: w.requires_grad_() for name, w in weights.items() if name.startswith(f"{self.block}.")
        }
        places = [name for name in self.reading.places() if name.startswith(f"{self.block}.")]
        graph = Graph(self.reading.places(), places)
        with torch.enable_grad():
            loss = self.of(self.reading.run(graph, weights=weights))
        found = {**graph.seen, **inside}
        gradients = dict(zip(found, torch.autograd.grad(loss, list(found.values())), strict=True))
        assert gradients.keys() == self.keys() - {f"{self.block}.memory"}
        return {name: float((self[name] - gradients[name]).abs().max()) for name in self if name in gradients}

    def neuron(self, index: int) -> NeuronBackward:
        """One neuron of the feed-forward layer, down to single products."""
        return neuron_backward(self.reading, self.block, self.seen, self, self.tokens, index)

    def chart(self) -> charts.Spec:
        """How long the gradient of each place is at each token, in powers of ten: the way back, top to bottom."""
        rows: list[dict[str, Any]] = []
        names: list[str] = []
        for name, gradient, _ in self.steps:
            if name not in self.seen or name.endswith(".scale"):
                continue
            axes = self.reading.axes(name)
            position = axes.index("position" if "position" in axes else "query")
            first = gradient.select(0, 0).movedim(
                position - 1, 0
            )  # of several rows the first, token by token
            for token, length in enumerate(first.flatten(1).norm(dim=1).log10().tolist()):
                rows.append({"token": token, "place": len(names), "length": length})
            names.append(name.removeprefix(f"{self.block}."))
        count = 1 + max(row["token"] for row in rows)
        spec = charts.heatmap(
            rows, "token", "place", "length", labels=self.tokens[:count], y_labels=names,
            title=f"The gradient on its way back through {self.block}", value_title="log10 of its length",
            size=(max(320, min(820, 34 * count)), 20 * len(names)),
        )  # fmt: skip
        spec["encoding"]["x"]["scale"] = {
            "domain": list(range(count))
        }  # a token without any gradient stays in
        return spec


def _run(reading: Reading, block: str, of: Objective) -> tuple[dict[str, Tensor], float, Tensor]:
    """What the forward pass leaves in the block, the loss, and its gradient at the block's output."""
    places = [f"{block}.*", *([memory] if (memory := _memory_place(reading, block)) else [])]
    end = f"{block}.resid_post"
    recorder, graph = Recorder(reading.places(), places), Graph(reading.places(), end)
    with torch.enable_grad():
        loss = of(reading.run(chained(recorder, graph), weights=reading.weights()))
    if loss.numel() != 1:
        raise UsageError(f"`of` gives {loss.numel():,} numbers.", expected="Expected one.")
    (arriving,) = torch.autograd.grad(loss, graph.seen[end])
    return recorder.seen, loss.item(), arriving


def _block_name(reading: Reading, layer: int | str) -> str:
    config = _config(reading)
    known = [f"{stack.name}.{number}" for stack in stacks(config) for number in range(stack.layers)]
    name = f"{stacks(config)[-1].name}.{layer}" if isinstance(layer, int) else layer
    if name not in known:
        raise UsageError(f"There is no block {name!r}; {nearest(name, known)}")
    return name


def _loss(reading: Reading) -> Objective:
    """Mean -log p of the tokens that came next, or that stand there."""
    config, ids = _config(reading), reading.inputs[-1]
    if config.head != "tokens":
        raise UsageError(
            f"An encoder with head '{config.head}' has no loss without a right answer.",
            do="Give `of`, a number made of its output: of=lambda output: output[0, 2].",
        )
    if config.kind == "encoder":
        return lambda logits: F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    if ids.shape[1] < 2:
        raise UsageError("One token alone has no next one to be wrong about.", do="Give two or more.")
    return lambda logits: F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def _turn(reading: Reading, length: int) -> Turn | None:
    """RoPE's cosines and sines of the row's positions."""
    model = reading.model
    assert isinstance(model, Transformer)
    return model.turn[:, :length] if model.config.positions == "rope" else None


def _memory_place(reading: Reading, block: str) -> str | None:
    """Where the encoder's output, which a block of the decoder reads, is seen."""
    config = _config(reading)
    if not block.startswith("decoder."):
        return None
    if config.norm_place == "pre":
        return "encoder.ln_final.normalized"
    if not config.num_encoder_layers:
        raise UsageError("This encoder has neither a block nor a last norm, so its output is no place.")
    return f"encoder.{config.num_encoder_layers - 1}.resid_post"


def _config(reading: Reading) -> ModelConfig:
    config = reading.model.config
    if not isinstance(config, ModelConfig):
        raise UsageError("A plain network has no blocks.", expected="Expected a Transformer.")
    return config
