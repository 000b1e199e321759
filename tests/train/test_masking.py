"""The task mask: killed and gone on with to the bit; what it writes; what it refuses."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from trainer import RECIPE, Trainer

import glassformer as gf
from glassformer.errors import ConfigError
from glassformer.train.masking import MaskTask
from glassformer.train.recipe import MaskRecipe, load_recipe

MASK_RECIPE = RECIPE.replace("[data]", 'task = "mask"\n\n[data]', 1)
MOMENTS = [
    "asks: os.rename+tokenizer.json",
    'writes: "event": "step"+"step": 2,',
    "asks: open+.step-00000003+optimizer.safetensors",
    'writes: "event": "validation"+"step": 4',
    'writes: "event": "sample"+"step": 8',
    'writes: "event": "step"+"step": 11,',
    "asks: open+model.safetensors+model",
]


@pytest.fixture(scope="module")
def masker(module_trainer: Trainer) -> Trainer:
    (module_trainer.folder / "mask.toml").write_text(MASK_RECIPE, encoding="utf-8")
    return module_trainer


@pytest.fixture(scope="module")
def undisturbed(masker: Trainer) -> dict[str, Any]:
    ended = masker("undisturbed", what="mask.toml")
    assert ended.exit == 0, ended.said
    return masker.story("undisturbed")


def test_a_run_killed_at_chosen_moments_comes_to_the_same_end(
    masker: Trainer, undisturbed: dict[str, Any]
) -> None:
    for moment in MOMENTS:
        plan = {"at": moment, "do": "SIGKILL", "n": 1}
        ended = masker("killed", what="mask.toml", plans=(plan,))
        assert ended.exit == -signal.SIGKILL, (moment, ended.said)
    assert masker("killed", what="mask.toml").exit == 0
    assert masker.story("killed") == undisturbed
    assert len(undisturbed["samples"]) == 9 and len(undisturbed["validation"]) == 3


def test_what_it_trained_is_judged_embeds_and_fills(masker: Trainer, undisturbed: dict[str, Any]) -> None:
    run = masker.run("undisturbed")
    last = run.events.curve("validation")[-1]
    assert 0 <= last["accuracy"] <= 1 and last["judged_tokens"] == last["tokens"]
    assert "bits_per_byte" not in last
    loaded = gf.load(run.path)
    assert loaded.config.kind == "encoder" and loaded.tokenizer.mask is not None
    assert gf.embed(loaded, ["cat", "mat"]).shape == (2, 16)
    assert len(gf.fill(loaded, "the c<|mask|>t", top=3)) == 3
    for (_, prompt), text in undisturbed["samples"].items():
        assert "<|mask|>" in prompt and "<|mask|>" not in text and len(text.encode()) >= len(prompt) - 15
    assert run.events.last("attention") is not None


def test_full_rows_are_measured_without_padding_and_a_text_of_less_than_a_row_with_it(
    masker: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GLASSFORMER_HOME", str(tmp_path))
    for context, padded in ((16, False), (2000, True)):
        recipe, base = load_recipe(masker.folder / "mask.toml", {"model.context": context, "train.batch": 2})
        assert isinstance(recipe, MaskRecipe)
        task = MaskTask(recipe, base, lambda message: None)
        batches = list(task.validation(2))
        assert all((batch.segments is not None) == padded for batch in batches)
        full = task.validation_tokens // context * context
        share = round(0.15 * context) / context
        assert sum(batch.num_targets for batch in batches) <= max(full * share, share * context)
        assert sum(batch.num_targets for batch in batches) > 0.7 * share * max(
            full, task.validation_tokens / 2
        )


@pytest.mark.parametrize("flags", [("--data.packing", "fit"), ("--data.mask_documents", "true")])
def test_rows_of_whole_documents_and_documents_kept_apart_train_too(
    masker: Trainer, flags: tuple[str, str]
) -> None:
    ended = masker(flags[1], *flags, "--train.steps", "2", what="mask.toml")
    assert ended.exit == 0, ended.said
    assert all(row["loss"] > 0 for row in ended.all("step") + ended.all("validation"))


def test_the_recipe_turns_on_what_it_needs_and_refuses_what_cannot_be() -> None:
    recipe = load_recipe({"task": "mask", "train": {"steps": 1}}).recipe
    assert recipe.model.kind == "encoder" and recipe.tokenizer.mask_token
    for values, says in (
        ({"tokenizer": {"mask_token": False}}, "mask_token = true"),
        ({"model": {"head": "classes"}}, "head 'tokens'"),
        ({"model": {"kind": "decoder"}}, "kind 'encoder'"),
        ({"mask": {"hidden": 0.9, "random": 0.2}}, "more than all"),
    ):
        with pytest.raises(ConfigError, match=says):
            load_recipe({"task": "mask", "train": {"steps": 1}, **values})
    assert load_recipe(None, task="mask").recipe.name == "demo-mask"
