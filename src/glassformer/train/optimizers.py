"""How a gradient becomes a change of the weights. g is the gradient, w a weight, r the learning rate.

    sgd        m = mu m + g;                     w -= r m                           momentum: Polyak 1964
    adam       m, v = averages of g, g^2;        w -= r m / (sqrt(v) + eps)         Kingma and Ba 2015
    adamw      adam, and w -= r decay w apart from the gradient                     Loshchilov and Hutter 2019
    lion       w -= r sign(b1 m + (1 - b1) g);   m = b2 m + (1 - b2) g              Chen et al. 2023
    adafactor  adam's v kept as one row and one column of each matrix               Shazeer and Stern 2018
    muon       w -= r orthogonal(momentum of g), for matrices                       Jordan et al. 2024

SGD, Adam, AdamW and Adafactor are torch's; Lion and Muon are written out here. Weight decay is applied to
matrices only. A recipe's Muon updates the matrices of blocks and hidden layers, and AdamW updates the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from glassformer.model.shapes import in_block
from glassformer.train.config import OptimizerConfig

Named = Mapping[str, torch.nn.Parameter]
Orthogonal = Callable[[list[Tensor]], list[Tensor]]
"""Matrices of one shape -> each made orthogonal."""


def build_optimizers(
    config: OptimizerConfig, weights: Named, orthogonal: Orthogonal | None = None
) -> list[torch.optim.Optimizer]:
    """The optimisers that together update all of `weights`, each weight by exactly one. `orthogonal` is how Muon's
    matrices are made so where each rank holds a part of them.

    A weight that asks for no gradient has none to follow: it is left out, and does not decay.
    """
    weights = {name: w for name, w in weights.items() if w.requires_grad}
    if config.kind == "muon":
        hidden = {name: w for name, w in weights.items() if w.ndim == 2 and _is_hidden(name)}
        rest = {name: w for name, w in weights.items() if name not in hidden}
        adamw = build_optimizers(config.model_copy(update={"kind": "adamw"}), rest) if rest else []
        if not hidden:  # a model without blocks
            return adamw
        muon = Muon(
            hidden.values(), lr=config.matrix_learning_rate, momentum=config.momentum,
            weight_decay=config.weight_decay, orthogonal=orthogonal,
        )  # fmt: skip
        return [muon, *adamw]
    groups = [
        {"params": [w for w in weights.values() if w.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [w for w in weights.values() if w.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate, betas, epsilon = config.learning_rate, config.betas, config.epsilon
    match config.kind:
        case "sgd":
            return [torch.optim.SGD(groups, lr=rate, momentum=config.momentum)]
        case "adam":
            return [_with_moments(torch.optim.Adam(groups, lr=rate, betas=betas, eps=epsilon, fused=True))]
        case "lion":
            return [Lion(groups, lr=rate, betas=config.betas)]
        case "adafactor":
            return [torch.optim.Adafactor(groups, lr=rate)]
        case _:
            return [_with_moments(torch.optim.AdamW(groups, lr=rate, betas=betas, eps=epsilon, fused=True))]


def _is_hidden(name: str) -> bool:
    """Of a Transformer's block or a plain network's hidden layer: where Muon's matrices are."""
    return in_block(name) or name.startswith("layers.")


def _with_moments(adam: torch.optim.Adam) -> torch.optim.Adam:
    """Its moments, which torch makes at the end of the first step, in holes that activations left: made now, they
    leave those whole, and memory is short before the first step rather than after it."""
    for group in adam.param_groups:
        for w in group["params"]:
            step = torch.zeros((), device=w.device)
            adam.state[w] = {"step": step, "exp_avg": torch.zeros_like(w), "exp_avg_sq": torch.zeros_like(w)}
    return adam


def set_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Every group's learning rate: the recipe's times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("full_rate", group["lr"])
            group["lr"] = group["full_rate"] * factor


def state_tensors(optimizers: Iterable[torch.optim.Optimizer], weights: Named) -> dict[str, Tensor]:
    """What the optimisers remember, as `weight.key -> tensor`; plain numbers become tensors of one entry."""
    names: dict[Tensor, str] = {weight: name for name, weight in weights.items()}
    return {
        f"{names[weight]}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for optimizer in optimizers
        for weight, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_state(
    optimizers: Iterable[torch.optim.Optimizer], weights: Named, tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimisers back what `state_tensors` took."""
    of_weight: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in tensors.items():
        weight, _, key = name.rpartition(".")
        of_weight[weight][key] = value
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            mine = [name for name, weight in weights.items() if any(weight is w for w in group["params"])]
            for name in mine:
                device = weights[name].device
                optimizer.state[weights[name]] = {k: v.to(device) for k, v in of_weight[name].items()}


def forget(optimizers: Iterable[torch.optim.Optimizer], weights: Named, *, but: Mapping[str, Tensor]) -> None:
    """Leave the optimisers nothing but what `state_tensors` calls by these names."""
    names: dict[Tensor, str] = {weight: name for name, weight in weights.items()}
    for optimizer in optimizers:
        for weight, state in optimizer.state.items():
            for key in [key for key in state if f"{names[weight]}.{key}" not in but]:
                del state[key]


class Lion(torch.optim.Optimizer):
    """The sign of an average gradient: every weight moves by exactly the learning rate."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override] # closures are not used here
        for group in self.param_groups:
            faster, slower = group["betas"]
            for w in group["params"]:
                m = self.state[w].setdefault("momentum", torch.zeros_like(w))
                w.mul_(1 - group["lr"] * group["weight_decay"])
                w.sub_(torch.lerp(w.grad, m, faster).sign_(), alpha=group["lr"])
                m.lerp_(w.grad, 1 - slower)


class Muon(torch.optim.Optimizer):
    """Each matrix moves along its momentum made orthogonal, so that no direction dominates.

    Nesterov momentum, then `orthogonal`, then scaled by sqrt(max(1, rows / columns)). Matrices of the same
    shape are orthogonalised together.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        orthogonal: Orthogonal | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.orthogonal = orthogonal or each_orthogonal

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override] # closures are not used here
        orthogonal = getattr(self, "orthogonal", each_orthogonal)  # a copy keeps torch's own attributes alone
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for w in group["params"]:
                same_shape[w.shape].append(w)
            for shape, weights in same_shape.items():
                gradients = [w.grad for w in weights if w.grad is not None]
                momenta = [self.state[w].setdefault("momentum", torch.zeros_like(w)) for w in weights]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                ahead = orthogonal(list(torch._foreach_lerp(gradients, momenta, group["momentum"])))
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, [m.to(weights[0].dtype) for m in ahead], alpha=-rate)


def each_orthogonal(matrices: list[Tensor]) -> list[Tensor]:
    """`orthogonal` of several matrices of one shape, at once."""
    return list(orthogonal(torch.stack(matrices)).unbind())


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Near the closest matrix with orthonormal rows or columns (all singular values 0.7 to 1.2), in bfloat16.

    Newton-Schulz iteration X <- a X + (b A + c A^2) X with A = X X^T, whose coefficients push singular
    values towards 1 as fast as possible (Jordan et al. 2024). (count, rows, columns) -> the same.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    result: Tensor = x.mT if tall else x
    return result
