"""Low-rank adapters (LoRA, 2106.09685): what they hold, and what training them alone computes.

    y = W x + B (A x)        W frozen; A of r rows, B of r columns, trained

What autograd computes, for each token and each product of `inputs` n and `outputs` m:

    W x              2 n m forward, 2 n m for the gradient by x; none by W
    A x              2 n r forward, 2 n r by A, 2 n r by x
    B (A x)          2 r m forward, 2 r m by B, 2 r m by A x

A gradient by x is computed only where something below is trained. Below the first layer is the embedding, frozen: so
its q, k and v have no gradient by x, and neither has anything before the first adapter. There, attention written out
leaves out the gradients by q, k or v that lead to no adapter; a fused kernel computes all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from glassformer.errors import UsageError, nearest
from glassformer.plan.architecture import Architecture
from glassformer.plan.flops import Convention, forward

ATTENTION, FEEDFORWARD = ("q", "k", "v", "out"), ("gate", "up", "down")


@dataclass(frozen=True, slots=True)
class Adapters:
    """Which matrices have adapters, and of what rank r."""

    rank: int = 16
    targets: tuple[str, ...] = ("q", "k", "v", "out", "gate", "up", "down")
    """Of `q, k, v, out, gate, up, down`; those that a model does not have are passed over."""

    def __post_init__(self) -> None:
        for name in self.targets:
            if name not in ATTENTION + FEEDFORWARD:
                raise UsageError(
                    f"No matrix is named {name!r};", expected=nearest(name, ATTENTION + FEEDFORWARD)
                )
        if self.rank < 1 or not self.targets:
            raise UsageError(
                f"Adapters of rank {self.rank} on {len(self.targets)} matrices change nothing.",
                expected="A rank of at least 1, and a matrix.",
            )


def num_adapter_parameters(architecture: Architecture, adapters: Adapters) -> int:
    """r (n + m) for each matrix that has one."""
    sizes = _matrices(architecture)
    return architecture.layers * sum(
        adapters.rank * sum(sizes[name]) for name in adapters.targets if name in sizes
    )


def adapter_training(
    architecture: Architecture,
    adapters: Adapters,
    length: float,
    *,
    convention: Convention = "full",
    fused: bool = True,
) -> float:
    """FLOPs for each token, forward and backward, of a decoder or encoder whose adapters alone are trained."""
    sizes = _matrices(architecture)
    one = forward(architecture, length, convention=convention)
    pattern = one.pattern / max(1, architecture.layers)

    def layer(begun: bool) -> float:
        """One layer; `begun` where something below it is trained."""
        total = sum(_product(sizes[name], adapters, name, begun) for name in ATTENTION[:3])
        q, k, v = (begun or name in adapters.targets for name in ATTENTION[:3])
        begun = q or k or v
        by_parts = (q + k + (q or k) + v) / 2  # dq, dk, d pattern, dv: half of the forward pass each
        total += pattern * (1 + (2 * begun if fused else by_parts))
        total += _product(sizes["out"], adapters, "out", begun)
        begun = begun or "out" in adapters.targets
        read = begun
        for name in FEEDFORWARD:
            if name not in sizes:
                continue
            total += _product(sizes[name], adapters, name, begun if name == "down" else read)
            begun = begun or name in adapters.targets
        return total

    rest = max(0, architecture.layers - 1)
    return layer(False) + rest * layer(True) + one.head * 2


def _product(size: tuple[int, int], adapters: Adapters, name: str, reads_trained: bool) -> float:
    inputs, outputs = size
    total = 2.0 * inputs * outputs * (1 + reads_trained)
    if name in adapters.targets:
        total += adapters.rank * (2.0 * inputs * (2 + reads_trained) + 2.0 * outputs * 3)
    return total


def _matrices(a: Architecture) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of one layer's matrices by name."""
    if a.kind not in ("decoder", "encoder") or a.experts or a.latent:
        raise UsageError(
            f"{a.name}: adapters are counted for a decoder or an encoder without experts and latent attention."
        )
    d, q, kv, f = a.width, a.q_width, a.kv_width, a.ff_width
    found = {"q": (d, q), "k": (d, kv), "v": (d, kv), "out": (q, d)}
    if f:
        found |= {"up": (d, f), "down": (f, d)} | ({"gate": (d, f)} if a.ff_matrices == 3 else {})
    return found
