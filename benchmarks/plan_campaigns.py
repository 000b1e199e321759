"""Accelerator-hours of published campaigns, each computed from the others, beside what was published.

    python benchmarks/plan_campaigns.py [--json]

Where a run's speed is printed (tokens or FLOP/s, or its utilisation) that is used; otherwise only hardware, model and
tokens. Runs whose hours and speed come from each other are not among them.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from glassformer.plan.campaigns import left_out
from glassformer.stats import median


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = table()
    if given.json:
        print(json.dumps({"runs": rows, "summary": summary(rows)}))
        return
    print(f"{'run':24s} {'given':20s} {'computed':>12s} {'published':>12s} {'error':>7s}  80 %")
    for row in rows:
        print(
            f"{row['run']:24s} {row['given']:20s} {row['computed']:12,.0f} {row['published']:12,.0f} "
            f"{row['error']:+7.0%}  {'holds' if row['holds'] else 'misses'}"
        )
    for line in summary(rows):
        print("  ".join(f"{name} {value}" for name, value in line.items()))


def table() -> list[dict[str, Any]]:
    """A row for each campaign."""
    return [one.row() for one in left_out()]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median error and how often the interval holds: of all, by what was given, and where hours are no guess."""
    groups = {
        "all": rows,
        "speed given": [row for row in rows if row["given"] == "speed"],
        "hardware and model given": [row for row in rows if row["given"] != "speed"],
        "hours not guessed": [row for row in rows if row["hours"] == "published"],
    }
    return [
        {
            "group": name,
            "runs": len(group),
            "median_error": round(median([abs(row["error"]) for row in group]), 3),
            "interval_holds": round(sum(row["holds"] for row in group) / len(group), 2),
        }
        for name, group in groups.items()
    ]


if __name__ == "__main__":
    main()
