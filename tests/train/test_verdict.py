"""Who was wrong, from what was answered; and how near float64 an honest answer is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sessions import Breaker

from glassformer.train.known import distance
from glassformer.train.step import micro_batches
from glassformer.train.verdict import Answer, Report, Verdict, judge, suspects

RIGHT = Answer(2.5, {"loss": 1, "w": 2, "v": 3}, {"w": 3.0, "v": 4.0}, 77)
WRONG = Answer(2.5, {"loss": 1, "w": 9, "v": 3}, {"w": 3.1, "v": 4.0}, 78)
OTHER = Answer(2.6, {"loss": 5, "w": 8, "v": 3}, {"w": 3.2, "v": 4.0}, 79)


def report(second: Answer = RIGHT, third: Answer = RIGHT, first: Answer | None = None, **more: Any) -> Report:
    return Report("host", first, second, third, **more)


def verdict(*reports: Report, sharded: bool = False, near: float | None = None) -> tuple[list[int], bool]:
    found: Verdict = judge(reports, near_own=near, near_others=near, sharded=sharded)
    return list(found.erring), found.persistent


def test_an_answer_that_does_not_come_again_was_wrong_once() -> None:
    assert verdict(report(first=WRONG)) == ([0], False)
    assert verdict(report(second=WRONG, first=RIGHT)) == ([0], False)
    assert verdict(report(), report(second=WRONG), report()) == ([1], False)
    assert verdict(report(), report(first=WRONG), report()) == ([1], False)
    assert verdict(report(second=WRONG), report(second=OTHER)) == ([0, 1], False)


def test_the_fewer_that_always_answer_otherwise_are_wrong_and_of_two_nobody_can_tell() -> None:
    bad = report(WRONG, WRONG)
    assert verdict(report(), report(), bad) == ([2], True)
    assert verdict(report(), bad, report(), report(OTHER, OTHER), report()) == ([1, 3], True)
    assert verdict(report(), bad) == ([], True)
    assert verdict(report(), bad, report(OTHER, OTHER)) == ([], True)
    assert verdict(report(), report(), bad, bad) == ([], True)


def test_one_rank_whose_answers_never_come_again_errs_always() -> None:
    assert verdict(report(WRONG, OTHER, RIGHT)) == ([0], True)


def test_a_known_answer_that_is_wrong_twice_settles_it() -> None:
    fails = {"failed": ["exp"], "failed_again": ["exp"]}
    assert verdict(report(), report(**fails)) == ([1], True)
    assert verdict(report(WRONG, WRONG, **fails), report()) == ([0], True)
    assert verdict(report(), report(failed=["exp"])) == ([1], False)


def test_of_shards_the_rank_whose_own_loss_was_wrong_is_named() -> None:
    lost = replace(WRONG, digests={**WRONG.digests, "loss": 4})
    assert verdict(report(first=WRONG), report(first=lost), sharded=True) == ([1], False)
    assert verdict(report(first=WRONG), report(first=WRONG), sharded=True) == ([], False)
    assert verdict(report(first=RIGHT), report(OTHER, RIGHT, lost), sharded=True) == ([1], True)


def test_within_a_share_of_the_whole_gradient_answers_are_the_same() -> None:
    assert not RIGHT.same(WRONG, None) and RIGHT.same(WRONG, 0.03) and not RIGHT.same(WRONG, 0.01)
    assert not RIGHT.same(OTHER, 0.03), "4 % of the loss"
    nan = Answer(float("nan"), {"loss": 0, "w": 0, "v": 0}, {"w": float("inf"), "v": float("nan")}, 1)
    assert nan.same(replace(nan, word=2), 0.01) and not nan.same(RIGHT, 0.01) and not RIGHT.same(nan, 0.01)
    assert verdict(report(), report(WRONG, WRONG), near=0.03) == ([], False)


def test_what_a_rank_was_wrong_about_is_told_with_both_lengths() -> None:
    apart = {"w": {"count": 1, "of": 6, "first": [0, 1], "largest": 0.5}}
    assert list(report(first=WRONG, apart=apart).rows(3, RIGHT)) == [
        {"tensor": "gradient of w", "rank": 3, "lengths": [3.1, 3.0], **apart["w"]}
    ]
    rows = list(report(OTHER, apart=apart).rows(0, RIGHT))
    assert rows[0] == {"tensor": "loss", "rank": 0, "lengths": [2.6, 2.5]} and "count" not in rows[1]
    assert list(report().rows(0, RIGHT)) == []


def test_the_rank_much_farther_from_float64_is_suspect() -> None:
    assert suspects([1e-7, 9e-7]) == [1] and suspects([1e-7, 1.9e-7]) == []
    assert suspects([float("inf"), 1e-7, 2e-7]) == [0] and suspects([3e-7]) == []


@pytest.mark.parametrize(("precision", "honest"), [("fp32", 2e-6), ("bf16", 5e-2)])
def test_an_honest_answer_is_as_near_float64_as_rounding_and_a_wrong_one_is_not(
    breaker: Breaker, precision: str, honest: float
) -> None:
    with breaker.session(f"near {precision}", engine__precision=precision) as session:
        batch = session.task.batches.batch(0)
        arrays = next(micro_batches(batch, 1, session.device))

        def away() -> float:
            session.weights.zero_gradients()
            loss = session.loss_of(**arrays)
            loss.backward()
            session.weights.collect()
            gradients = {name: w.grad for name, w in session.weights.masters.items()}
            return distance(
                session.model,
                session.choice,
                arrays,
                (loss.item(), gradients),
                label_smoothing=0.0,
                z_loss=0.0,
            )

        right = away()
        assert 0 < right < honest

        def spoil(module: Any, given: Any, out: torch.Tensor) -> torch.Tensor:
            if out.dtype == torch.float64:
                return out
            out = out.clone()
            out.view(-1)[int(out.detach().argmax())] *= 64
            return out

        session.model.blocks[0].mlp.up.register_forward_hook(spoil)
        assert away() > 4 * right
