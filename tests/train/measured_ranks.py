"""Two real ranks on gloo, measured: what `train/parallel/rehearsal.py` says without them.

    python measured_ranks.py FOLDER < recipes.json        one JSON list of results, in the order of the recipes

Each recipe is set up as a session does it and takes two steps. The second is measured: memory by torch's profiler,
which hears from the allocator of every tensor that comes and goes, and from gloo of every exchange.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from glassformer.model.stacks import build
from glassformer.train.engine import Choice
from glassformer.train.optimizers import build_optimizers, state_tensors
from glassformer.train.parallel.many import ManyRanks
from glassformer.train.recipe import Recipe, load_recipe
from glassformer.train.start import loss_of
from glassformer.train.step import update
from glassformer.train.world import World


class Rows:
    """A batch of random tokens."""

    def __init__(self, recipe: Recipe) -> None:
        shape, vocab = (recipe.train.batch, recipe.model.context), recipe.model.vocab_size
        self.ids = np.random.default_rng(0).integers(0, vocab, shape)
        self.sample_ids, self.num_targets = np.arange(shape[0]), self.ids.size

    def arrays(self) -> dict[str, Any]:
        return {"ids": self.ids, "targets": self.ids, "segments": None}


class Subject:
    def __init__(self, recipe: Recipe) -> None:
        self.config = recipe.model

    def build(self, device: Any) -> torch.nn.Module:
        return build(self.config, seed=0, device=device)


def measured(recipe: Recipe, rank: int) -> dict[str, Any]:
    ranks = ManyRanks(World(rank, 2, rank), recipe.parallel, "cpu")
    choice = Choice("cpu", recipe.engine.precision, False, "fused")  # type: ignore[arg-type] # not auto
    model = ranks.build(cast(Any, Subject(recipe)), torch.device("cpu"))
    weights = ranks.prepare(model, choice.precision)
    optimizers = build_optimizers(recipe.optimizer, weights.masters, ranks.orthogonal)
    loss, batch = loss_of(model, choice, recipe), Rows(recipe)

    def step() -> None:
        update(
            loss, weights, optimizers, batch, rate=1e-3, clip=recipe.train.clip,
            accumulate=recipe.train.accumulate, device=torch.device("cpu"), ranks=ranks,
        )  # fmt: skip

    step()
    held = {
        "weights": [
            *weights.masters.values(),
            *(weights.working.values() if weights.mixed else ()),
            *model.buffers(),
        ],
        "gradients": weights.gradients,
        "optimizer": list(state_tensors(optimizers, weights.masters).values()),
    }
    kept = {name: sum(_local(tensor) for tensor in tensors) for name, tensors in held.items()}
    weights.zero_gradients()  # as at the beginning of a step
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as heard:
        step()
    events = [event for event in heard.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr] # it ran
    names = Counter(event.name() for event in heard.profiler.kineto_results.events())  # type: ignore[union-attr]
    counts = {name.partition(":")[2]: times for name, times in names.items() if name.startswith("gloo:")}
    sizes = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    at_first = sum(kept.values()) - (kept["gradients"] if weights.mixed else 0)
    return {"kept": kept, "peak": at_first + int(sizes.max()), "counts": counts}


def _local(tensor: torch.Tensor) -> int:
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.untyped_storage().nbytes()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    recipes = [cast(Recipe, load_recipe(values).recipe) for values in json.load(sys.stdin)]
    results = []
    for number, recipe in enumerate(recipes):
        children = []
        for rank in range(2):
            pid = os.fork()
            if pid == 0:
                store = dist.FileStore(str(folder / f"store-{number}"), 2)
                dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
                found = measured(recipe, rank)
                (folder / f"found-{number}-{rank}").write_text(json.dumps(found), "utf-8")
                dist.barrier()
                os._exit(0)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        assert codes == [0, 0], codes
        results.append(
            [json.loads((folder / f"found-{number}-{rank}").read_text("utf-8")) for rank in range(2)]
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
