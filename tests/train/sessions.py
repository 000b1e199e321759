"""Training in this process, step by step, so that a test can break something in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glassformer.run.folder import Run
from glassformer.train import start
from glassformer.train.interrupt import Interrupt
from glassformer.train.loop import Session
from glassformer.train.ranks import ALONE
from glassformer.train.recipe import load_recipe
from glassformer.train.task import Batch, Event

RECIPE: dict[str, Any] = {
    "name": "broken",
    "data": {"validation": 0.2},
    "tokenizer": {"kind": "bytes"},
    "model": {"width": 16, "layers": 2, "heads": 2, "context": 16},
    "train": {
        "steps": 90, "batch": 8, "checkpoint_every": 40, "validate_every": 1000, "sample_every": 1000,
        "sample_tokens": 0, "log_every": 1,
    },
    "optimizer": {"learning_rate": 0.01},
    "engine": {"device": "cpu", "precision": "fp32", "compile": "off", "attention": "explicit"},
    "faults": {"window": 40, "remember_every": 20, "replay_every": 0, "digest_every": 0},
}  # fmt: skip

Break = Callable[[Session, Event], None]


class Broken:
    """What became of a run."""

    def __init__(self, folder: Path) -> None:
        self.run = Run.open(folder)

    def all(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.run.events.read() if event["event"] == name]

    @property
    def decisions(self) -> list[tuple[int, str, str, int | None]]:
        """(step, kind, decision, step whose batch was blamed) of each fault."""
        return [(e["step"], e["kind"], e["decision"], e.get("blamed")) for e in self.all("fault")]

    @property
    def warned(self) -> str:
        return "\n".join(event["message"] for event in self.all("warning"))

    @property
    def story(self) -> dict[str, Any]:
        """What is the same to the bit when nothing was lost."""
        keys = ("step", "loss", "grad_norm", "learning_rate", "tokens")
        (done,) = self.all("done")
        return {
            "rows": [[row[key] for key in keys] for row in self.run.rows()],
            "consumed": done["consumed"],
            "model": (self.run.model / "model.safetensors").read_bytes(),
        }


class Breaker:
    """Runs one recipe in folders of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "texts").mkdir()
        for number in range(40):
            text = f"In room {number} the cat sat on mat {number * 7 % 30}; nobody in house {number % 9} knew why.\n"
            (folder / "texts" / f"{number}.txt").write_text(text * 2, encoding="utf-8")

    @contextmanager
    def session(self, run: str, paths: tuple[str, ...] = ("texts",), **overrides: Any) -> Iterator[Session]:
        dotted = {"data.paths": list(paths), **{k.replace("__", "."): v for k, v in overrides.items()}}
        recipe, _ = load_recipe(RECIPE, dotted)
        task = start.open_task(recipe, self.folder, lambda message: None)
        folder = start.open_run(task, self.folder / run, fresh=False, accept_data=False)
        with folder.lock():
            session = Session(task, folder, lambda message: None, ALONE)
            with session.saver:
                yield session

    def __call__(
        self,
        run: str,
        *,
        prepare: Callable[[Session], None] = lambda session: None,
        after: Break = lambda session, event: None,
        **overrides: Any,
    ) -> Broken:
        """Train to the end: `prepare` before the first step, `after` each event."""
        with self.session(run, **overrides) as session:
            prepare(session)
            for event in session.events(Interrupt(), None):
                after(session, event)
        return Broken(self.folder / run)


def ids_of(batch: Batch) -> bytes:
    return np.ascontiguousarray(batch.arrays()["ids"]).tobytes()


def spoil_activations(session: Session, step: int, *, once: bool, row: int = 3, position: int = 5) -> None:
    """The feed-forward layer of block 1 gives NaN at one place of one row when it is given the batch of `step`."""
    wanted = ids_of(session.ranks.rows(session.task.batches.batch(step)))
    left = [1 if once else 10**9]
    reading = [False]

    def read(module: Any, given: Any, out: Tensor) -> None:
        ids = given[0].to_local() if hasattr(given[0], "to_local") else given[0]  # a divided vocabulary's
        reading[0] = ids.numpy().tobytes() == wanted

    def spoil(module: Any, given: Any, out: Tensor) -> Tensor:
        if not reading[0] or not left[0]:
            return out
        left[0] -= 1
        out = out.clone()
        out[row, position, 2] = torch.nan
        return out

    session.model.embed.register_forward_hook(read)
    session.model.blocks[1].mlp.register_forward_hook(spoil)


def flip(tensor: Tensor, place: int, bit: int) -> None:
    """Turn one bit of one float32 number around."""
    whole = tensor.detach().view(-1).view(torch.int32)
    whole[place] ^= 1 << bit if bit < 31 else -(2**31)


def wrong_product(session: Session, err: Callable[[], bool], bit: int = 21) -> None:
    """The largest number of block 1's first feed-forward product (an activation may hide another's) has one wrong bit
    whenever `err` says so; in float64 it is right."""

    def spoil(module: Any, given: Any, out: Tensor) -> Tensor:
        if not module.training or not torch.is_grad_enabled() or out.dtype != torch.float32 or not err():
            return out
        out = out.clone()
        flip(out, int(out.detach().argmax()), bit)
        return out

    session.model.blocks[1].mlp.up.register_forward_hook(spoil)


def at_pass(session: Session, step: int, *passes: int, rows_of: int | None = None) -> Callable[[], bool]:
    """True in these of the passes (from 1) that are made of a rank's own rows of the batch of `step`, or another's."""
    wanted, seen = ids_of(session.ranks.rows(session.task.batches.batch(step), rows_of)), [0, False]

    def read(module: Any, given: Any, out: Tensor) -> None:
        if torch.is_grad_enabled():
            seen[1] = given[0].numpy().tobytes() == wanted
            seen[0] += seen[1]

    session.model.embed.register_forward_hook(read)
    return lambda: bool(seen[1]) and seen[0] in passes


def scale_loss(session: Session, steps: range, factor: float) -> None:
    """The loss of these steps' batches is so many times what it is."""
    wanted = {ids_of(session.ranks.rows(session.task.batches.batch(step))) for step in steps}
    plain = session.loss_of

    def scaled(**arrays: Any) -> Tensor:
        loss = plain(**arrays)
        return loss * factor if arrays["ids"].numpy().tobytes() in wanted else loss

    session.loss_of = scaled
