"""A rank that holds the others up is named with its share of step time; where all are alike nobody is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from test_ranks import PLAIN, ranks
from trainer import Trainer

from glassformer.train.stragglers import WINDOWS, Stragglers


def windows(count: int, *each: tuple[Sequence[float], float]) -> list[tuple[str, dict[str, Any]]]:
    """The events of so many windows, each (own seconds by rank, seconds of a step), again and again."""
    found, stragglers = list[tuple[str, dict[str, Any]]](), Stragglers(lambda: ["a", "b", "c"])
    for window in range(count):
        own, whole = each[window % len(each)]
        for _ in range(5):
            stragglers.add(own[0], whole)
        heard = [[seconds, whole] for seconds in own]
        found += stragglers.look(5 * (window + 1), 5, lambda *mine, heard=heard: heard)  # type: ignore[misc]
    return found


def test_who_is_slow_for_some_windows_is_named_once_with_what_it_costs() -> None:
    (_, event), (kind, warning) = windows(90, ((0.1, 0.1, 0.25), 0.3))
    assert event["step"] == 5 * WINDOWS and event["slow"]
    assert (event["slowest"], event["machine"]) == (2, "c")
    assert event["ratio"] == pytest.approx(2.5) and event["share"] == pytest.approx(0.5)
    assert kind == "warning" and "rank 2 on c is slow" in warning["message"] and "50%" in warning["message"]


def test_nobody_is_named_where_all_are_alike_or_it_does_not_last_or_costs_nothing() -> None:
    even = ((0.1, 0.11, 0.12), 0.15)
    assert windows(90, even) == []
    assert windows(90, ((0.1, 0.3, 0.1), 0.4), even) == []
    assert windows(90, ((0.1, 0.3, 0.1), 0.4), ((0.3, 0.1, 0.1), 0.4)) == []
    assert windows(90, ((0.001, 0.001, 0.003), 0.4)) == []
    (_, event), *others = windows(100, even)  # a look from time to time
    assert not event["slow"] and not others and event["step"] == 500


def test_a_rank_that_really_is_slow_is_named_by_the_run(trainer: Trainer) -> None:
    at = 'writes: "event": "step"+"step": 4,'
    first, second = ranks(trainer, 2, "slow", *PLAIN, "--train.steps", "30", deed="SIGWINCH", at=at)
    assert (first.exit, second.exit) == (0, 0)
    named = [event for event in first.all("ranks") if event["slow"]]
    assert named and named[0]["slowest"] == 1 and named[0]["seconds"] > 0.1 and named[0]["share"] > 0.3
    assert any(
        "rank 1 on " in event["message"] and "is slow" in event["message"] for event in first.all("warning")
    )
