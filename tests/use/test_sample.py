from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessorList
from transformers.generation import logits_process as theirs

from glassformer.errors import ModelError, UsageError
from glassformer.use.sample import (
    Sampling,
    choose,
    draw,
    log_normaliser,
    penalised,
    probabilities,
    stages,
    tempered,
    top_k,
    top_p,
    uniform,
)

VOCAB = 50_257


def spread(seed: int, size: int = VOCAB) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.3},
        {"temperature": 1.7},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_k": 50},
        {"temperature": 0.8, "top_k": VOCAB + 10},
        {"temperature": 1.0, "top_p": 0.1},
        {"temperature": 0.9, "top_p": 0.95},
        {"temperature": 1.0, "min_p": 0.05},
        {"temperature": 1.0, "min_p": 1.0},
        {"temperature": 0.7, "top_k": 200, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 1.3, "repetition_penalty": 1.8},
        {"temperature": 0.6, "repetition_penalty": 0.7, "top_k": 100, "top_p": 0.8},
    ],
)
def test_probabilities_equal_those_of_transformers_over_the_whole_vocabulary(
    settings: dict[str, float],
) -> None:
    sampling = Sampling(**settings)  # type: ignore[arg-type] # floats stand for integers
    there = [3, 3, 50_256, 17, 4242]
    makers = {
        "repetition_penalty": theirs.RepetitionPenaltyLogitsProcessor,
        "temperature": theirs.TemperatureLogitsWarper,
        "top_k": theirs.TopKLogitsWarper,
        "top_p": theirs.TopPLogitsWarper,
        "min_p": theirs.MinPLogitsWarper,
    }
    processors = LogitsProcessorList([makers[name](settings[name]) for name in makers if name in settings])
    for seed in range(5):
        logits = spread(
            seed
        ).double()  # in float32 their running sum alone moves the edge of top_p by a few tokens
        ours = probabilities(penalised(logits, there, sampling.repetition_penalty), sampling)
        expected = processors(torch.tensor([there]), logits[None].clone())[0].softmax(-1)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
        assert bool(((ours > 0) == (expected > 0)).all())


def test_draws_follow_the_probabilities_by_a_chi_square_test() -> None:
    mass = spread(1, 40).softmax(-1)
    count = 40_000
    u = torch.tensor([uniform(7, number) for number in range(count)], dtype=torch.float64)
    seen = torch.bincount(draw(mass.expand(count, -1), u), minlength=40)
    expected = mass.double() * count
    often = expected >= 5
    statistic = ((seen[often] - expected[often]) ** 2 / expected[often]).sum().item()
    freedom = int(often.sum()) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)
    assert int(seen[~often].sum()) < 3 * float(expected[~often].sum()) + 10


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30).filter(lambda mass: sum(mass) > 0),
    st.floats(0, 1, exclude_max=True),
)
def test_a_token_of_probability_zero_is_never_drawn(mass: list[float], u: float) -> None:
    token = int(draw(torch.tensor(mass), torch.tensor(u, dtype=torch.float64)))
    assert mass[token] > 0


@given(st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=30), st.floats(0.01, 0.999))
def test_top_p_keeps_a_smallest_set_that_reaches_p(logits: list[float], p: float) -> None:
    mass = torch.tensor(logits, dtype=torch.float64).softmax(-1)
    kept = top_p(mass.log(), p).isfinite()
    assert float(mass[kept].sum()) >= p - 1e-9
    least = mass[kept].min()
    assert float(mass[kept & (mass > least)].sum()) < p + 1e-9
    assert float(mass[~kept].max()) < float(least) if bool((~kept).any()) else True


def test_tokens_that_tie_at_the_edge_all_stay() -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, 0.0])
    assert top_k(logits, 2).isfinite().tolist() == [True, True, True, False]
    assert top_p(torch.tensor([0.5, 0.2, 0.2, 0.1]).log(), 0.6).isfinite().tolist() == [
        True,
        True,
        True,
        False,
    ]


def test_no_temperature_overflows() -> None:
    logits = torch.tensor([80.0, 1e4, -1e4, 1e4 - 1])
    for temperature in (1e-300, 1e-30, 1e-3, 1.0, 1e30):
        mass = tempered(logits, temperature).softmax(-1)
        assert bool(mass.isfinite().all())
    assert probabilities(logits, Sampling(temperature=1e-30)).tolist() == [0, 1, 0, 0]


def test_temperature_zero_takes_the_largest_whatever_is_drawn() -> None:
    logits = spread(3)
    greedy = Sampling(temperature=0.0)
    assert choose(logits, greedy, torch.tensor(0.99)) == logits.argmax()
    assert probabilities(logits, greedy)[logits.argmax()] == 1


def test_a_row_is_chosen_alike_alone_and_among_others() -> None:
    rows = torch.stack([spread(seed, 300) for seed in range(6)])
    sampling = Sampling(temperature=0.9, top_k=60, top_p=0.9, min_p=0.01)
    u = torch.tensor([uniform(seed, 0) for seed in range(6)])
    together = choose(rows, sampling, u)
    assert [int(choose(row, sampling, x)) for row, x in zip(rows, u, strict=True)] == together.tolist()


def test_uniform_numbers_are_the_same_on_every_machine() -> None:
    assert uniform(0, 0) == 0.31147093375413215
    assert len({uniform(seed, number) for seed in range(30) for number in range(30)}) == 900
    assert all(0 <= uniform(1, number) < 1 for number in range(1000))


def test_a_penalty_of_one_changes_nothing_and_of_more_makes_rarer() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0])
    assert penalised(logits, [0, 1], 1.0).equal(logits)
    assert penalised(logits, [0, 1, 1], 2.0).tolist() == [1.0, -4.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 1.0]


def test_the_normaliser_turns_logits_into_log_probabilities() -> None:
    logits = spread(5)
    torch.testing.assert_close(logits - log_normaliser(logits), logits.log_softmax(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_named(bad: float) -> None:
    logits = spread(0)
    logits[17] = bad
    with pytest.raises(ModelError, match="1 of 50257 are NaN" if math.isnan(bad) else "infinite"):
        log_normaliser(logits)


def test_all_impossible_settings_are_reported_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        Sampling(temperature=-1.0, top_k=0, top_p=1.5, min_p=-0.1, repetition_penalty=0.0)
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        assert name in str(caught.value)


@pytest.mark.parametrize("settings", [{"temperature": math.nan}, {"temperature": math.inf}, {"top_p": 0.0}])
def test_a_setting_outside_its_range_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Sampling(**settings)  # type: ignore[arg-type] # floats stand for integers


def test_one_row_takes_any_number_of_draws_and_the_stages_end_in_what_is_drawn_from() -> None:
    logits, sampling = spread(5, 40), Sampling(0.7, top_k=9, top_p=0.9, min_p=0.05)
    mass = probabilities(logits, sampling)
    u = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    assert draw(mass, u).tolist() == [int(draw(mass, one)) for one in u]
    names, logits_after = zip(*stages(logits, sampling), strict=True)
    assert names == ("temperature", "top_k", "top_p", "min_p")
    assert logits_after[-1].softmax(-1).equal(mass)
    left = [int((each > -math.inf).sum()) for each in logits_after]
    assert left[:2] == [40, 9] and left == sorted(left, reverse=True)
