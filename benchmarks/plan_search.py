"""How many layouts a second the search gets through, with their time and memory, on one core.

OMP_NUM_THREADS=1 python benchmarks/plan_search.py
"""

from __future__ import annotations

import time
from dataclasses import replace

from glassformer.plan.layout import Job
from glassformer.plan.rows import measured_rows
from glassformer.plan.search import search

CASES = {"MPT-7b": 64, "Llama 3 405B": 16384, "DeepSeekV3": 256, "GPT d14336 L72": 384}
"""A measured model, and on how many of its accelerators."""


def main() -> None:
    jobs: dict[str, Job] = {row.fields["model"]: row.job for row in measured_rows() if row.job}
    print("| model | accelerators | layouts that can be | fit | seconds | layouts a second | the best |")
    print("|---|---|---|---|---|---|---|")
    for model, ranks in CASES.items():
        job = replace(jobs[model], batch=max(jobs[model].batch, 512))
        search(job, 8)  # imports and caches are warm
        begin = time.perf_counter()
        found = search(job, ranks)
        took = time.perf_counter() - begin
        can_be = len(found.seconds) + found.impossible.get("do not fit the memory", 0)
        print(
            f"| {model} | {ranks:,} | {can_be:,} | {len(found.seconds):,} | {took:.2f} | {can_be / took:,.0f} "
            f"| {found.explain(0)[0]} |"
        )


if __name__ == "__main__":
    main()
