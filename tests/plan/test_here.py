"""This machine as hardware, and step times from its profile: the arithmetic, on profiles made up here."""

import json
import subprocess
import sys
from math import prod

import pytest

import glassformer as gf
from glassformer.errors import GlassformerError, UsageError
from glassformer.model.config import ModelConfig
from glassformer.model.count import flops_per_token
from glassformer.model.shapes import matrices
from glassformer.plan import cpu
from glassformer.plan.architecture import Architecture
from glassformer.plan.hardware import accelerator
from glassformer.plan.machine import profile_path, read_profile, save_profile, this_machine
from glassformer.plan.presets import preset
from glassformer.train import engine

NAMES = ("rmsnorm", "layernorm", "gate", "add", "add_other", "rotate", "gelu", "silu", "relu_squared", "loss",
         "loss_chunked", "embedding")  # fmt: skip


def even(rate=1e10, each=1e-9, head=1e-30, update=1e-30):
    """A machine on which every product goes at `rate` FLOP/s, and every number costs `each` seconds."""
    products = [[n, i, o, 6.0 * n * i * o / rate] for n in (64, 1024) for i in (16, 1024) for o in (16, 1024)]
    attention = [[rows, length, 32, head * rows * length**2] for length in (16, 256) for rows in (4, 64)]
    update = [[16, 2**14, 2**14 * update], [128, 2**17, 2**17 * update], [16, 2**20, 2**20 * update],
              [16, 2**24, 2**24 * update]]  # fmt: skip
    kernels = dict.fromkeys(cpu.KERNELS, attention)
    elements = {name: [[2**10, 2**10 * each], [2**20, 2**20 * each]] for name in NAMES}
    return {
        "schema": "glassformer.machine", "version": 1, "date": "2026-11-29", "device": "cpu", "threads": 2,
        "machine": {"cpu": "abacus", "accelerators": []}, "memory_bytes": 8 * 2**30,
        "copy_bytes_per_second": 1e30, "best_flops_per_second": {"fp32": rate, "bf16": 2 * rate},
        "products": dict.fromkeys(("fp32", "bf16", "autocast"), products),
        "attention": dict.fromkeys(("fp32", "bf16"), kernels), "elementwise": dict.fromkeys(("fp32", "bf16"), elements),
        "update": dict.fromkeys(("fp32", "bf16"), update),
    }  # fmt: skip


CONFIG = ModelConfig(vocab=500, width=96, layers=3, heads=3, context=64, gated=True, activation="silu")


def test_at_one_rate_products_take_their_flops():
    found = cpu.step_time(Architecture.of(CONFIG), even(each=1e-30), batch=4, length=64)
    products = 256 * 6 * sum(map(prod, matrices(CONFIG).values()))
    assert found.products + found.loss == pytest.approx(products / 1e10, rel=1e-6)
    attention = 256 * flops_per_token(CONFIG, "matmul", length=64) - products
    with_attention = cpu.step_time(
        Architecture.of(CONFIG), even(each=1e-30, head=3 * 4 * 32 / 1e10), batch=4, length=64
    )
    assert with_attention.attention == pytest.approx(attention / 1e10, rel=1e-6)


def test_every_number_that_an_operation_goes_through_is_paid_for():
    n, d, f, q = 4 * 64, 96, CONFIG.ff_width, 96
    layer = 2 * n * d + 2 * n * d + n * f + 2 * n * f + 2 * n * q  # norms, sums, silu, gate, rotations
    found = cpu.step_time(
        Architecture.of(CONFIG), even(rate=1e30), batch=4, length=64, precision="fp32", kernel="explicit"
    )
    assert found.elements == pytest.approx((3 * layer + n * d + n * d) * 1e-9, rel=1e-6)
    assert found.loss == pytest.approx(n * 500 * 1e-9, rel=1e-6)
    unturned = cpu.step_time(
        Architecture.of(CONFIG), even(rate=1e30), batch=4, length=64, precision="fp32", rotary=False
    )
    assert found.elements - unturned.elements == pytest.approx(3 * 2 * n * q * 1e-9, rel=1e-6)


def test_more_scores_than_are_held_at_once_go_in_chunks():
    config = CONFIG.model_copy(update={"vocab": 2**18})
    found = cpu.step_time(Architecture.of(config), even(), batch=4, length=64, precision="fp32")
    assert found.loss == pytest.approx(256 * 2**18 * (6 * 96 / 1e10 + 1e-9), rel=1e-6)


def test_the_update_follows_the_parameters():
    small, large = (Architecture.of(CONFIG.model_copy(update={"vocab": v})) for v in (2**12, 2**20))
    times = [cpu.step_time(a, even(update=1e-9), batch=1, length=16).update for a in (small, large)]
    assert times[1] == pytest.approx(large.parameters.total * 1e-9, rel=0.01)
    assert times[0] == pytest.approx(small.parameters.total * 1e-9, rel=0.1)


def test_what_was_measured_is_what_is_said_and_between_it_lies_between():
    points = [[10, 1.0], [100, 2.0], [1000, 20.0]]
    assert [cpu._curve(points, x) for x in (1, 10, 100, 1000)] == pytest.approx([1, 1, 2, 20])
    assert cpu._curve(points, 31.6) == pytest.approx(2**0.5, rel=1e-3)
    assert cpu._curve(points, 10_000) == pytest.approx(200)
    grid = even()["products"]["fp32"]
    assert cpu._product(grid, 200, 50, 77) == pytest.approx(6 * 200 * 50 * 77 / 1e10)
    holed = [row for row in grid if row[:3] != [1024, 1024, 1024]]
    assert cpu._product(holed, 1024, 1024, 1024) == pytest.approx(6 * 1024**3 / 1e10)


def test_the_quickest_way_is_taken():
    profile = json.loads(json.dumps(even(head=1e-9)))
    profile["products"]["bf16"] = [[*row[:3], row[3] / 2] for row in profile["products"]["bf16"]]
    for at in ("fp32", "bf16"):
        profile["attention"][at]["fused"] = [
            [*row[:3], row[3] / 3] for row in profile["attention"][at]["fused"]
        ]
    found = cpu.step_time(Architecture.of(CONFIG), profile, batch=4, length=64)
    assert (found.precision, found.kernel) == ("bf16", "fused")
    assert sum(row["share"] for row in found.rows()) == pytest.approx(1)


def test_a_compiled_step_saves_part_of_what_is_no_product():
    a = Architecture.of(CONFIG)
    eager = cpu.step_time(a, even(head=1e-9), batch=4, length=64)
    compiled = cpu.step_time(a, even(head=1e-9), batch=4, length=64, compiled=True)
    assert compiled.products == eager.products
    assert compiled.attention == pytest.approx(cpu.COMPILED * eager.attention)
    assert compiled.elements == pytest.approx(cpu.COMPILED * eager.elements)


def test_a_recipe_is_planned_compiled_where_the_engine_would_compile(home):
    def step(compiles=True, **says):
        save_profile({**even(), "compiles": compiles})
        return gf.plan(
            "demo", {key.replace("__", "."): value for key, value in says.items()}
        ).step_seconds.value

    eager, compiled = step(engine__compile="off"), step(engine__compile="on")
    assert compiled < eager
    assert step(train__minutes=2.0) == compiled and step(train__minutes=1.0) == eager
    assert step(compiles=False) == eager
    assert cpu.WORTH_COMPILING == 3 * engine._SECONDS_TO_COMPILE


def test_models_that_are_not_trained_here_are_refused():
    for name in ("mixtral", "deepseek-v3"):
        with pytest.raises(UsageError, match="without experts"):
            cpu.step_time(preset(name).architecture, even(), batch=1, length=16)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GLASSFORMER_HOME", str(tmp_path))
    return tmp_path


def test_a_kept_profile_is_this_machine(home):
    path = save_profile(even())
    assert path == profile_path() == home / "data" / "machine.json"
    one = accelerator("here")
    assert one == this_machine()
    assert (one.memory, one.peak("bf16"), one.bandwidth) == (8 * 2**30, 2e10, 1e30)
    assert ("abacus" in one.name, one.vendor) == (True, "CPU")
    assert "2026-11-29" in one.provenance("bandwidth")


def test_a_machine_that_was_not_measured_says_what_to_run(home):
    with pytest.raises(GlassformerError, match=r"not been measured yet\. Run `glassformer bench`"):
        accelerator("here")
    save_profile({**even(), "version": 99})
    with pytest.raises(GlassformerError, match="no profile of this version"):
        accelerator("here")
    profile_path().write_text("{")
    with pytest.raises(GlassformerError, match="cannot be read"):
        this_machine()


SMALL = {
    "rows": (64, 256), "widths": (16, 64), "largest": 2**18, "numbers": (2**12, 2**14), "lengths": (8, 32),
    "head_widths": (8,), "tensors": ((4, 16), (16, 16), (4, 64), (4, 128)),
}  # fmt: skip


def test_a_real_profile_plans_a_step_and_is_this_machine(home):
    from glassformer.train.probing import Sizes, profile

    found = profile(sizes=Sizes(**SMALL))
    save_profile(found)
    step = cpu.step_time(Architecture.of(CONFIG), read_profile(), batch=4, length=64)
    assert 1e-4 < step.total < 60
    assert this_machine().peak("fp32") > 1e8


def test_this_machine_is_read_without_torch(home):
    save_profile(even())
    code = (
        "import sys; from glassformer.plan.hardware import accelerator; import glassformer.plan.cpu, "
        "glassformer.plan.presets, glassformer.plan.given, glassformer.plan.adapters; accelerator('here'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
