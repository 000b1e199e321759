"""Training on pairs: killed and gone on with, averaged, turned round, and its page."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
import torch
from trainer import Trainer

import glassformer as gf
from glassformer.errors import ConfigError, UsageError
from glassformer.run import checkpoints
from glassformer.text.config import PairConfig
from glassformer.train.recipe import load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "translation.md").read_text(encoding="utf-8")
RECIPE = """\
name = "pairs"
task = "translate"

[data]
paths = ["pairs.tsv"]
validation = 0.2

[tokenizer]
kind = "bytes"

[model]
width = 16
layers = 1
heads = 2
context = 24
dropout = 0.1

[train]
steps = 9
batch = 4
accumulate = 2
checkpoint_every = 3
validate_every = 4
sample_every = 4
keep = 3
average = 3
log_every = 1

[engine]
device = "cpu"
precision = "bf16"
compile = "off"
attention = "explicit"
"""


@pytest.fixture
def pairs(trainer: Trainer) -> Trainer:
    rows = [f"say {n:02}\t{'ab'[n % 2]}{n * 7 % 50}" for n in range(60)]
    (trainer.folder / "pairs.tsv").write_text("\n".join(rows) + "\n")
    (trainer.folder / "pairs.toml").write_text(RECIPE)
    return trainer


def test_killed_and_gone_on_with_a_translation_comes_to_the_same_bits(pairs: Trainer) -> None:
    assert pairs("whole", what="pairs.toml").exit == 0
    for moment in (
        '"event": "step"+"step": 2,',
        '"event": "checkpoint"',
        '"event": "step"+"step": 8,',
        '"event": "averaged"',
    ):
        plans = ({"at": f"writes: {moment}", "do": "SIGKILL", "n": 1},)
        assert pairs("killed", what="pairs.toml", plans=plans).exit == -signal.SIGKILL, moment
    assert pairs("killed", what="pairs.toml").exit == 0
    assert pairs.story("killed") == pairs.story("whole")


def test_the_finished_model_is_the_mean_of_the_checkpoints_and_is_judged(pairs: Trainer) -> None:
    assert pairs("run", what="pairs.toml").exit == 0
    run = pairs.run("run")
    saved = [checkpoints.load(run.checkpoints / f"step-0000000{n}").tensors["model"] for n in (3, 6, 9)]
    model = gf.load(run.path)
    for name, weight in model.model.named_parameters():
        mean = sum(one[name].double() for one in saved) / 3
        torch.testing.assert_close(weight, mean.float(), rtol=0, atol=0)
    last = run.events.last("validation")
    assert last is not None and last["whole"] and 0 <= last["exact_match"] <= 1 and last["texts"] > 0
    assert ("bleu" in last) == ("bleu_signature" in last)
    picture = run.events.last("attention")
    assert picture is not None and picture["keys"][-1] == "<end>" and picture["tokens"][0] == "<start>"
    assert len(picture["pattern"]) == len(picture["tokens"])
    assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in picture["pattern"])


def test_more_checkpoints_than_are_kept_cannot_be_averaged() -> None:
    with pytest.raises(ConfigError, match="average 5 needs as many checkpoints, but keep is 2"):
        load_recipe("demo-translate", {"train.average": 5})


def test_the_task_decides_the_kind_of_model_and_its_demo(tmp_path: Path) -> None:
    assert load_recipe(None, task="translate").recipe.name == "demo-translate"
    for side in ("de", "en"):
        (tmp_path / f"train.{side}").write_text("a\n")
    files = [tmp_path / "train.de", tmp_path / "train.en"]
    recipe = load_recipe(files, task="translate").recipe
    assert recipe.model.kind == "encoder-decoder" and recipe.data.paths == tuple(map(str, files))
    with pytest.raises(ConfigError, match="trains a model of kind 'encoder-decoder', not 'decoder'"):
        load_recipe("demo-translate", {"model.kind": "decoder"})
    with pytest.raises(UsageError, match=r"no task 'translat'.*translate|it can be .*'translate'"):
        load_recipe(None, task="translat")
    with pytest.raises(UsageError, match="is for task 'language', not 'translate'"):
        load_recipe("demo", task="translate")


def test_the_base_model_of_2017_has_the_papers_numbers() -> None:
    recipe = load_recipe("transformer-2017-base").recipe
    peak = (recipe.model.width * recipe.schedule.warmup) ** -0.5
    assert recipe.optimizer.learning_rate == pytest.approx(peak, rel=0.01)
    config = recipe.model.model_copy(update={"vocab": 37000})
    from glassformer.model.count import parameters

    assert parameters(config).total == pytest.approx(65e6, rel=0.05)  # "65", their table 3
    assert recipe.train.batch * config.context == pytest.approx(25_000, rel=0.05)  # their section 5.1


def test_every_key_of_pairs_is_on_the_page_and_its_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documented = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert documented == list(PairConfig.model_fields)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSFORMER_HOME", str(tmp_path / "home"))
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example, {})
