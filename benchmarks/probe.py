"""How long it takes to measure every checkpoint of a run: 20 of a model of 10 million parameters.

    python benchmarks/probe.py                loss, norms, heads and lens of a text of 19 tokens

The checkpoints hold weights drawn at random: measuring them costs what it costs after training. Loading verifies
the SHA-256 of every file, as it does for a user.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from glassformer.look.formation import probe
from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build, count_parameters
from glassformer.run import checkpoints
from glassformer.run.folder import Run
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer

TEXT = "def __init__(self):"
MODEL = {"width": 384, "layers": 6, "heads": 6, "context": 256}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", {"name": "random", "model": MODEL}, {})
        tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])
        tokenizer.save(run.path / "tokenizer.json")
        for number in range(asked.checkpoints):
            model = build(ModelConfig(vocab=tokenizer.vocab_size, **MODEL), seed=number)  # type: ignore[arg-type]
            weights = {name: weight.detach() for name, weight in model.named_parameters()}
            checkpoints.save(
                run.checkpoints, 10 * (number + 1), {"model": weights}, {}, keep=asked.checkpoints
            )
        began = time.perf_counter()
        found = probe(run, TEXT)
        seconds = time.perf_counter() - began
    for finding in found.passed_over:
        print("passed over:", finding)
    print(f"{len(found.steps)} checkpoints of {count_parameters(model):,} parameters, {len(found.rows()):,} values: "
          f"{seconds:.1f} s with {asked.threads} threads")  # fmt: skip


if __name__ == "__main__":
    main()
