"""The task label: killed and gone on with to the bit, judged, its classes saved by name, begun from an encoder."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from trainer import RECIPE, Trainer

import glassformer as gf
from glassformer.cli.main import main
from glassformer.errors import ConfigError, ModelError
from glassformer.train.recipe import load_recipe

LABEL_RECIPE = RECIPE.replace("[data]", 'task = "label"\n\n[data]', 1).replace('"texts"', '"labelled.tsv"')
LABEL_RECIPE = LABEL_RECIPE.replace("steps = 12", "steps = 60").replace(
    "checkpoint_every = 3", "checkpoint_every = 20"
)
LABEL_RECIPE = LABEL_RECIPE.replace("validate_every = 4", "validate_every = 30").replace(
    "sample_every = 4", "sample_every = 30"
)


@pytest.fixture(scope="module")
def labeller(module_trainer: Trainer) -> Trainer:
    words = {"cats": "purr mew claw", "dogs": "bark woof bone"}
    lines = [
        f"{a} {b} {number}\t{label}\n"
        for number in range(30)
        for label, text in words.items()
        for a, b in [(text.split()[number % 3], text.split()[(number + 1) % 3])]
    ]
    (module_trainer.folder / "labelled.tsv").write_text("".join(lines), encoding="utf-8")
    (module_trainer.folder / "label.toml").write_text(LABEL_RECIPE, encoding="utf-8")
    return module_trainer


@pytest.fixture(scope="module")
def undisturbed(labeller: Trainer) -> dict[str, Any]:
    ended = labeller("undisturbed", what="label.toml")
    assert ended.exit == 0, ended.said
    return labeller.story("undisturbed")


def test_a_run_killed_at_chosen_moments_comes_to_the_same_end(
    labeller: Trainer, undisturbed: dict[str, Any]
) -> None:
    for moment in (
        '"event": "step"+"step": 5,',
        '"event": "step"+"step": 33,',
        '"event": "validation"+"step": 60',
    ):
        plan = {"at": f"writes: {moment}", "do": "SIGKILL", "n": 1}
        assert labeller("killed", what="label.toml", plans=(plan,)).exit == -signal.SIGKILL
    unfinished = gf.load(labeller.folder / "killed")
    assert unfinished.classes == ("cats", "dogs") and unfinished.config.classes == 2 and unfinished.warnings
    assert labeller("killed", what="label.toml").exit == 0
    assert labeller.story("killed") == undisturbed


def test_it_learned_is_judged_on_what_is_held_out_and_knows_its_classes_by_name(
    labeller: Trainer, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = labeller.run("undisturbed")
    last = run.events.curve("validation")[-1]
    assert last["judged_texts"] == last["tokens"] and 0.2 < last["commonest_class"] < 0.8
    loaded = gf.load(run.path)
    rows = gf.classify(loaded, ["bark bone 3", "mew claw 4"], top=2)
    assert [row["text"] for row in rows] == ["bark bone 3"] * 2 + ["mew claw 4"] * 2
    assert {row["class"] for row in rows} == {"cats", "dogs"}
    assert rows[0]["probability"] + rows[1]["probability"] == pytest.approx(1)
    logits = loaded.model(torch.tensor([[256, *b"bark bone 3"]])).softmax(-1)[0]
    assert rows[0]["probability"] == pytest.approx(logits.max().item(), abs=1e-6)
    assert main(["classify", str(run.path), "--text", "bark bone 3", "--json"]) == 0
    assert rows[0]["class"] in capsys.readouterr().out
    with pytest.raises(ModelError, match="head for classes"):
        gf.fill(loaded, "<|mask|>")


def test_a_classifier_begins_with_an_encoders_weights(labeller: Trainer, undisturbed: dict[str, Any]) -> None:
    recipe = RECIPE.replace("[data]", 'task = "mask"\n\n[data]', 1)
    (labeller.folder / "mask.toml").write_text(recipe, encoding="utf-8")
    assert labeller("encoder", what="mask.toml").exit == 0
    path = str(labeller.folder / "encoder" / "tokenizer.json")
    ended = labeller(
        "tuned", "--init-from", "encoder", "--tokenizer.path", path, "--train.steps", "1", what="label.toml"
    )
    assert ended.exit == 0, ended.said
    (message,) = [e["message"] for e in ended.all("warning") if "starts from" in e["message"]]
    assert "head.weight" in message and "embed.weight" not in message


def test_names_of_classes_go_to_transformers_and_come_back(
    labeller: Trainer, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    values = {
        "kind": "encoder", "vocab": 257, "width": 16, "layers": 1, "heads": 2, "context": 16, "head": "classes",
        "classes": 2, "pooler": True, "norm": "layernorm", "norm_place": "post", "bias": True, "positions": "learned",
        "embed_norm": True, "token_types": 1, "activation": "gelu",
    }  # fmt: skip
    from glassformer.model.stacks import build

    tokenizer = gf.Tokenizer.train(gf.TokenizerConfig(kind="bytes"), [b""])
    own = gf.save_model(
        tmp_path / "own", build(gf.ModelConfig.model_validate(values)), tokenizer, classes=["no", "yes"]
    )
    assert gf.load(own).classes == ("no", "yes")
    theirs = gf.save_pretrained(own, tmp_path / "bert")
    assert transformers.AutoModelForSequenceClassification.from_pretrained(theirs).config.id2label == {
        0: "no",
        1: "yes",
    }
    assert gf.from_pretrained(theirs).classes == ("no", "yes")


def test_a_recipe_that_is_no_classifiers_is_refused() -> None:
    for values, says in (
        ({"model": {"head": "tokens"}}, "head 'classes'"),
        ({"data": {"paths": "book.txt"}}, "cannot hold texts with labels"),
    ):
        with pytest.raises(ConfigError, match=says):
            load_recipe({"task": "label", "train": {"steps": 1}, **values})
