"""The design of a ladder: what every one obeys, whatever the machine, the text and the time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from glassformer.errors import UsageError
from glassformer.model.config import ModelConfig
from glassformer.model.count import flops_per_token, parameters
from glassformer.scale.design import Design, Rules, Speed, Text, design, makespan, one_rung, sized

MODEL = ModelConfig(vocab=512, context=128)
TEXT = Text(unique_tokens=13_000_000, validation_tokens=200_000)


def machine(flops_per_second: float, overhead: float = 5.0) -> Speed:
    """Steps of 10 ms and what their FLOPs take."""
    return Speed(tuple((f, 0.01 + f / flops_per_second) for f in (1e8, 1e9, 1e10, 1e11)), overhead)


def try_design(seconds: float, speed: Speed, text: Text = TEXT, workers: int = 1) -> Design:
    try:
        return design(MODEL, text, speed, seconds, workers=workers)
    except UsageError:
        assume(False)
        raise


@settings(max_examples=15)
@example(hours=3.0, rate=1e10, unique=9_264_640, workers=2)
@given(
    hours=st.floats(0.3, 30), rate=st.floats(1e10, 1e12), unique=st.integers(10**6, 10**9), workers=st.integers(1, 4)
)  # fmt: skip
def test_every_design_can_be_fitted_and_tested_within_the_time(
    hours: float, rate: float, unique: int, workers: int
) -> None:
    found = try_design(hours * 3600, machine(rate), Text(unique, 200_000), workers)
    fitted, top = found.fitted, found.held_back
    assert found.seconds <= hours * 3600
    assert len({rung.parameters for rung in fitted}) >= 5
    ratios = [rung.tokens / rung.parameters for rung in fitted]
    assert len({round(math.log2(ratio)) for ratio in ratios}) >= 3
    assert max(rung.compute for rung in fitted) >= 10**1.5 * min(rung.compute for rung in fitted)
    assert all(top.compute >= 4 * rung.compute and top.flops >= 4 * rung.flops for rung in fitted)
    assert top.compute <= 8 * max(rung.compute for rung in fitted)
    assert all(top.parameters > rung.parameters and top.tokens > rung.tokens for rung in fitted)
    assert min(ratios) <= top.tokens / top.parameters <= max(ratios)
    assert list(found.rungs) == sorted(found.rungs, key=lambda rung: rung.compute)
    assert len(found.spots) == 2
    assert not any(rung.held_back for rung in fitted)
    assert top.held_back
    assert bool(found.warnings) == (found.epochs > 1)


@settings(max_examples=10)
@given(hours=st.floats(0.5, 5), more=st.floats(1, 10))
def test_more_time_never_gives_a_smaller_ladder(hours: float, more: float) -> None:
    large = Text(10**9, 200_000)
    one = try_design(hours * 3600, machine(5e10), large)
    assert try_design(more * hours * 3600, machine(5e10), large).held_back.compute >= one.held_back.compute


def test_time_counts_every_run_and_a_tenth_more() -> None:
    found = try_design(7200, machine(5e10))
    spots = sum(4 * rung.seconds for rung in found.spots)
    others = sum(rung.seconds for rung in found.rungs if not rung.spot)
    assert found.seconds == pytest.approx(1.1 * (spots + others) + 15)
    for rung in found.rungs:
        step = machine(5e10).step_seconds(rung.flops / rung.steps)
        assert rung.seconds > rung.steps * step + 5


def test_a_text_that_is_large_enough_is_not_read_twice_whatever_the_time() -> None:
    assert 0.8 < try_design(1e6, machine(1e12)).epochs <= 1


def test_with_time_to_spare_the_text_limits_tokens_and_the_held_back_model_is_as_large_as_it_may_be() -> None:
    top = try_design(1e6, machine(1e12)).held_back
    assert 10 <= top.tokens / top.parameters < 12


def test_a_text_that_is_too_small_is_read_again_as_little_as_can_be_and_that_is_told() -> None:
    found = try_design(36_000, machine(1e11), Text(100_000, 5_000))
    assert found.epochs > 1
    assert f"reads the text {found.epochs:.1f} times" in found.warnings[0]
    assert try_design(360_000, machine(1e11), Text(100_000, 5_000)).epochs == found.epochs


def test_too_little_time_is_refused_with_the_least_that_is_enough() -> None:
    with pytest.raises(UsageError, match="are too few for a ladder here") as refused:
        design(MODEL, TEXT, machine(5e10), 60)
    minutes = int(refused.value.do.split("--budget ")[1].split("m")[0])
    design(MODEL, TEXT, machine(5e10), 60 * minutes)
    with pytest.raises(UsageError):
        design(MODEL, TEXT, machine(5e10), 60 * (minutes - 1))


def test_a_rung_is_what_the_rules_say() -> None:
    rung = one_rung(MODEL, 96, 20.0, TEXT, machine(5e10))
    model = sized(MODEL, 96)
    assert (rung.width, rung.layers, rung.heads) == (96, 4, 3)
    assert rung.parameters == parameters(model).total
    assert rung.flops_per_token == flops_per_token(model, "matmul")
    assert rung.tokens / rung.parameters == pytest.approx(20, rel=0.01)
    compute = 6 * rung.parameters * 20 * rung.parameters
    assert rung.learning_rate == pytest.approx(0.3118 * compute**-0.125)
    assert rung.batch == round(0.292 * compute**0.3271 / 128)


@settings(max_examples=30)
@given(width=st.integers(4, 512).map(lambda half: 2 * half))
def test_every_size_is_a_model_that_can_be_built(width: int) -> None:
    model = sized(ModelConfig(vocab=512, width=256, heads=8, kv_heads=2, feedforward=512), width)
    checked = ModelConfig.model_validate(model.model_dump())
    assert checked.feedforward == 2 * width
    assert checked.layers >= 1


@given(flops=st.floats(1e6, 1e15), factor=st.floats(1, 1000))
def test_a_larger_step_never_takes_less_time(flops: float, factor: float) -> None:
    speed = Speed(((1e9, 0.02), (2e9, 0.015), (1e11, 0.9)), 1.0)
    assert speed.step_seconds(flops * factor) >= speed.step_seconds(flops)
    assert Speed(((1e9, 0.02),), 1.0).step_seconds(4e9) == pytest.approx(0.08)


def test_what_is_held_back_runs_beside_the_others_when_two_run_at_a_time() -> None:
    assert makespan([10, 4, 3, 3], 2) == 10
    assert makespan([10, 4, 3, 3], 1) == 20


def test_a_design_comes_back_from_its_file_as_it_was() -> None:
    found = replace(try_design(7200, machine(5e10)), warnings=("one",))
    assert Design.of(found.to_dict()) == found


def test_rules_may_ask_for_less() -> None:
    few = Rules(smallest=16, ratios=(4, 8, 16), sizes=4, fewest=4)
    found = design(MODEL, TEXT, machine(5e10), 1800, rules=few)
    assert len({rung.parameters for rung in found.fitted}) == 4
