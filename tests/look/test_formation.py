"""What was measured over the checkpoints is what each checkpoint gives when it is opened by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from glassformer.errors import RunError, UsageError
from glassformer.look.formation import Formation, probe
from glassformer.look.heads import heads
from glassformer.look.lens import lens
from glassformer.look.summary import summary
from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build
from glassformer.run import checkpoints
from glassformer.run.folder import Run
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import TOKENIZER, load

TEXT = "the cat sat"
STEPS = (10, 20, 30, 40)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four checkpoints on the straight line from one model to another, as if it had been trained."""
    model = {"width": 32, "layers": 2, "heads": 4, "context": 200, "init": "xavier"}
    run = Run.create(tmp_path_factory.mktemp("runs") / "line", {"name": "line", "model": model}, {})
    Tokenizer.train(TokenizerConfig(kind="bytes"), [b""]).save(run.path / TOKENIZER)
    start, end = (
        dict(build(ModelConfig(vocab=257, **model), seed=seed).named_parameters()) for seed in (1, 2)
    )
    for number, step in enumerate(STEPS):
        weights = {name: torch.lerp(start[name].detach(), end[name].detach(), number / 3) for name in start}
        checkpoints.save(run.checkpoints, step, {"model": weights}, {"step": step}, keep=9)
    return run


@pytest.fixture(scope="module")
def found(run: Run) -> Formation:
    return probe(run, TEXT)


def test_every_value_equals_that_of_the_checkpoint_opened_by_hand_to_the_bit(
    run: Run, found: Formation
) -> None:
    values = {(row["step"], row["measure"], row["where"]): row["value"] for row in found.rows()}
    assert found.steps == STEPS
    for step in STEPS:
        model = load(run.checkpoints / f"step-{step:08d}")
        assert model.path.name == f"step-{step:08d}" and model.warnings == ()
        seen, scores, table = lens(model, TEXT), heads(model, TEXT, repeats=4), summary(model, TEXT)
        losses = [row["loss"] for row in table.tokens[1:]]
        assert values[step, "loss", "all tokens"] == pytest.approx(sum(losses) / len(losses), rel=1e-12)
        for block in table.layers:
            assert values[step, "mlp_out", block["block"]] == block["mlp_out"]
        for row in scores.rows():
            assert values[step, "induction", row["name"]] == row["induction"]
        for stage, kl in zip(seen.stages, seen.kl.mean(-1).tolist(), strict=True):
            assert values[step, "kl_to_the_end", stage.name] == kl
        assert values[step, "loss_on_random_tokens", "again"] == scores.second_half


def test_a_measure_has_formed_when_it_stays_past_half_of_its_way() -> None:
    def one(*values: float) -> dict[str, object]:
        rows = [{"step": 10 * n, "measure": "m", "where": "w", "value": v} for n, v in enumerate(values)]
        (row,) = Formation(Path("r"), tuple(10 * n for n in range(len(values))), rows).formed()
        return row

    rises = one(0.0, 0.1, 0.9, 1.0)
    assert (rises["after_step"], rises["by_step"], rises["change"]) == (10, 20, 1.0)
    wavers = one(0.0, 0.9, 0.2, 0.8)
    assert (wavers["after_step"], wavers["by_step"]) == (20, 30)
    falls = one(5.0, 4.9, 1.0, 1.1)
    assert (falls["after_step"], falls["by_step"]) == (10, 20)
    still = one(2.0, 2.0)
    assert still["change"] == 0


def test_a_chart_follows_one_measure_where_it_changed_most(found: Formation) -> None:
    spec = found.chart("induction", top=3)
    rows = spec["data"]["values"]
    assert len(rows) == 3 * len(STEPS) and {row["step"] for row in rows} == set(STEPS)
    with pytest.raises(UsageError, match=r"measured as 'inductoin'.*'induction'"):
        found.chart("inductoin")


def test_a_damaged_checkpoint_is_passed_over_and_named(run: Run, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(run.path, tmp_path / "copy")
    file = copy / "checkpoints" / "step-00000020" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    found = probe(copy, TEXT, what=["loss"])
    assert found.steps == (10, 30, 40) and "step-00000020" in found.passed_over[0]


def test_what_cannot_be_probed_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'headz' is not measured; did you mean 'heads'"):
        probe(run, TEXT, what=["headz"])  # type: ignore[list-item]
    empty = Run.create(tmp_path / "empty", {"name": "empty"}, {})
    with pytest.raises(RunError, match="has no checkpoints"):
        probe(empty, TEXT)
