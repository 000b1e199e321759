"""FLOPs and rates that others have printed, computed again from the shipped rows and presets.

A source's convention is part of its number: which one each uses was found by this very arithmetic.
"""

from statistics import median

import pytest

from glassformer.plan.flops import short_form, training
from glassformer.plan.hardware import data_rows
from glassformer.plan.layout import Recompute
from glassformer.plan.presets import preset
from glassformer.plan.rows import measured_rows


def total(name, **how):
    """FLOPs of a whole run."""
    one = preset(name)
    return one.tokens * training(one.architecture, one.length, **how)


def ratios(source, convention):
    """Ours over the printed TFLOP/s, for the dense pre-training rows of a source."""
    found = []
    for row in measured_rows():
        printed, rate = row.fields["tflops_per_accel_reported"], row.fields["tokens_per_s_per_accel"]
        if (
            row.source == source
            and row.task == "pretrain"
            and row.fields["arch"] == "decoder"
            and row.job
            and printed
            and rate
        ):
            ours = training(row.job.architecture, row.job.length, convention=convention) * float(rate)
            found.append(ours / 1e12 / float(printed))
    return found


def test_blooms_149_teraflops_are_hardware_flops():
    """Step of 105.22 s on 384 A100, layers recomputed once: 149.02 as its authors print."""
    row = next(r for r in measured_rows() if r.id.startswith("bloom-production"))
    each = training(row.job.architecture, row.job.length, recompute=Recompute.FULL)
    assert each * row.job.tokens / row.seconds / 384 / 1e12 == pytest.approx(149.02, abs=0.01)
    assert row.job.architecture.parameters.total == pytest.approx(preset("bloom").published, rel=2e-4)


@pytest.mark.parametrize(
    ("source", "convention", "count", "middle", "low", "high"),
    [
        ("llmfoundry", "full", 158, 0.002, 0.965, 1.01),
        ("nemo2407", "full", 10, 0.001, 0.999, 1.001),
        ("mbridge", "causal", 55, 0.001, 0.98, 1.02),
    ],
)
def test_printed_rates_are_ours_in_the_sources_convention(source, convention, count, middle, low, high):
    found = ratios(source, convention)
    assert len(found) >= count
    assert median(found) == pytest.approx(1, abs=middle)
    assert min(found) > low
    assert max(found) < high


def test_llm_foundry_prints_the_short_form():
    """6 N + 12 L d s a token, whose N counts positions, which ours leaves out."""
    found = []
    for row in measured_rows():
        if row.source == "llmfoundry" and row.job:
            each = short_form(row.job.architecture, row.job.length)
            rate = each * float(row.fields["tokens_per_s_per_accel"]) / 1e12
            found.append(rate / float(row.fields["tflops_per_accel_reported"]))
    assert median(found) == pytest.approx(1, abs=2e-3)


def test_the_wrong_convention_is_four_percent_off():
    assert median(ratios("mbridge", "full")) > 1.03


@pytest.mark.parametrize(
    ("name", "how", "ours", "printed", "off"),
    [
        ("gpt3", {}, 3.229e23, 3.14e23, 0.028),
        ("gpt3", {"convention": "causal"}, 3.186e23, 3.14e23, 0.015),
        ("gpt3", {"convention": "six_n"}, 3.142e23, 3.14e23, 0.001),
        ("palm", {"convention": "causal"}, 2.543e24, 2.527e24, 0.006),
        ("llama3.1-405b", {"convention": "causal"}, 3.937e25, 3.8e25, 0.036),
        ("mt-nlg", {"recompute": Recompute.FULL}, 1.162e24, 1.17e24, -0.007),
        ("bloomberggpt", {"recompute": Recompute.FULL}, 2.390e23, 2.36e23, 0.013),
    ],
)  # fmt: skip
def test_whole_runs_are_near_what_their_authors_print(name, how, ours, printed, off):
    """2005.14165 (6 N D), 2204.02311, 2407.21783 (6 N D), 2201.11990, 2303.17564 (both with what is recomputed)."""
    assert total(name, **how) == pytest.approx(ours, rel=5e-4)
    assert total(name, **how) / printed - 1 == pytest.approx(off, abs=2e-3)


def test_tinyllamas_share_of_the_peak():
    """24,000 tokens a second on an A100 of 312 TFLOP/s: 56 %, as its README prints (full convention)."""
    used = 24_000 * training(preset("tinyllama").architecture, 2048) / 312e12
    assert used == pytest.approx(0.5626, abs=1e-3)


def test_hours_that_follow_from_a_printed_rate():
    """Hours = FLOPs / rate. What was billed is more: restarts, evaluation, ramp-up."""
    runs = {row["id"]: row for row in data_rows("training_runs")}
    hours = {
        "gpt3-175b": total("gpt3") / 24.6e12 / 3600,
        "llama31-405b": total("llama3.1-405b") / (0.41 * 989.5e12) / 3600,
        "palm-540b": total("palm") / (0.462 * 275e12) / 3600,
    }
    off = {name: found / float(runs[name]["accel_hours"]) - 1 for name, found in hours.items()}
    assert off["gpt3-175b"] == pytest.approx(0.027, abs=2e-3)
    assert off["llama31-405b"] == pytest.approx(-0.091, abs=2e-3)
    assert off["palm-540b"] == pytest.approx(-0.335, abs=3e-3)
