"""Published campaigns, failures and power readings, each computed from the others, beside what was published.

    python benchmarks/plan_campaigns.py [--json] [--out docs/plan-accuracy.md]

Of campaigns, accelerator-hours: where a run's speed is printed (tokens or FLOP/s, or its utilisation) that is used,
otherwise only hardware, model and tokens; runs whose hours and speed come from each other are not among them. Of
records of failures, the interruptions in their node-days, with an interval of 90 %. Of nodes whose power was metered,
watts for each accelerator, beside what the datasheet's TDP and Epoch's rule would say.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from glassformer.plan import campaigns, energy, failures
from glassformer.stats import median


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="a page, whose sections on these are written anew")
    given = parser.parse_args()
    rows = table()
    if given.out:
        write(given.out, rows)
    if given.json:
        found = {"runs": rows, "summary": summary(rows), "failures": failures_table(), "power": power_table()}
        print(json.dumps(found))
        return
    print(f"{'run':24s} {'given':20s} {'computed':>12s} {'published':>12s} {'error':>7s}  80 %")
    for row in rows:
        print(
            f"{row['run']:24s} {row['given']:20s} {row['computed']:12,.0f} {row['published']:12,.0f} "
            f"{row['error']:+7.0%}  {'holds' if row['holds'] else 'misses'}"
        )
    for line in summary(rows):
        print("  ".join(f"{name} {value}" for name, value in line.items()))
    print(f"\n{'failures of':36s} {'low':>8s} {'high':>8s} {'counted':>8s}  90 %")
    for row in failures_table():
        print(
            f"{row['system']:36s} {row['low']:8,.0f} {row['high']:8,.0f} {row['counted']:8,.0f}  "
            f"{'holds' if row['holds'] else 'misses'}"
        )
    print(f"\n{'watts of':60s} {'predicted':>9s} {'metered':>8s} {'error':>7s} {'TDP':>7s} {'Epoch':>7s}")
    power = power_table()
    for row in power:
        print(
            f"{row['run']:60s} {row['predicted']:9.0f} {row['metered']:8.0f} {row['error']:+7.1%} "
            f"{row['error_tdp']:+7.0%} {row['error_epoch']:+7.0%}"
        )
    medians = [median([abs(row[name]) for row in power]) for name in ("error", "error_tdp", "error_epoch")]
    print(f"{'median of the absolute errors':78s} {medians[0]:+7.1%} {medians[1]:+7.0%} {medians[2]:+7.0%}")


def write(page: Path, rows: list[dict[str, Any]]) -> None:
    """The three tables as sections of a page."""
    import section  # beside this file

    lines = section.table(
        ["run", "given", "hours computed", "published", "error", "80 % interval"],
        [[row["run"], row["given"], f"{row['computed']:,.0f}", f"{row['published']:,.0f}", f"{row['error']:+.0%}",
          "holds" if row["holds"] else "misses"] for row in rows],
    )  # fmt: skip
    found = section.table(
        ["runs", "how many", "median error", "80 % interval holds"],
        [[one["group"], str(one["runs"]), f"{one['median_error']:.1%}", f"{one['interval_holds']:.0%}"]
         for one in summary(rows)],
    )  # fmt: skip
    section.write(
        page,
        "Whole campaigns",
        ["Accelerator-hours, each run computed from the others.", "", *found, "", *lines],
    )
    lines = section.table(
        ["interruptions of", "90 % from", "to", "counted", ""],
        [[row["system"], f"{row['low']:,.0f}", f"{row['high']:,.0f}", f"{row['counted']:,.0f}",
          "holds" if row["holds"] else "misses"] for row in failures_table()],
    )  # fmt: skip
    section.write(page, "Failures", ["Each system from the others' records.", "", *lines])
    power = power_table()
    lines = section.table(
        ["watts for each accelerator of", "computed", "metered", "error", "TDP alone", "Epoch's rule"],
        [[row["run"], f"{row['predicted']:.0f}", f"{row['metered']:.0f}", f"{row['error']:+.1%}",
          f"{row['error_tdp']:+.0%}", f"{row['error_epoch']:+.0%}"] for row in power],
    )  # fmt: skip
    medians = [median([abs(row[name]) for row in power]) for name in ("error", "error_tdp", "error_epoch")]
    said = "Each reading from the others. Medians of the absolute errors: {:.1%}, {:.0%} and {:.0%}.".format(
        *medians
    )
    section.write(page, "Power", [said, "", *lines])


def table() -> list[dict[str, Any]]:
    """A row for each campaign."""
    return [one.row() for one in campaigns.left_out()]


def failures_table() -> list[dict[str, Any]]:
    """A row for each system."""
    return [
        {
            "system": record.system, "node_days": record.node_days, "low": between.low, "high": between.high,
            "counted": record.failures, "holds": between.low <= record.failures <= between.high,
        }
        for record, between in failures.left_out()
    ]  # fmt: skip


def power_table() -> list[dict[str, Any]]:
    """A row for each reading."""
    return [one.row() for one in energy.left_out()]


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
