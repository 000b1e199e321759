"""Which of how many processes this is: the variables that torchrun, and whoever starts ranks by hand, sets.

    RANK, WORLD_SIZE              this process's number, from 0, and how many there are in all
    LOCAL_RANK, LOCAL_WORLD_SIZE  the same on this machine; the GPU is that of LOCAL_RANK
    MASTER_ADDR, MASTER_PORT      where rank 0 (or the launcher) listens, so that they find each other

Without RANK and WORLD_SIZE, or with a WORLD_SIZE of 1, a process is alone. No torch: a wrong setting is told at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from glassformer.errors import ConfigError, UsageError
from glassformer.train import attempt
from glassformer.train.recipe import AnyRecipe

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_START = "Start ranks with: torchrun --nproc-per-node N -m glassformer train ..., or: glassformer train --ranks N ..."


@dataclass(frozen=True, slots=True)
class World:
    rank: int = 0
    count: int = 1
    local_rank: int = 0
    host: str = ""
    port: int = 0
    launched: bool = False
    """Whether torch's launcher looks after the ranks, and keeps the store in which they meet."""

    @property
    def is_first(self) -> bool:
        """Rank 0 alone writes, shows and reports."""
        return self.rank == 0

    @classmethod
    def here(cls, environment: Mapping[str, str] | None = None) -> World:
        """What the environment says; ConfigError with all that is wrong with it."""
        given = os.environ if environment is None else environment
        if not ("RANK" in given or "WORLD_SIZE" in given):
            return cls()
        if given.get("WORLD_SIZE") == "1" and given.get("RANK", "0") == "0":
            return cls()
        problems = [f"{name} is not set" for name in _NAMES if not given.get(name)]
        numbers: dict[str, int] = {}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "LOCAL_WORLD_SIZE"):
            text = given.get(name, "")
            if text.isdecimal():
                numbers[name] = int(text)
            elif text:
                problems.append(f"{name} is {text!r}, not a number from 0")
        for rank, count in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
            if numbers.get(rank, -1) >= numbers.get(count, 2**63):
                problems.append(
                    f"{rank} is {numbers[rank]}, but of {count} {numbers[count]} ranks the last is {numbers[count] - 1}"
                )
        if not 0 < numbers.get("MASTER_PORT", 1) < 2**16:
            problems.append(f"MASTER_PORT is {numbers['MASTER_PORT']}, not a port (1 to 65535)")
        if problems:
            raise ConfigError("This process is to be one of several ranks, but:", problems, do=_START)
        launched = given.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return cls(
            numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"],
            given["MASTER_ADDR"], numbers["MASTER_PORT"], launched,
        )  # fmt: skip


def check_ranks(asked: int | None, world: World, restarts: int | None = None) -> None:
    """Refuse `--ranks` in a rank that is one of another number, and `--restarts` where another launcher decides."""
    if restarts is not None and "RANK" in os.environ and attempt.RESTARTS not in os.environ:
        raise UsageError(
            f"--restarts is {restarts}, but this process is a rank already (RANK is set), and does not begin others.",
            do="Leave --restarts out; torchrun's own is --max-restarts.",
        )
    if asked is not None and world.count not in (1, asked):
        raise UsageError(
            f"--ranks is {asked}, but this is rank {world.rank} of {world.count} (WORLD_SIZE).",
            do="Leave --ranks out under torchrun.",
        )


def check_division(recipe: AnyRecipe, count: int) -> None:
    """Refuse a recipe whose work cannot be divided over so many ranks."""
    train, shard, problems = recipe.train, recipe.parallel.shard, []
    if train.batch % (count * train.accumulate):
        parts = (
            f"{count} ranks with {train.accumulate} micro-batches each"
            if train.accumulate > 1
            else f"{count} ranks"
        )
        best = max(1, round(train.batch / (count * train.accumulate))) * count * train.accumulate
        problems.append(f"train.batch {train.batch} does not divide over {parts}; {best} would")
    if shard != "all" and count % shard:
        problems.append(f"parallel.shard {shard} does not divide {count} rank{'s' * (count > 1)}")
    if recipe.engine.device.startswith("cuda:") and count > 1:
        problems.append(
            f"engine.device '{recipe.engine.device}' is one GPU, but each rank takes that of LOCAL_RANK"
        )
    if problems:
        raise ConfigError(
            f"The recipe {recipe.name} cannot be divided over {count} rank{'s' * (count > 1)}:", problems
        )
