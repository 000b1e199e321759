"""docs/scale-accuracy.md is what its commands write: it names them, and its numbers agree with one another."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from glassformer.scale.forecast import LEVELS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scale-accuracy.md").read_text(encoding="utf-8")


def tables(heading: str) -> list[list[list[str]]]:
    """The tables under a heading of any depth, each as its rows of cells, header first."""
    section = re.split(r"\n##+ ", PAGE.split(f"# {heading}\n", 1)[1])[0]
    blocks = re.findall(r"(?:^\|.*\n?)+", section, re.M)
    split = [
        [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        for block in blocks
    ]
    return [[row for row in rows if not set("".join(row)) <= {"-"}] for rows in split]


def share(cell: str) -> float:
    return float(cell.rstrip("%")) / 100


def test_the_page_names_the_command_of_each_of_its_sections_and_the_commands_exist() -> None:
    named = re.findall(r"^python (benchmarks/\w+\.py) .*--out docs/scale-accuracy\.md", PAGE, re.M)
    assert named == ["benchmarks/forecast.py", "benchmarks/simulated.py", "benchmarks/fit_speed.py"]
    written = {name: (ROOT / name).read_text(encoding="utf-8") for name in named}
    for name, heading in zip(named, ("Forecasts of larger runs", "Known laws", "Speed"), strict=True):
        assert f'"{heading}"' in written[name] and f"\n## {heading}\n" in PAGE


def test_the_mean_of_studies_is_that_of_the_studies() -> None:
    header, *rows = tables("Forecasts of larger runs")[0]
    assert header[4:] == [f"{level:.0%} holds" for level in LEVELS]
    values = np.array([[share(cell) for cell in row[1:]] for row in rows])
    assert len(rows) >= 7 and values[-1] == pytest.approx(values[:-1].mean(axis=0), abs=0.006)
    assert (np.diff(values[:, 3:], axis=1) >= 0).all()  # a wider interval holds no fewer


def test_every_split_is_told_with_its_distance_and_its_intervals() -> None:
    count, low, high = re.search(r"(\d+) splits of \d+ studies, (\d+)x to (\d+)x", PAGE).groups()  # type: ignore[union-attr]
    rows = (
        tables("Every split, with all its runs")[0][1:] + tables("Every split, as a ladder of 12 runs")[0][1:]
    )
    beyond = [float(row[1].rstrip("x")) for row in rows]
    assert len(rows) == int(count) and min(beyond) == float(low) and max(beyond) == float(high)
    for row in rows:
        assert int(row[2]) >= 8 and all(share(cell) >= 0 for cell in row[3:])


def test_what_is_claimed_of_known_laws_is_within_its_aims() -> None:
    told = {row[0]: row[1] for row in tables("Known laws")[0][1:]}
    assert float(told["median error of a"]) <= 0.01
    assert 0.86 <= share(told["90 % interval of a holds the truth"]) <= 0.94
    assert told["ladders whose fit failed"] == "0"
    assert float(told["largest relative error of a number, without noise"]) <= 1e-6


def test_the_same_objective_is_reached_by_all_and_fifty_times_sooner_by_us() -> None:
    _, ours, *others = tables("Speed")[0]
    assert len(others) == 2 and float(ours[3]) <= 0.0010182741
    for row in others:
        assert float(row[2].rstrip("x")) >= 50 and float(row[3]) == pytest.approx(0.0010182740, rel=1e-4)
