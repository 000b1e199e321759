"""Time of a step: closed forms of its parts, one formula for one layout and for many, and what must be monotonous."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from glassformer.plan.architecture import Architecture
from glassformer.plan.flops import forward
from glassformer.plan.hardware import accelerator
from glassformer.plan.layout import Job, Layout, Recompute
from glassformer.plan.messages import messages, parameters_held
from glassformer.plan.precision import PRECISIONS
from glassformer.plan.rates import RATES, Rates
from glassformer.plan.rows import measured_rows
from glassformer.plan.shapes import misaligned, quantised
from glassformer.plan.share import share_of
from glassformer.plan.spread import half_width, interval
from glassformer.plan.steptime import StepTime, over, step_time
from glassformer.plan.work import work

GPT = Architecture(
    name="GPT", layers=96, width=12288, heads=96, kv_heads=96, head_width=128, ff_width=49152, vocab=51200,
)  # fmt: skip
H100 = accelerator("H100-SXM-80GB")


def job(**numbers: object) -> Job:
    layout = Layout(**{"data": 8, "tensor": 8, "pipeline": 8, "sharding": 1, **numbers})  # type: ignore[arg-type]
    return Job(GPT, H100, PRECISIONS["bf16"], layout, batch=512, length=2048)


def test_the_bubble_is_p_minus_1_over_v_m_of_the_stages_time() -> None:
    for interleave in (1, 2, 4):
        time = step_time(job(interleave=interleave))
        parts = ("matmul", "pattern", "bandwidth", "recompute", "tensor", "pipeline", "context", "expert")
        stages = sum(float(getattr(time, part)) for part in parts)
        assert float(time.bubble) / stages == pytest.approx(7 / (interleave * 64))


def test_without_a_pipeline_nothing_waits_and_nothing_is_handed_on() -> None:
    time = step_time(job(pipeline=1, data=64))
    assert time.bubble == 0
    assert time.pipeline == 0


def test_tensor_ranks_reduce_four_activations_a_layer_and_six_where_it_is_computed_again() -> None:
    for mode, reduces in ((Recompute.NONE, 4), (Recompute.FULL, 6)):
        one = job(recompute=mode)
        sent = messages(one, share_of(one))
        wire = 2 * 7 / 8 * (2 * 2048 * 12288)
        assert float(sent.tensor) == pytest.approx(reduces * 12 * wire / H100.scale_up)


def test_zero_1_sends_a_scatter_of_gradients_and_a_gather_of_weights_and_zero_3_half_as_much_again_each_time() -> (
    None
):
    one = job(pipeline=1, tensor=1, data=64)
    first = messages(one, share_of(one))
    three = job(pipeline=1, tensor=1, data=64, sharding=3, micro_batch=8)
    third = messages(three, share_of(three))
    held = GPT.parameters.total
    ring = 8 * H100.scale_out
    assert float(first.reduce) == pytest.approx(63 / 64 * held * (4 + 2) / ring)
    assert third.reduce == 0
    latency = 96 * 3 * 3e-6 * 63
    assert float(third.gather) == pytest.approx(63 / 64 * held * (2 + 2 + 4) / ring + latency)


def test_parameters_are_shared_out_over_tensor_and_pipeline_ranks() -> None:
    dense, experts = parameters_held(GPT, share_of(job(tensor=4, pipeline=1, data=16)))
    assert float(dense) == pytest.approx(GPT.parameters.total / 4)
    assert experts == 0


def test_products_take_their_flops_over_the_peak_when_shapes_fit() -> None:
    one = job(pipeline=1, tensor=1, data=1)
    flops = forward(GPT, 2048)
    todo = work(one).products
    peak = H100.peak("bf16") * H100.achievable["bf16"]
    assert float(todo.whole) == pytest.approx(3 * 2048 * (flops.layers - flops.pattern) / peak)
    assert float(todo.seconds) > float(todo.whole)


def test_frozen_weights_take_two_thirds_of_the_products() -> None:
    whole = work(job()).products.whole
    frozen = work(replace(job(), trained=10_000_000)).products.whole
    assert float(frozen) / float(whole) == pytest.approx(2 / 3)


def test_many_layouts_at_once_are_each_of_them_alone() -> None:
    generator = np.random.default_rng(1)
    draws = {
        "data": 2 ** generator.integers(0, 5, 40), "tensor": 2 ** generator.integers(0, 4, 40),
        "pipeline": 2 ** generator.integers(0, 5, 40), "interleave": generator.integers(1, 4, 40),
        "context": 2 ** generator.integers(0, 3, 40), "sharding": generator.integers(0, 4, 40),
        "micro_batch": 2 ** generator.integers(0, 3, 40), "recompute": generator.integers(0, 3, 40),
    }  # fmt: skip
    many = replace(job(), layout=Layout(**draws))
    together = step_time(many)
    for place in range(40):
        alone = step_time(replace(many, layout=many.layout.at(place)))
        for field in fields(StepTime):
            whole = np.broadcast_to(np.asarray(getattr(together, field.name)), (40,))
            assert whole[place] == pytest.approx(float(np.asarray(getattr(alone, field.name))), rel=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 1024}, {"length": 4096}, {"architecture": replace(GPT, layers=128)},
        {"architecture": replace(GPT, ff_width=65536)},
        {"layout": Layout(8, 8, 8, sharding=1, recompute=Recompute.FULL)},
        {"accelerator": replace(H100, bandwidth=H100.bandwidth / 2)},
        {"accelerator": replace(H100, scale_up=H100.scale_up / 2)}, {"fused_attention": False},
    ],
)  # fmt: skip
def test_more_work_or_a_slower_machine_takes_longer(change: dict[str, object]) -> None:
    assert float(step_time(replace(job(), **change)).total) > float(step_time(job()).total)  # type: ignore[arg-type]


def test_better_rates_are_faster() -> None:
    before = float(step_time(job()).total)
    for name, better in (
        ("products", 1.1),
        ("bandwidth", 1.1),
        ("scale_up", 1.1),
        ("straggler", 0.5),
        ("stall", 0.5),
    ):
        faster = replace(RATES, **{name: getattr(RATES, name) * better})
        assert float(step_time(job(), faster).total) < before


def test_the_parts_add_up_and_their_shares_are_one() -> None:
    time = step_time(job(recompute=Recompute.FULL))
    split = time.split()
    assert sum(row["share"] for row in split) == pytest.approx(1)
    assert sum(row["seconds"] for row in split) == pytest.approx(float(time.total))
    assert float(time.recompute) > 0


def test_a_short_message_hides_and_a_long_one_shows() -> None:
    assert float(over(1.0, 10.0)) < 0.02
    assert float(over(10.0, 1.0)) == pytest.approx(9.0, abs=0.3)
    assert float(over(0.0, 0.0)) == 0


def test_tiles_that_fill_all_units_lose_nothing_and_one_more_wave_loses_nearly_half() -> None:
    full = quantised(128 * 256.0, 132 * 128.0, "H100-SXM-80GB")
    assert float(full) == 1
    assert float(quantised(256.0, 133 * 128.0, "H100-SXM-80GB")) < float(
        quantised(256.0, 132 * 128.0, "H100-SXM-80GB")
    )


def test_sides_that_64_divides_are_aligned() -> None:
    assert float(misaligned(4096.0, 1728.0)) == 0  # 13824 / 8
    assert float(misaligned(4096.0, 1800.0)) == 1  # 14400 / 8


def test_every_measured_row_has_a_time_that_is_a_number() -> None:
    rows = [row for row in measured_rows() if row.job is not None]
    times = [float(step_time(row.job).total) for row in rows if row.job]
    assert len(times) > 590
    assert np.all(np.isfinite(times))
    assert min(times) > 0


def test_a_plain_network_and_one_rank_have_a_time() -> None:
    digits = Architecture(name="digits", kind="network", widths=(64, 128, 10))
    one = Job(digits, H100, PRECISIONS["fp32"], Layout(), batch=32, length=1)
    assert 0 < float(step_time(one).total) < 1


def test_intervals_hold_the_forecast_and_widen_far_from_what_was_measured() -> None:
    low, high = interval(job())
    assert low < 1 < high
    assert half_width(replace(job(), length=2**24)) > 1.3 * half_width(job())


def test_rates_that_are_shipped_stay_near_what_one_would_guess() -> None:
    assert 0.6 < RATES.products < 1
    assert 0.5 < RATES.products_8 < 1
    assert 0.4 < RATES.scale_up <= 1
    assert 0.4 < RATES.scale_out <= 1
    assert RATES.own == ()
    assert Rates().products > RATES.products
