"""Who is to blame: gradients as ranked lists.

With L the loss, g = dL/dy the gradient at what holds y:

    gradient    |g|              how strongly the loss hangs on it
    if_zero     -sum g y         to first order, what L would change by were y 0: above 0, it helps; below, it harms
                                 (Molchanov et al. 2017; of heads Michel et al. 2019; gradient x input is minus this)
    relative    |g| / |W|        of a weight matrix: the change it asks for, beside its size
    falls_by    r |g|^2          to first order, what a step W - r g lowers L by; r is the learning rate

|.| is the square root of the sum of squares. Sums run over rows of the batch and positions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import UsageError, nearest

Ranking = Literal["weights", "heads", "neurons", "tokens", "places"]
RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
Row = dict[str, Any]
Tensors = Mapping[str, Tensor]


def check_ranking(by: str) -> None:
    """Raises UsageError for what there is no ranking by."""
    if by not in RANKINGS:
        raise UsageError(f"There is no ranking by {by!r}; {nearest(by, RANKINGS)}")


def rank_weights(gradients: Tensors, weights: Tensors, learning_rate: float) -> list[Row]:
    """Each weight tensor: `gradient`, `relative`, `falls_by`; the largest gradient first."""
    rows = []
    for name, gradient in gradients.items():
        size, own = _norm(gradient), _norm(weights[name].detach())
        rows.append(
            {
                "weight": name,
                "shape": " x ".join(map(str, gradient.shape)),
                "gradient": size,
                "relative": size / own if own else None,
                "falls_by": learning_rate * size**2,
            }
        )
    return _sorted(rows, "gradient")


def rank_heads(gradients: Tensors, values: Tensors, top: int | None = None) -> list[Row]:
    """Each attention head, from what it blends (`attn.z`): `gradient`, `if_zero`; the largest |if_zero| first."""
    return _ranked(gradients, values, r"attn\.z$", "head", top)


def rank_neurons(gradients: Tensors, values: Tensors, top: int | None = None) -> list[Row]:
    """Each neuron of feed-forward (`mlp.post`; of a plain network `layers.*.post`): `gradient`, `if_zero`; the largest
    |if_zero| first."""
    return _ranked(gradients, values, r"(mlp|layers\.\d+)\.post$", "neuron", top)


def rank_tokens(gradients: Tensors, values: Tensors, labels: Callable[[str], Sequence[str]]) -> list[Row]:
    """Each token that is read, from its vector (`embed`), or each input of a plain network: `gradient`, `if_zero`; the
    largest |if_zero| first. An encoder-decoder has those of both its rows, told apart by `side`."""
    rows = []
    for place in (name for name in gradients if re.search(r"(^|\.)embed$|^inputs$", name)):
        g, y, words = gradients[place], values[place], labels(place)
        plain = place == "inputs"
        together = (0,) if plain else (0, -1)
        size, silent = _summed(g, y, together)
        side = {"encoder.embed": {"side": "read"}, "decoder.embed": {"side": "written"}}.get(place, {})
        for at, word in enumerate(words):
            where = {"input": word} if plain else {"position": at, "token": word}
            rows.append({**side, **where, "gradient": float(size[at]), "if_zero": float(silent[at])})
    return _sorted(rows, "if_zero")


def rank_places(gradients: Tensors, values: Tensors) -> list[Row]:
    """Each place: `gradient`, its `largest` entry, and `if_zero`; in the order of a pass, which is how blame is handed
    back, last place first."""
    rows = []
    for place, gradient in reversed(list(gradients.items())):
        value = values[place]
        kept = value.isfinite()  # masked scores are -inf, and nothing comes back to them
        rows.append(
            {
                "place": place,
                "gradient": _norm(gradient),
                "largest": float(gradient.abs().max()) if gradient.numel() else 0.0,
                "if_zero": 0 - float((gradient[kept].double() * value[kept].double()).sum()),
            }
        )
    return rows


def blame_of_parts(gradients: Tensors) -> list[Row]:
    """`stack`, `layer`, `part` (attn, cross_attn, mlp; of a plain network `layer`): |g| over all weights of the part,
    its norm included. For the heat map."""
    parts = {
        "attn": "attn", "norm1": "attn", "cross": "cross_attn", "norm_cross": "cross_attn",
        "mlp": "mlp", "norm2": "mlp", "weight": "layer", "bias": "layer",
    }  # fmt: skip
    squares: dict[tuple[str, int, str], float] = {}
    for name, gradient in gradients.items():
        found = re.match(r"(blocks|encoder|decoder|layers)\.(\d+)\.(\w+)", name)
        if found:
            key = (found[1], int(found[2]), parts[found[3]])
            squares[key] = squares.get(key, 0.0) + _norm(gradient) ** 2
    return [
        {"stack": stack, "layer": layer, "part": part, "gradient": square**0.5}
        for (stack, layer, part), square in squares.items()
    ]


def _ranked(gradients: Tensors, values: Tensors, pattern: str, what: str, top: int | None) -> list[Row]:
    """One row for each entry of the axis that is counted: heads (second last), neurons (last)."""
    places = [name for name in gradients if re.search(pattern, name)]
    if not places:
        return []
    found = []
    for place in places:
        g, y = gradients[place], values[place]
        axis = g.ndim - (2 if what == "head" else 1)
        found.append(_summed(g, y, tuple(each for each in range(g.ndim) if each != axis)))
    sizes, silent = (torch.cat([pair[which] for pair in found]) for which in (0, 1))
    owners = [(place, at) for place, pair in zip(places, found, strict=True) for at in range(len(pair[0]))]
    key = torch.where(silent.isfinite(), silent.abs(), torch.inf)
    order = key.argsort(descending=True, stable=True)[:top].tolist()
    return [
        {
            **_where(owners[at][0]),
            what: owners[at][1],
            "gradient": float(sizes[at]),
            "if_zero": float(silent[at]),
        }
        for at in order
    ]


def _where(place: str) -> Row:
    """`decoder.3.cross_attn.z -> {"stack": "decoder", "layer": 3, "attention": "cross_attn"}`."""
    stack, layer, rest = place.split(".", 2)
    where: Row = {"stack": stack} if stack in ("encoder", "decoder") else {}
    where["layer"] = int(layer)
    if stack == "decoder" and rest.endswith(".z"):
        where["attention"] = rest.removesuffix(".z")
    return where


def _summed(g: Tensor, y: Tensor, axes: tuple[int, ...]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """|g| and -sum g y over some axes, in float64."""
    g, y = g.double(), y.double()
    return g.square().sum(axes).sqrt().cpu(), (0 - (g * y).sum(axes)).cpu()


def _norm(x: Tensor) -> float:
    return float(x.double().norm())


def _sorted(rows: list[Row], key: str) -> list[Row]:
    """Largest size first; what is not a number stands before everything."""
    return sorted(rows, key=lambda row: -abs(row[key]) if row[key] == row[key] else -float("inf"))
