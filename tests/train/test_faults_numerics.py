"""Numbers that would spoil the weights, put there for real: none reaches them, each is named, and the run goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sessions import Breaker, Broken, scale_loss, spoil_activations
from trainer import Trainer

import glassformer as gf
from glassformer.train.loop import Session
from glassformer.train.task import Event


@pytest.fixture(scope="module")
def undisturbed(breaker: Breaker) -> dict[str, Any]:
    found = breaker("undisturbed")
    assert found.decisions == [] and found.warned == ""
    return found.story


def without(breaker: Breaker, run: str, *steps: int) -> dict[str, Any]:
    """The story of a run that never saw the batches of these steps (counted from 1)."""

    def skip(session: Session) -> None:
        for step in steps:
            batch = session.task.batches.batch(step - 1)
            session.guard.quarantined[step - 1] = batch.sample_ids.tolist()

    return breaker(run, prepare=skip).story


def assert_finite(found: Broken) -> None:
    files = [*found.run.checkpoints.glob("*/*.safetensors"), found.run.model / "model.safetensors"]
    assert len(files) > 2
    for file in files:
        assert all(t.isfinite().all() for t in load_file(file).values() if t.is_floating_point()), file


def test_one_activation_that_was_nan_once_costs_nothing(
    breaker: Breaker, undisturbed: dict[str, Any]
) -> None:
    found = breaker("once", prepare=lambda s: spoil_activations(s, 49, once=True))
    assert found.decisions == [(50, "not_finite", "again", None)]
    assert "step 50 was as usual when it was computed again" in found.warned
    assert found.story == undisturbed


def test_an_activation_that_is_always_nan_is_named_and_its_batch_is_left_out(breaker: Breaker) -> None:
    ids: list[int] = []

    def prepare(session: Session) -> None:
        batch = session.task.batches.batch(49)
        ids.extend([int(batch.sample_ids[3]), int(batch.ids[3, 5])])
        spoil_activations(session, 49, once=False)

    found = breaker("always", prepare=prepare)
    assert found.decisions == [(50, "not_finite", "again", None), (50, "not_finite", "skip", 50)]
    for fault in found.all("fault"):
        place = fault["place"]
        assert (place["pass"], place["place"], place["layer"]) == ("forward", "blocks.1.mlp_out", 1)
        assert (place["position"], place["width"], place["count"]) == (5, 2, 1)
        assert (place["sample_id"], place["token"]) == tuple(ids) and place["sample_ids"] == ids[:1]
        (sample,) = fault["samples"]
        assert sample["documents"][0]["name"].endswith(".txt")
        assert fault["loss"] == "NaN" and fault["usual"]["loss"] < 5
    assert [row["step"] for row in found.run.rows()] == [n for n in range(1, 91) if n != 50]
    assert found.story == without(breaker, "left out", 50)
    assert_finite(found)


def test_a_gradient_of_one_weight_that_is_nan_is_named(breaker: Breaker, undisturbed: dict[str, Any]) -> None:
    name, calls = "blocks.0.mlp.up.weight", [0]

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] != 31:  # the first is the warm-up's
            return gradient
        gradient = gradient.clone()
        gradient[4, 7] = torch.inf
        return gradient

    found = breaker("gradient", prepare=lambda s: s.weights.working[name].register_hook(spoil) and None)
    (fault,) = found.all("fault")
    assert (fault["step"], fault["decision"], fault["place"]) == (30, "again", None)
    expected = {"tensor": f"gradient of {name}", "count": 1, "of": 64 * 16, "first": [4, 7]}
    assert fault["tensors"] == [expected] and fault["grad_norm"] == "Infinity"
    assert found.story == undisturbed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("remember_every", [20, 0], ids=["memory", "checkpoint"])
def test_a_weight_that_became_nan_is_named_and_the_run_is_to_the_bit_as_if_it_had_not(
    breaker: Breaker, undisturbed: dict[str, Any], precision: str, remember_every: int
) -> None:
    name = f"{precision}-{remember_every}"
    settings = {"engine__precision": precision, "faults__remember_every": remember_every}
    left = [1]

    def after(session: Session, event: Event) -> None:
        if event["event"] == "step" and event["step"] == 57 and left[0]:
            left[0] = 0
            with torch.no_grad():
                session.weights.masters["blocks.1.mlp.down.weight"][2, 3] = torch.nan
                session.weights.refresh()

    found = breaker(name, after=after, **settings)
    (fault,) = found.all("fault")
    assert (fault["step"], fault["decision"], fault["blamed"], fault["step_back"]) == (
        58,
        "roll_back",
        None,
        40,
    )
    assert fault["tensors"][0] == {
        "tensor": "blocks.1.mlp.down.weight", "count": 1, "of": 16 * 64, "first": [2, 3],
    }  # fmt: skip
    clean = undisturbed if precision == "fp32" else breaker(f"{name}-clean", **settings).story
    assert found.story == clean
    assert_finite(found)


def test_weights_that_are_not_finite_are_never_saved(breaker: Breaker, undisturbed: dict[str, Any]) -> None:
    left = [1]

    def after(session: Session, event: Event) -> None:
        if event["event"] == "step" and event["step"] == 80 and left[0]:  # step 80 is saved after this
            left[0] = 0
            with torch.no_grad():
                session.weights.masters["embed.weight"][0, 0] = torch.inf

    found = breaker("saved", after=after)
    assert found.decisions == [(80, "not_finite", "roll_back", None)]
    assert found.story == undisturbed
    assert_finite(found)


def test_the_optimisers_memory_that_became_nan_is_rolled_back_too(
    breaker: Breaker, undisturbed: dict[str, Any]
) -> None:
    left = [1]

    def after(session: Session, event: Event) -> None:
        if event["event"] == "step" and event["step"] == 47 and left[0]:
            left[0] = 0
            weight = session.weights.masters["blocks.0.mlp.up.weight"]
            session.optimizers[0].state[weight]["exp_avg_sq"][0, 0] = torch.nan

    found = breaker("optimiser", after=after)
    assert found.decisions == [(49, "not_finite", "roll_back", None)]  # step 48 still used it
    assert found.story == undisturbed


def test_ten_times_the_loss_for_some_steps_is_skipped(breaker: Breaker) -> None:
    def prepare(session: Session) -> None:
        scale_loss(session, range(59, 62), 10.0)

    found = breaker("tenfold", prepare=prepare, faults__spike="skip")
    expected = [
        (n, "loss_spike", deed, None if deed == "again" else n)
        for n in (60, 61, 62)
        for deed in ("again", "skip")
    ]
    assert found.decisions == expected
    assert found.story == without(breaker, "tenfold left out", 60, 61, 62)


def test_a_spike_is_only_noted_unless_something_else_is_asked_for(breaker: Breaker) -> None:
    def prepare(session: Session) -> None:
        scale_loss(session, range(59, 60), 10.0)

    found = breaker("noted", prepare=prepare)
    assert found.decisions == [(60, "loss_spike", "log", None)]
    blind = breaker("blind", prepare=prepare, faults__deviations=1e9)
    assert blind.decisions == [] and found.story == blind.story


def test_a_gradient_that_spikes_without_the_loss_is_seen(breaker: Breaker) -> None:
    calls = [0]

    def longer(gradient: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return gradient * 1000 if calls[0] == 71 else gradient

    def prepare(session: Session) -> None:
        session.weights.working["blocks.0.mlp.up.weight"].register_hook(longer)

    found = breaker("gradient spike", prepare=prepare, faults__spike="skip")
    assert found.decisions == [(70, "gradient_spike", "again", None)]
    assert found.all("fault")[0]["loss"] < 4


def test_a_spike_can_lower_the_rate_for_a_while(breaker: Breaker, undisturbed: dict[str, Any]) -> None:
    found = breaker(
        "lower", prepare=lambda s: scale_loss(s, range(59, 60), 10.0), faults__spike="lower_rate",
        faults__lower_by=0.25, faults__lower_for=10,
    )  # fmt: skip
    assert [d[2] for d in found.decisions] == ["again", "lower_rate"]
    usual = {row[0]: row[3] for row in undisturbed["rows"]}
    factors = {row["step"]: row["learning_rate"] / usual[row["step"]] for row in found.run.rows()}
    lowered = [step for step, factor in factors.items() if factor == pytest.approx(0.25)]
    assert lowered == list(range(61, 71)) and factors[59] == factors[71] == 1


def test_weights_at_fault_for_a_spike_are_taken_back_and_the_update_before_is_left_out(
    breaker: Breaker,
) -> None:
    left = [1]

    def after(session: Session, event: Event) -> None:
        if event["event"] == "step" and event["step"] == 66 and left[0]:
            left[0] = 0
            with torch.no_grad():
                session.weights.masters["embed.weight"] *= -20  # finite, and wrong

    found = breaker("weights at fault", after=after, faults__spike="roll_back")
    assert found.decisions == [(67, "loss_spike", "again", None), (67, "loss_spike", "roll_back", 66)]
    assert found.all("fault")[1]["step_back"] == 60
    assert found.story == without(breaker, "66 left out", 66)


POISON = {
    "random bytes": np.random.default_rng(1).integers(128, 256, 64).astype(np.uint8).tobytes(),
    "one byte again and again": b"\x07" * 64,
    "one giant line": b"{"
    + np.random.default_rng(2).integers(128, 256, 150).astype(np.uint8).tobytes()
    + b"}",
}
DEVIATIONS = {"one giant line": 6.0}
"""It is a part of so many batches that the usual spread is wider."""


@pytest.fixture(scope="module")
def clean_scores(breaker: Breaker) -> list[float]:
    """Bits per byte of a text after training without poison, from three seeds."""
    return [score(breaker, breaker(f"clean {seed}", **POISONED, train__seed=seed)) for seed in (0, 1, 2)]


POISONED = {
    "data__encoding": "bytes", "data__packing": "fit", "train__steps": 200, "data__validation": 0.0,
    "faults__spike": "skip", "faults__most": 50,
}  # fmt: skip


def score(breaker: Breaker, found: Broken) -> float:
    text = (breaker.folder / "texts" / "7.txt").read_text(encoding="utf-8")
    return gf.score(gf.load(found.run.path), text).bits_per_byte


@pytest.mark.parametrize("kind", POISON)
def test_poisoned_text_is_traced_to_its_document_and_the_run_is_as_good_as_without_it(
    breaker: Breaker, kind: str, clean_scores: list[float]
) -> None:
    folder = breaker.folder / kind.replace(" ", "-")
    folder.mkdir()
    for file in (breaker.folder / "texts").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "poison.txt").write_bytes(POISON[kind])
    found = breaker(
        f"run {kind}", paths=(str(folder),), **POISONED, faults__deviations=DEVIATIONS.get(kind, 10.0)
    )
    skipped = [fault for fault in found.all("fault") if fault["decision"] == "skip"]
    assert skipped, found.decisions
    for fault in skipped:
        names = [d["name"] for d in fault["samples"][0]["documents"]]
        assert any(name.endswith("poison.txt") for name in names), (fault["step"], names)
    assert score(breaker, found) < max(clean_scores), clean_scores  # as one seed differs from another


def test_looking_changes_no_number(breaker: Breaker, undisturbed: dict[str, Any]) -> None:
    found = breaker("looking", faults__look_every=1, faults__remember_every=1)
    assert found.warned == "" and found.story == undisturbed
    blind = breaker("not looking", faults__look_every=0, faults__remember_every=0, faults__deviations=1e9)
    assert blind.story == undisturbed


def test_killed_after_a_decision_it_decides_the_same_again(trainer: Trainer) -> None:
    """A real SIGKILL: right after the batch was put in quarantine, and some steps later."""
    (trainer.folder / "texts" / "poison.txt").write_bytes(POISON["random bytes"])
    flags = ("--data.encoding", "bytes", "--data.validation", "0.0", "--train.steps", "200", "--train.accumulate", "1",
             "--train.checkpoint_every", "60", "--faults.spike", "skip", "--faults.window", "40", "--faults.most", "99",
             "--optimizer.learning_rate", "0.01", "--model.dropout", "0.0", "--train.sample_every", "1000",
             "--train.batch", "8", "--model.layers", "2", "--data.packing", "fit")  # fmt: skip
    assert trainer("whole", *flags).exit == 0
    faults = trainer.run("whole").events.curve("fault")
    assert faults and faults[-1]["decision"] == "skip"
    last = int(faults[-1]["step"])
    for moment in ('writes: "decision": "skip"', f'writes: "event": "step"+"step": {min(last + 9, 199)},'):
        killed = trainer("killed", *flags, plans=({"at": moment, "do": "SIGKILL"},))
        assert killed.exit == -9, killed.said
    assert trainer("killed", *flags).exit == 0
    decided = [(e["step"], e["decision"], e["loss"]) for e in trainer.run("killed").events.curve("fault")]
    assert decided == [(e["step"], e["decision"], e["loss"]) for e in faults]
    assert trainer.story("killed") == trainer.story("whole")
