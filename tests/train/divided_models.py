"""Two ranks hold one model together, and tell how far its loss and gradients are from the whole one's.

Run by forked_trainer.py, with the models' configs in the environment; rank 0 writes what it found as JSON.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from glassformer.model.config import ModelConfig
from glassformer.model.shapes import in_block
from glassformer.model.stacks import build
from glassformer.train.config import ParallelConfig
from glassformer.train.optimizers import each_orthogonal
from glassformer.train.parallel import vocabulary
from glassformer.train.parallel.many import ManyRanks
from glassformer.train.world import World


def main() -> None:
    """One forward and one backward pass of each model, whole and divided, from the same weights."""
    vocabulary.LOGITS_AT_ONCE = 64  # a few tokens at once
    dist.init_process_group("gloo")
    world = World.here()
    found = {}
    for name, values in json.loads(os.environ["MODELS"]).items():
        ranks = ManyRanks(world, ParallelConfig(tensor=world.count), "cpu")
        found[name] = compared(ModelConfig(vocab=31, **values), ranks)
    found["noise"] = noise(ManyRanks(world, ParallelConfig(tensor=world.count), "cpu"))
    if world.is_first:
        print(json.dumps(found))
    dist.destroy_process_group()


def compared(config: ModelConfig, ranks: ManyRanks) -> dict[str, Any]:
    """What a test is to hold: relative differences of the loss, of a gradient from its largest entry, and of the
    gradient's length; how far Muon's matrices are; and whether the weights it begins with, and those that were handed
    out, are the same to the bit when they are put together again, by rank 0 or on a disk."""
    model, whole = build(config, seed=3, device="meta"), build(config, seed=3)
    weights, named = ranks.prepare(model, "fp32"), dict(whole.named_parameters())
    begun = ranks.gather(weights.masters)
    same = all(torch.equal(begun[name], w) for name, w in named.items()) if ranks.is_first else None
    for number, weight in enumerate(whole.parameters()):  # no gain is 1, no bias 0, and attention is sharp
        mean, spread = (0.5, 0.2) if weight.ndim == 1 else (0.0, 0.4)
        torch.nn.init.normal_(weight, mean, spread, generator=torch.Generator().manual_seed(number))
    weights.load(ranks.spread({name: w.detach() for name, w in named.items()}, weights.masters))
    model.use_attention("explicit")
    whole.use_attention("explicit")
    batch, options = rows(config), {"label_smoothing": 0.1, "z_loss": 0.01, "num_targets": 7}
    expected, loss = whole.loss(**batch, **options), model.loss(**batch, **options)
    expected.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    loss.backward()  # type: ignore[no-untyped-call] # the same
    ranks.sum_gradients(weights)
    length = ranks.norm(weights.gradients)
    gradients = ranks.gather({name: w.grad for name, w in weights.masters.items() if w.grad is not None})
    masters = ranks.gather(weights.masters)
    saved = ranks.as_saved(weights.masters)
    held = ranks.mine(ranks.as_held(saved))
    kept = all(torch.equal(held[name], w) for name, w in ranks.mine(weights.masters).items())
    natural = {name: ranks.parts.closed(w) for name, w in saved.items()}
    matrices = {name: w.grad for name, w in weights.masters.items() if w.ndim == 2 and in_block(name)}
    made = ranks.gather(
        {name: ranks.orthogonal([grad])[0] for name, grad in matrices.items() if grad is not None}
    )
    if not ranks.is_first:
        return {}
    assert gradients.keys() == masters.keys() == named.keys()
    wanted = {name: w.grad for name, w in named.items() if w.grad is not None}
    largest = max(g.abs().max() for g in wanted.values())
    least = 1e-3 * largest  # a bias of keys has a gradient of 0, but for rounding
    far = {
        name: float((gradients[name] - g).abs().max() / g.abs().max().clamp(min=least))
        for name, g in wanted.items()
    }
    wanted_length = torch.stack([g.norm() for g in wanted.values()]).norm()
    return {
        "loss": abs(float(loss.detach() / expected.detach()) - 1),
        "gradient": max(far.values()),
        "where": max(far, key=lambda name: far[name]),
        "length": abs(float(length / wanted_length) - 1),
        "begins alike": same,
        "saved alike": kept and all(torch.equal(natural[name], w) for name, w in named.items()),
        "orthogonal": max(
            float((made[name].float() - each_orthogonal([gradients[name]])[0].float()).abs().max())
            for name in made
        ),
        "gathered alike": all(torch.equal(masters[name], w) for name, w in named.items()),
        "held": sum(w.numel() for w in ranks.mine(weights.masters).values())
        / sum(w.numel() for w in named.values()),
    }


def noise(ranks: ManyRanks) -> dict[str, bool]:
    """Whether dropout inside attention differs between two ranks whose heads and tokens are all alike, and what each
    adds to the stream is nevertheless the same."""
    config = ModelConfig(vocab=31, width=8, layers=1, heads=4, context=8, dropout=0.5, init="unit")
    model = build(config)
    for weight in model.parameters():
        torch.nn.init.constant_(weight, 0.1)
    ranks.prepare(model, "fp32")
    model.use_attention("explicit")
    seen = {}
    torch.manual_seed(4)
    model(torch.zeros(2, 8, dtype=torch.long), see=lambda name, y: seen.setdefault(name, y.detach().clone()))
    first, second = ranks.hear((seen["blocks.0.attn.z"], seen["blocks.0.resid_post"]))
    return {
        "heads differ": not torch.equal(first[0], second[0]),
        "stream alike": torch.equal(first[1], second[1]),
        "drops": bool((first[1] != first[1][0, 0]).any()),
    }


def rows(config: ModelConfig) -> dict[str, Tensor]:
    """Two rows of tokens, a packed one and one with targets that do not count."""
    draw = torch.Generator().manual_seed(5)
    ids, targets = (torch.randint(0, 31, (2, 8), generator=draw) for _ in range(2))
    targets[1, 5:] = -100
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0] * 8])
    match config.kind:
        case "encoder-decoder":
            return {"source": ids, "ids": ids.flip(1), "targets": targets, "source_segments": segments,
                    "segments": segments}  # fmt: skip
        case "encoder" if config.head == "classes":
            return {"ids": ids, "targets": targets[:, 0] % 3, "segments": segments}
        case "encoder":
            return {
                "ids": ids,
                "targets": targets,
                "places": torch.arange(8).expand(2, 8),
                "segments": segments,
            }
        case _:
            return {"ids": ids, "targets": targets, "segments": segments}
