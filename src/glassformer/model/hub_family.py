"""What a family of other people's models is: configs in their words and ours, and what our tensors are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glassformer.model.config import Kind, ModelConfig

Shape = tuple[int, ...]
Fields = Mapping[str, Any]

ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "silu": "silu", "swish": "silu",
    "relu": "relu", "relu2": "relu_squared",
}  # fmt: skip
THEIR_ACTIVATION = {
    "gelu_tanh": "gelu_new",
    "gelu": "gelu",
    "silu": "silu",
    "relu": "relu",
    "relu_squared": "relu2",
}


@dataclass(frozen=True, slots=True)
class Part:
    """One of our tensors and those of theirs that it is made of."""

    ours: str
    theirs: dict[str, Shape]
    """Their names and shapes, in the order in which they lie in ours."""
    how: str = "same"
    """`same`; `rows`: below one another; `turned`: transposed; `heads`: q, k and v head by head; `one row`: theirs
    is a matrix of one row."""
    heads: int = 1

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Theirs -> ours. A view where it can be one."""
        if self.how == "rows":
            return torch.cat(list(tensors))
        (tensor,) = tensors
        if self.how == "heads":
            return tensor.view(self.heads, 3, -1, *tensor.shape[1:]).transpose(0, 1).flatten(0, 2)
        if self.how == "one row":
            return tensor[0]
        return tensor.t() if self.how == "turned" else tensor

    def split(self, tensor: Tensor) -> list[Tensor]:
        """Ours -> theirs."""
        if self.how == "rows":
            return list(torch.split(tensor, [shape[0] for shape in self.theirs.values()]))
        if self.how == "heads":
            return [tensor.reshape(3, self.heads, -1, *tensor.shape[1:]).transpose(0, 1).flatten(0, 2)]
        if self.how == "one row":
            return [tensor[None]]
        return [tensor.t() if self.how == "turned" else tensor]


@dataclass(frozen=True, slots=True)
class Family:
    """One way to write a model."""

    model_type: str
    architecture: str
    prefix: str
    """Before most names; files of the bare model leave it out."""
    read: Callable[[Fields, list[str]], dict[str, Any]]
    """Their config in our words; what cannot be said goes on the list."""
    write: Callable[[ModelConfig], dict[str, Any]]
    needs: Callable[[ModelConfig], dict[str, Any]]
    """What our config must say for this family to express it."""
    names: Mapping[str, str]
    """Our part of a name -> theirs, or a whole name -> the whole of theirs."""
    kind: Kind = "decoder"
    outside: frozenset[str] = frozenset({"head"})
    """Parts of ours whose names have no prefix."""
    ids: Callable[[int], dict[str, Any]] = lambda end: {"bos_token_id": None, "eos_token_id": end}
    """What their config says about special tokens, from the id that ends a text."""


def activation(name: str, key: str, problems: list[str]) -> str:
    """Ours for theirs; an unknown one goes on the list."""
    if name not in ACTIVATIONS:
        problems.append(f"{key} = {name!r}: this activation is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS.get(name, "gelu")
