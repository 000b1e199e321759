"""What can be wrong when a run begins or goes on: recipe, text, tokenizer, length, disk. Real files, real processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from trainer import Ended, Trainer

import glassformer as gf
from glassformer.use.load import load, weights_digest


def stop_early(trainer: Trainer, run: str, *more: str) -> Ended:
    """A run that stopped after its first step."""
    ended = trainer(run, *more, "--stop-after", "0s")
    assert ended.exit == 75, ended.said
    return ended


def warnings_of(trainer: Trainer, run: str) -> list[str]:
    return [event["message"] for event in trainer.run(run).events.read() if event["event"] == "warning"]


def rewrite(trainer: Trainer, old: str, new: str) -> None:
    recipe = trainer.folder / "tiny.toml"
    text = recipe.read_text(encoding="utf-8")
    assert old in text
    recipe.write_text(text.replace(old, new), encoding="utf-8")


# Going on with something else than it began with


def test_another_recipe_is_refused_with_every_difference(trainer: Trainer) -> None:
    stop_early(trainer, "run")
    refused = trainer(
        "run", "--model.layers", "2", "--optimizer.learning_rate", "0.01", "--train.steps", "13"
    )
    assert refused.exit == 3 and not refused.events
    for line in ("model.layers: checkpoint 1, now 2", "optimizer.learning_rate: checkpoint 0.003, now 0.01",
                 "train.steps: checkpoint 12, now 13", "--run", "--init-from"):  # fmt: skip
        assert line in refused.said


def test_how_often_a_run_looks_at_itself_may_change_on_the_way(trainer: Trainer) -> None:
    stop_early(trainer, "run")
    changes = (
        "--train.validate_every",
        "2",
        "--train.log_every",
        "5",
        "--train.checkpoint_every",
        "4",
        "--train.keep",
        "1",
    )
    went_on = trainer("run", *changes)
    assert went_on.exit == 0
    assert [event["step"] for event in went_on.all("validation")] == [2, 4, 6, 8, 10, 12]
    assert trainer("whole").exit == 0
    assert trainer.story("run")["model"] == trainer.story("whole")["model"]


def test_changed_text_is_refused_and_accepted_on_request_which_is_recorded(trainer: Trainer) -> None:
    stop_early(trainer, "run")
    (trainer.folder / "texts" / "new.txt").write_text(
        "Somebody new came in, and nobody knew why. " * 3, encoding="utf-8"
    )
    refused = trainer("run")
    assert refused.exit == 1 and "The data of run changed" in refused.said and "--accept-data" in refused.said
    accepted = trainer("run", "--accept-data")
    assert accepted.exit == 0 and len(accepted.all("step")) == 11
    assert any("goes on with changed data" in message for message in warnings_of(trainer, "run"))


def test_a_changed_tokenizer_is_refused_even_when_changed_text_is_accepted(trainer: Trainer) -> None:
    rewrite(trainer, 'kind = "bytes"', 'kind = "characters"')
    stop_early(trainer, "run")
    (trainer.folder / "texts" / "new.txt").write_text("Ω means another character. " * 9, encoding="utf-8")
    refused = trainer("run", "--accept-data")
    assert (
        refused.exit == 1 and "tokenizer" in refused.said and "--fresh" in refused.said and not refused.events
    )


def test_fresh_moves_what_was_there_aside_and_says_nothing_of_it(trainer: Trainer) -> None:
    stop_early(trainer, "run")
    old = trainer.run("run").events.path.read_bytes()
    assert trainer("run", "--fresh", "--train.steps", "3").exit == 0
    run = trainer.run("run")
    assert (run.path / "before-1" / "events.jsonl").read_bytes() == old
    assert [row["step"] for row in run.rows()] == [1, 2, 3] and run.events.last("resumed") is None


# Beginning from other weights


def test_a_run_begins_from_the_weights_that_fit_and_reports_the_rest(trainer: Trainer) -> None:
    assert trainer("first").exit == 0
    second = trainer(
        "second", "--init-from", "first", "--train.steps", "0", "--model.layers", "2", "--model.tied", "false"
    )
    assert second.exit == 0
    (report,) = [message for message in warnings_of(trainer, "second") if "starts from first" in message]
    assert "blocks.1.attn" in report and "(only in model)" in report and "blocks.0" not in report
    one, other = (load_file(trainer.run(name).model / "model.safetensors") for name in ("first", "second"))
    shared = [name for name in one if name in other and one[name].shape == other[name].shape]
    assert len(shared) >= 6 and all(torch.equal(one[name], other[name]) for name in shared)


@pytest.mark.parametrize("place", ["first", "first/model", "weights.safetensors"])
def test_weights_are_taken_from_a_run_a_model_folder_or_a_file(trainer: Trainer, place: str) -> None:
    stop_early(trainer, "first") if place == "first" else trainer("first")
    newest = max(trainer.run("first").checkpoints.iterdir())
    save_file(load_file(newest / "model.safetensors"), trainer.folder / "weights.safetensors")
    begun = trainer("second", "--init-from", place, "--train.steps", "1", "--train.seed", "5")
    assert begun.exit == 0 and "; not " not in warnings_of(trainer, "second")[-1]


def test_weights_of_another_model_altogether_are_refused(trainer: Trainer) -> None:
    save_file({"wte": torch.ones(3)}, trainer.folder / "other.safetensors")
    refused = trainer("run", "--init-from", "other.safetensors")
    assert refused.exit == 1 and "No tensor of other.safetensors fits" in refused.said
    missing = trainer("run2", "--init-from", "nowhere")
    assert missing.exit == 1 and "no weights in nowhere" in missing.said


def test_a_run_that_began_from_weights_and_was_killed_at_once_begins_from_them_again(
    trainer: Trainer,
) -> None:
    assert trainer("first").exit == 0
    from_first = ("--init-from", "first", "--train.seed", "9")
    assert trainer("whole", *from_first).exit == 0
    killed = trainer(
        "killed", *from_first, plans=({"at": 'writes: "event": "step"+"step": 2,', "do": "SIGKILL"},)
    )
    assert killed.exit == -9 and not killed.all("checkpoint")
    assert trainer("killed", *from_first).exit == 0
    assert trainer.story("killed") == trainer.story("whole")


# How long


@pytest.mark.parametrize(
    ("duration", "steps"), [("steps = 12", 12), ("tokens = 500", 8), ("tokens = 512", 8), ("tokens = 513", 9)]
)
def test_a_length_is_turned_into_steps(trainer: Trainer, duration: str, steps: int) -> None:
    rewrite(trainer, "steps = 12", duration)
    ended = trainer("run", "--train.sample_tokens", "0")
    assert ended.exit == 0 and not ended.all("sample")
    assert (
        steps == ended.all("start")[0]["steps"] == ended.all("step")[-1]["step"] == ended.events[-1]["steps"]
    )


def test_a_length_in_epochs_is_that_many_times_the_training_text(trainer: Trainer) -> None:
    rewrite(trainer, "steps = 12", "epochs = 0.25")
    plan = trainer("run", "--dry-run").events[0]
    assert 0 <= plan["tokens"] - 0.25 * plan["training_tokens"] <= 64 and plan["epochs"] == pytest.approx(
        0.25, abs=0.02
    )
    begun = trainer("run", "--stop-after", "0s").all("start")[0]
    assert begun["steps"] == plan["steps"]


def test_minutes_become_steps_by_the_measured_speed_and_stay_so_on_resume(trainer: Trainer) -> None:
    rewrite(trainer, "steps = 12", "minutes = 0.01")
    first = trainer("run", plans=({"at": 'writes: "event": "step"+"step": 2,', "do": "SIGKILL"},))
    assert first.exit == -9
    steps = first.all("start")[0]["steps"]
    assert 5 < steps < 2000 and first.all("engine")[0]["step_seconds"] > 0
    second = trainer("run")
    assert second.exit == 0 and second.events[-1]["steps"] == steps and not second.all("engine")


def test_no_steps_at_all_give_the_model_as_it_was_drawn(trainer: Trainer) -> None:
    ended = trainer("run", "--train.steps", "0")
    assert ended.exit == 0 and not ended.all("step") and ended.events[-1]["steps"] in (0, None)
    assert load(trainer.folder / "run").config.width == 16
    assert (trainer.folder / "run" / "report.html").exists()


def test_a_model_without_blocks_trains_with_the_default_optimiser(trainer: Trainer) -> None:
    ended = trainer("run", "--model.layers", "0", "--optimizer.kind", "muon")
    assert ended.exit == 0 and ended.events[-1]["event"] == "done"


# How much text


def test_no_validation_documents_mean_no_validation_and_a_word_about_it(trainer: Trainer) -> None:
    ended = trainer("run", "--data.validation", "0")
    assert ended.exit == 0 and not ended.all("validation") and ended.all("attention")
    assert ended.events[-1].get("val_loss") is None


def test_text_for_less_than_a_batch_is_repeated_with_a_warning(trainer: Trainer) -> None:
    ended = trainer("run", "--train.batch", "2000", "--train.steps", "1")
    assert ended.exit == 0 and any(
        "each batch repeats it" in message for message in warnings_of(trainer, "run")
    )


def test_text_for_less_than_a_context_is_refused_before_a_run_is_made(trainer: Trainer) -> None:
    refused = trainer("run", "--model.context", "100000")
    assert refused.exit == 1 and "fewer than one context of 100,000" in refused.said


def test_a_prompt_with_characters_the_tokenizer_never_saw_does_not_end_the_run(trainer: Trainer) -> None:
    rewrite(trainer, 'kind = "bytes"', 'kind = "characters"')
    rewrite(trainer, "[engine]", 'sample_prompts = ["Ω日", ""]\n\n[engine]')
    ended = trainer("run")
    assert ended.exit == 0 and {event["prompt"] for event in ended.all("sample")} == {""}
    assert all("no sample of 'Ω日'" in event["message"] for event in ended.all("warning")[-2:])


# The disk and the numbers


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_but_not_the_run(trainer: Trainer) -> None:
    def at_step(step: int, deed: str) -> dict[str, Any]:
        return {"at": f'writes: "event": "step"+"step": {step},', "do": deed}

    assert trainer("undisturbed").exit == 0
    ended = trainer("run", plans=(at_step(5, "limit 12000"), at_step(7, "lift")))
    assert ended.exit == 0, ended.said
    (warning,) = [w["message"] for w in ended.all("warning") if "no checkpoint" in w["message"]]
    assert "step 6" in warning and "File too large" in warning and "Tried again at step 7" in warning
    assert [event["step"] for event in ended.all("checkpoint")] == [3, 7, 9, 12]
    assert trainer.story("run") == trainer.story("undisturbed")
    assert trainer.run("run").verify() == []


def test_a_disk_still_full_at_the_end_is_an_error_and_the_same_command_goes_on_later(
    trainer: Trainer,
) -> None:
    full = {"at": 'writes: "event": "step"+"step": 11,', "do": "limit 12000"}
    ended = trainer("run", plans=(full,))
    assert ended.exit == 1 and "was not saved" in ended.said and "Traceback" not in ended.said
    assert trainer("run").all("resumed")[0]["step"] == 9
    assert trainer("undisturbed").exit == 0 and trainer.story("run") == trainer.story("undisturbed")


def test_a_run_that_diverges_ends_with_a_sentence_and_keeps_its_checkpoints(trainer: Trainer) -> None:
    rate = ("--optimizer.kind", "sgd", "--optimizer.learning_rate", "1e30", "--schedule.warmup", "0")
    wild = (*rate, "--train.clip", "false", "--train.checkpoint_every", "1")
    ended = trainer("run", *wild)
    assert ended.exit == 1 and "no weight was changed" in ended.said and "Traceback" not in ended.said
    kept = load_file(max(trainer.run("run").checkpoints.iterdir()) / "model.safetensors")
    assert trainer.run("run").verify() == [] and all(torch.isfinite(w).all() for w in kept.values())


def test_tokens_cut_short_under_a_running_process_end_it_with_a_sentence(
    trainer: Trainer, tmp_path: Path
) -> None:
    home = tmp_path / "own home"
    pause = ({"at": 'writes: "event": "step"+"step": 3,', "do": "SIGSTOP"},)
    pid = trainer.start("run", plans=pause, GLASSFORMER_HOME=str(home))
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    (file,) = home.rglob("train/ids.npy")
    os.truncate(file, file.stat().st_size // 2)  # beyond the cut, reading a mapped file is a SIGBUS
    os.kill(pid, signal.SIGCONT)
    ended = trainer.end(pid)
    assert ended.exit == 1 and "Traceback" not in ended.said


def test_texts_of_ones_own_train_on_an_imported_model_with_its_sizes_and_its_tokenizer(
    trainer: Trainer,
) -> None:
    """A Llama in Hugging Face's layout and in GGUF, whose sizes are nobody's default."""
    sizes = (
        "--model.gated",
        "true",
        "--model.activation",
        "silu",
        "--model.width",
        "24",
        "--model.heads",
        "3",
    )
    assert trainer("first", *sizes).exit == 0
    first = gf.load(trainer.folder / "first")
    gf.save_pretrained(first, trainer.folder / "llama")
    gf.save_gguf(first, trainer.folder / "llama.gguf", dtype="f32")
    short = ("--train.steps", "0", "--engine.device", "cpu", "--train.sample_tokens", "4")
    for number, place in enumerate(("llama", "llama.gguf")):
        ended = trainer(f"on-{number}", "--init-from", place, *short, what="texts")
        assert ended.exit == 0, ended.said
        model = gf.load(trainer.folder / f"on-{number}")
        assert weights_digest(model.model) == weights_digest(first.model)
        assert (
            model.tokenizer.digest == first.tokenizer.digest
            and model.config.ff_width == first.config.ff_width
        )
