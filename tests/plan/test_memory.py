"""Bytes against closed forms, published figures and measured rows."""

from __future__ import annotations

import importlib.util
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glassformer.errors import UsageError
from glassformer.model import count
from glassformer.model.config import ModelConfig
from glassformer.plan.architecture import Architecture, Latent
from glassformer.plan.hardware import Accelerator, accelerator
from glassformer.plan.kept import kept_by_layer, stored
from glassformer.plan.layout import Job, Layout, Recompute
from glassformer.plan.memory import Memory, fits, memory, memory_of_stage
from glassformer.plan.precision import PRECISIONS
from glassformer.plan.presets import preset
from glassformer.plan.rows import measured_rows
from glassformer.plan.software import GLASSFORMER, Software
from glassformer.plan.stages import held, in_flight, layer_kinds, layers_of

GPT3 = Architecture(
    "GPT-3", layers=96, width=12288, heads=96, kv_heads=96, head_width=128, ff_width=49152, vocab=51200,
    learned_positions=2048, norm="layernorm", bias=True,
)  # fmt: skip
LLAMA = Architecture(
    "Llama 3 8B", layers=32, width=4096, heads=32, kv_heads=8, head_width=128, ff_width=14336, ff_matrices=3,
    vocab=128256, tied=False,
)  # fmt: skip
MIXTRAL = replace(LLAMA, name="Mixtral", experts=8, active=2, expert_width=14336, vocab=32000, dense_layers=2)
T5 = Architecture(
    "T5", "encoder-decoder", layers=12, encoder_layers=12, width=768, heads=12, kv_heads=12, head_width=64,
    ff_width=2048, ff_matrices=3, vocab=32128,
)  # fmt: skip


def job(architecture: Architecture = LLAMA, layout: Layout | None = None, **changes: Any) -> Job:
    layout = layout or Layout()
    basis: dict[str, Any] = {"batch": 64, "length": 2048, "precision": PRECISIONS["bf16"]}
    return Job(architecture, accelerator("H100-SXM-80GB"), layout=layout, **{**basis, **changes})


@pytest.mark.parametrize(
    ("precision", "bytes_"), [("bf16-grads16", 16), ("bf16", 18), ("fp32", 16), ("bf16-pure", 8)]
)
def test_adam_takes_sixteen_or_eighteen_bytes_a_parameter(precision: str, bytes_: float) -> None:
    found = memory(job(precision=PRECISIONS[precision]))
    assert found.states == pytest.approx(bytes_ * LLAMA.parameters.total)


@pytest.mark.parametrize(
    ("optimizer", "bytes_"),
    [("sgd", 10), ("momentum", 14), ("lion", 14), ("adam", 18), ("adamw", 18), ("adam8bit", 12)],
)
def test_optimisers_hold_their_numbers(optimizer: str, bytes_: float) -> None:
    assert memory(job(optimizer=optimizer)).states == pytest.approx(bytes_ * LLAMA.parameters.total)


def test_adafactor_keeps_rows_and_columns_and_muon_one_number_of_each_matrix() -> None:
    found, n = memory(job(optimizer="adafactor")), LLAMA.parameters.total
    assert found.optimizer < 0.003 * 4 * n
    outer = 2 * LLAMA.vocab * LLAMA.width + LLAMA.parameters.norms
    assert memory(job(optimizer="muon")).optimizer == pytest.approx(4 * (n + outer))


def test_an_unknown_optimiser_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UsageError, match="adamw"):
        memory(job(optimizer="adamv"))


@pytest.mark.parametrize(("stage", "divided"), [(0, 0), (1, 12), (2, 16), (3, 16)])
def test_zero_divides_states_as_its_paper_says(stage: int, divided: float) -> None:
    """ZeRO (1910.02054): optimiser from 1, gradients from 2, weights from 3, which here are the masters themselves."""
    n = LLAMA.parameters.total
    whole = 0 if stage == 3 else 18 - divided
    found = memory(job(layout=Layout(data=8, sharding=stage)))
    assert found.states == pytest.approx(n * (whole + divided / 8))


def test_zero_3_gathers_two_layers_and_what_is_outside_of_layers() -> None:
    layer = sum(one.entries for one in LLAMA.products() if one.part != "head")
    found = memory(job(layout=Layout(data=8, sharding=3)))
    outer = 2 * LLAMA.vocab * LLAMA.width
    assert found.gathered == pytest.approx(2 * 2 * layer + (2 + 4) * layer + (2 + 2) * outer)
    alone = memory(job(layout=Layout(data=1, sharding=3)))
    assert alone.gathered == 0 and alone.total == memory(job()).total


@pytest.mark.parametrize("flash", [False, True])
def test_a_layer_keeps_what_korthikanti_and_others_count(flash: bool) -> None:
    """2205.05198: s b d (34 + 5 h s / d) / t with sequence parallelism, s b d (10 + 24 / t + 5 h s / (d t)) without."""
    d, h, s, b, t = 12288, 96, 2048, 1, 8
    software = Software(dropout=True)
    for sequence_parallel, per in ((1, 34 / t), (0, 10 + 24 / t)):
        layout = Layout(tensor=t, micro_batch=b, sequence_parallel=sequence_parallel)
        one = job(GPT3, layout, fused_attention=not flash, software=software)
        kept = kept_by_layer(one, layer_kinds(GPT3)[0])
        attention = 5 * h * s / (d * t) if flash else 4 * h / (d * t)
        statistics = 2 * 8 / (d * (t if sequence_parallel else 1))
        assert stored(one, kept) == pytest.approx(s * b * d * (per + attention + statistics), rel=1e-12)


def test_selective_recomputation_leaves_34_and_full_2_sbd() -> None:
    d, s = 12288, 2048
    kind, software = layer_kinds(GPT3)[0], Software(dropout=True)
    for recompute, per in ((Recompute.SELECTIVE, 34), (Recompute.FULL, 2)):
        one = job(GPT3, Layout(recompute=recompute), fused_attention=False, software=software)
        assert stored(one, kept_by_layer(one, kind)) == pytest.approx(s * d * per, rel=1e-3)


def test_korthikantis_first_stages_keep_the_published_bytes() -> None:
    """2205.05198, figure 1: GPT-3 175B and 1T, with and without recomputation and sequence parallelism."""
    published = {
        "korthikanti-175B-selective+sp": (12.3515625, 66.84375),
        "korthikanti-1T-selective+sp": (26.5625, 131.25),
    }
    rows = {row.id: row for row in measured_rows() if row.id in published}
    for name, (both, neither) in published.items():
        one = rows[name].job
        assert one is not None
        assert memory(one).activations / 2**30 == pytest.approx(both, rel=0.01)
        plain = replace(one, layout=replace(one.layout, sequence_parallel=0, recompute=Recompute.NONE))
        assert memory(plain).activations / 2**30 == pytest.approx(neither, rel=0.01)


def test_the_logits_of_llama_3_8b_are_19_6_gib() -> None:
    """Two rows of 8,192 tokens over 128,256 words: 2 bytes, 4 in float32, 4 of gradient."""
    one = job(
        LLAMA, Layout(data=8, sharding=3, micro_batch=2, recompute=Recompute.FULL), batch=16, length=8192
    )
    assert memory(one).logits / 2**30 == pytest.approx(19.6, abs=0.05)
    torch = memory(replace(one, software=Software(loss="torch"))).logits
    fused = memory(replace(one, software=Software(loss="fused"), layout=replace(one.layout, recompute=0)))
    assert torch == pytest.approx(1.4 * memory(one).logits)
    assert fused.logits == pytest.approx(0.4 * memory(one).logits)
    assert memory(replace(one, chunked_loss=True)).logits == 0


def test_stages_keep_min_m_p_minus_i_micro_batches() -> None:
    stage = np.arange(4)
    assert in_flight(Layout(pipeline=4), 64, stage, "1f1b").tolist() == [4, 3, 2, 1]
    assert in_flight(Layout(pipeline=4), 2, stage, "1f1b").tolist() == [2, 2, 2, 1]
    assert in_flight(Layout(pipeline=4), 64, stage, "gpipe").tolist() == [64] * 4
    interleaved = in_flight(Layout(pipeline=8, interleave=3), 64, np.arange(8), "1f1b")
    assert interleaved[0] == pytest.approx(8 * (1 + 7 / (8 * 3)))  # Korthikanti et al., section 4.2.3


@pytest.mark.parametrize("architecture", [LLAMA, GPT3, MIXTRAL, T5, preset("deepseek-v3").architecture])
@pytest.mark.parametrize("layout", [Layout(pipeline=4), Layout(pipeline=4, tensor=2, interleave=2), Layout(pipeline=5),
                                    Layout(pipeline=12, tensor=2), Layout(pipeline=8, data=4, sharding=3),
                                    Layout(pipeline=8, data=16, interleave=6, sharding=1)])  # fmt: skip
def test_the_worst_rank_is_the_worst_of_all_stages(architecture: Architecture, layout: Layout) -> None:
    one = job(architecture, layout)
    stages = np.arange(layout.pipeline)
    every = memory_of_stage(one, stages)
    assert memory(one).total == pytest.approx(np.max(every.total))
    assert sum(np.sum(n) for n in layers_of(architecture, layout, stages)) == pytest.approx(
        architecture.all_layers
    )
    assert memory(one).where.startswith(f"stage {int(np.argmax(every.total)) + 1} of")


@pytest.mark.parametrize("architecture", [LLAMA, GPT3, MIXTRAL, T5])
def test_all_ranks_together_hold_all_parameters(architecture: Architecture) -> None:
    stages = np.arange(4)
    for tensor in (1, 4):
        mine = held(architecture, Layout(pipeline=4, tensor=tensor), stages)
        copies = (
            architecture.vocab * architecture.width * architecture.tied
        )  # of a tied head, on the last stage
        replicated = (tensor - 1) * (architecture.parameters.norms + architecture.parameters.router)
        positions = (tensor - 1) * architecture.parameters.positions
        total = architecture.parameters.total + copies + replicated + positions
        assert np.sum(mine.total) * tensor == pytest.approx(total, rel=1e-9)


def test_expert_parallelism_divides_experts_alone() -> None:
    whole, divided = (memory(job(MIXTRAL, Layout(data=8, expert=x))).weights for x in (1, 8))
    assert whole - divided == pytest.approx(2 * MIXTRAL.parameters.experts * 7 / 8)


def test_kv_heads_are_divided_no_further_than_one_a_rank() -> None:
    mine = held(LLAMA, Layout(tensor=16), np.array([0]))
    kv = 2 * 1024 * 4096 * 32
    layers = LLAMA.parameters.attention + LLAMA.parameters.feedforward
    assert mine.layers[0] == pytest.approx((layers - kv) / 16 + kv / 8)


def test_many_layouts_at_once_are_the_same_as_one_by_one() -> None:
    draw, n = np.random.default_rng(0), 300
    many = Layout(
        data=2 ** draw.integers(0, 6, n), tensor=2 ** draw.integers(0, 4, n), pipeline=2 ** draw.integers(0, 5, n),
        interleave=draw.integers(1, 3, n), context=2 ** draw.integers(0, 3, n), sharding=draw.integers(0, 4, n),
        micro_batch=2 ** draw.integers(0, 4, n), recompute=draw.integers(0, 3, n),
        sequence_parallel=draw.integers(0, 2, n),
    )  # fmt: skip
    for architecture in (LLAMA, MIXTRAL, T5):
        together = memory(job(architecture, many))
        for place in range(0, n, 29):
            alone = memory(job(architecture, many.at(place)))
            for field in fields(Memory):
                here = np.broadcast_to(getattr(together, field.name), n)[place]
                assert here == pytest.approx(getattr(alone, field.name), rel=1e-12), field.name
            assert together.total[place] == pytest.approx(alone.total)  # type: ignore[index]


def test_more_of_anything_takes_more() -> None:
    layout = Layout(data=4, tensor=2, pipeline=2, sharding=1)
    base = memory(job(layout=layout)).total
    assert memory(job(layout=replace(layout, micro_batch=2))).total > base
    assert memory(job(layout=layout, length=4096)).total > base
    assert memory(job(replace(LLAMA, layers=40), layout)).total > base
    assert memory(job(layout=replace(layout, recompute=Recompute.FULL))).total < base
    assert memory(job(layout=layout, fused_attention=False)).total > base
    assert memory(job(layout=layout, software=Software(fused_kernels=False))).total > base


def test_latent_attention_and_plain_networks_are_counted() -> None:
    latent = replace(LLAMA, latent=Latent(1536, 512, 64, 128), head_width=192, heads=32, kv_heads=32)
    found = memory(job(latent))
    assert found.weights == pytest.approx(2 * latent.parameters.total) and found.activations > 0
    network = Architecture("digits", "network", widths=(784, 256, 10))
    found = memory(job(network, Layout(micro_batch=32), batch=32, length=1, precision=PRECISIONS["fp32"]))
    assert found.states == pytest.approx(16 * (784 * 256 + 256 * 10))
    assert found.activations == 4 * 32 * (784 + 2 * 256)


def test_lora_keeps_no_gradient_of_frozen_weights() -> None:
    one = job(trained=4_000_000, precision=PRECISIONS["bf16-pure"])
    found = memory(one)
    assert found.gradients == 2 * 4_000_000 and found.optimizer == 4 * 4_000_000
    assert found.weights == pytest.approx(2 * (LLAMA.parameters.total + 4_000_000))
    four_bit = memory(replace(one, frozen_bytes=0.5))
    layers = LLAMA.parameters.attention + LLAMA.parameters.feedforward
    assert found.weights - four_bit.weights == pytest.approx(1.5 * layers)
    assert found.activations < memory(job(precision=PRECISIONS["bf16-pure"])).activations


def test_rows_say_the_formula_of_each_part_and_add_up() -> None:
    found = memory(job(layout=Layout(data=8, sharding=3)))
    *parts, total = found.rows()
    assert sum(row["bytes"] for row in parts) == pytest.approx(total["bytes"]) == pytest.approx(found.total)
    assert all(row["formula"] for row in parts) and found.where == "every rank"
    assert found.total == found.allocated + found.overhead


def test_measured_rows_are_met_within_five_percent_and_none_that_ran_out_fits() -> None:
    errors = []
    for row in measured_rows():
        if row.job is None or row.bytes_are == "activations":
            continue
        if row.ran_out:
            assert not fits(row.job).fits, row.id
        elif row.bytes:
            found = memory(row.job)
            computed = found.total if row.bytes_are == "device" else getattr(found, row.bytes_are)
            errors.append(float(computed) / row.bytes - 1)
            assert not fits(row.job).hopeless, row.id
    assert len(errors) >= 76
    assert np.median(np.abs(errors)) < 0.035 and np.quantile(np.abs(errors), 0.9) < 0.1
    assert abs(np.median(errors)) < 0.02


CPU = Accelerator("a CPU", "CPU", "", {"fp32": 1e11}, {}, 8e9, 1e10, 0.0, 1, 0.0, 100.0, "")


@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_model_of_ours_is_counted_by_its_own_count(precision: Any, fused: bool) -> None:
    config = ModelConfig(vocab=500, width=64, layers=3, heads=4, context=32)
    one = Job(Architecture.of(config), CPU, PRECISIONS[precision], Layout(micro_batch=4), batch=4, length=32,
              fused_attention=fused, software=GLASSFORMER)  # fmt: skip
    found, counted = memory(one), count.memory(config, batch=4, precision=precision, fused=fused)
    assert found.activations == counted.activations
    held = found.weights + found.gradients + found.masters + found.optimizer + found.gathered
    assert held == counted.total - counted.activations - counted.logits


@pytest.mark.parametrize("precision", ["fp32", "autocast"])
def test_both_counts_of_activations_agree(precision: str) -> None:
    """kept.py, which knows how layers are divided, and model/count.py, which torch's own tensors are held against."""
    for config in (
        ModelConfig(vocab=500, width=256, layers=3, heads=4, context=128),
        ModelConfig(vocab=500, width=256, layers=3, heads=4, context=128, norm="layernorm", feedforward=1024),
    ):  # fmt: skip
        one = Job(Architecture.of(config), CPU, PRECISIONS[precision], Layout(micro_batch=4), batch=4, length=128,
                  software=GLASSFORMER)  # fmt: skip
        general = replace(one, architecture=replace(one.architecture, config=None))
        assert memory(general).activations == pytest.approx(memory(one).activations, rel=0.04)


def test_eleutherais_formulas_give_715_gib_where_37_gb_were_measured() -> None:
    """Gradients that are not divided by t p below ZeRO-2: 181B, TP 8, PP 12, DP 4, ZeRO-1."""
    path = Path(__file__).parents[2] / "benchmarks" / "plan_memory.py"
    spec = importlib.util.spec_from_file_location("plan_memory", path)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    name = "bloom-0221-181B-n48-dp4tp8pp12-mb2-gb2048-h64-z1-L72"
    row = next(row for row in measured_rows() if row.id == name)
    assert row.job is not None and row.bytes == 37e9
    assert benchmark.eleutherai(row) / 2**30 == pytest.approx(715, abs=1)
    assert memory(row.job).total == pytest.approx(37e9, rel=0.05)
    assert benchmark.sixteen_bytes(row) == pytest.approx(7.6e9, rel=0.02)
