"""What the README promises, done as a user would: train, generate, score, list, show, verify, report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from as_a_user import Answer

import glassformer as gf
from glassformer.run.folder import SUMMARY

Program = Callable[..., Answer]


def test_train_streams_its_events_as_json_lines_and_the_last_sums_up_the_run(
    finished: tuple[Path, Answer],
) -> None:
    project, answer = finished
    assert answer.exit_code == 0, answer.err
    events = [json.loads(line) for line in answer.out.splitlines()]
    assert {event["schema"] for event in events} == {"glassformer.event"}
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert events[-1]["event"] == "done"
    assert all(isinstance(events[-1][name], int | float) for name in SUMMARY)
    assert "validation loss" not in answer.out and "reading the text" in answer.err
    assert (
        (project / "runs" / "tiny-1" / "report.html")
        .read_text(encoding="utf-8")
        .startswith("<!doctype html>")
    )


def test_generate_writes_the_prompt_and_its_continuation_and_the_same_again(
    project: Path, run: Program
) -> None:
    arguments = ("generate", "runs/tiny-1", "--prompt", "the cat", "--max-tokens", "9", "--seed", "3")
    first = run(*arguments)
    assert first.exit_code == 0 and first.out.startswith("the cat") and "9 tokens" in first.err
    assert run(*arguments).out == first.out
    document = run(*arguments, "--json").document
    assert document["schema"] == "glassformer.generation"
    assert first.out == document["prompt"] + document["text"] + "\n"
    assert str(gf.generate(gf.load("runs/tiny-1"), "the cat", max_tokens=9, seed=3)) + "\n" == first.out


def test_score_says_loss_and_bits_per_byte(project: Path, run: Program) -> None:
    document = run("score", "runs/tiny-1", "--text", "texts/1.txt", "--json").document
    assert document["schema"] == "glassformer.score" and document["version"] == 1
    assert document["bytes"] == (project / "texts/1.txt").stat().st_size == document["tokens"]
    assert math.isclose(document["bits_per_byte"], document["loss"] / math.log(2))
    assert "bits per byte" in run("score", "runs/tiny-1", "--text", "texts/1.txt").out


def test_a_device_that_does_not_exist_is_refused_with_what_to_do(project: Path, run: Program) -> None:
    answer = run("generate", "runs/tiny-1", "--device", "gpu")
    assert answer.exit_code == 2 and "'gpu' is not a device" in answer.err and "cuda" in answer.err


def test_runs_are_listed_shown_and_verified(project: Path, run: Program) -> None:
    listed = run("runs", "list", "--json").document
    assert [one["run"] for one in listed["runs"]] == ["tiny-1"]
    shown = run("runs", "show", "runs/tiny-1", "--json").document
    assert shown["status"] == "done" and all(shown[name] is not None for name in SUMMARY)
    assert "tiny-1" in run("runs", "list").out and "█" in run("runs", "show", "runs/tiny-1").out
    assert run("runs", "show", "runs/tiny-1", "--out", "loss.svg").exit_code == 0
    assert "validation" in (project / "loss.svg").read_text(encoding="utf-8")
    verified = run("runs", "verify", "runs/tiny-1")
    assert (verified.exit_code, verified.out) == (0, "runs/tiny-1: whole\n")


def test_one_flipped_byte_in_a_checkpoint_is_named_by_verify(project: Path, run: Program) -> None:
    file = project / "runs/tiny-1/checkpoints/step-00000006/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    answer = run("runs", "verify")
    assert answer.exit_code == 3
    assert "step-00000006/model.safetensors, tensor " in answer.out and "SHA-256" in answer.out
    found = run("runs", "verify", "--json").document
    assert not found["whole"] and found["runs"][0]["findings"][0]["file"] == "model.safetensors"


def test_one_flipped_byte_in_the_finished_model_is_refused(project: Path, run: Program) -> None:
    file = project / "runs/tiny-1/model/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    answer = run("generate", "runs/tiny-1")
    assert answer.exit_code == 3 and "model.safetensors" in answer.err


def test_a_run_that_stopped_goes_on_with_the_same_command(project: Path, run: Program) -> None:
    command = ("train", "tiny.toml", "--train.seed", "7")
    stopped = run(*command, "--stop-after", "0s")
    assert stopped.exit_code == 75 and "stopped: Stopped after step 1 of 6" in stopped.err
    assert run("runs", "show", "runs/tiny-2", "--json").document["status"] == "stopped"
    went_on = run(*command)
    assert went_on.exit_code == 0 and "run: runs/tiny-2" in went_on.err
    assert "going on from step 1" in went_on.err and "step 6/6" in went_on.err


def test_a_finished_run_is_not_trained_over(project: Path, run: Program) -> None:
    before = (project / "runs/tiny-1/events.jsonl").read_bytes()
    answer = run("train", "tiny.toml")
    assert answer.exit_code == 0 and "run: runs/tiny-2" in answer.err
    assert (project / "runs/tiny-1/events.jsonl").read_bytes() == before
    fresh = run("train", "tiny.toml", "--run", "runs/tiny-2", "--fresh")
    assert fresh.exit_code == 0 and (project / "runs/tiny-2/before-1/recipe.toml").exists()


def test_more_text_is_refused_on_resume_and_accepted_on_request(project: Path, run: Program) -> None:
    run("train", "tiny.toml", "--run", "grown", "--stop-after", "0s")
    (project / "texts/new.txt").write_text("Somebody new came in. " * 9, encoding="utf-8")
    refused = run("train", "tiny.toml", "--run", "grown")
    assert refused.exit_code == 1 and "--accept-data" in refused.err
    accepted = run("train", "tiny.toml", "--run", "grown", "--accept-data")
    assert accepted.exit_code == 0 and "changed data" in (project / "grown/events.jsonl").read_text("utf-8")


def test_a_dry_run_says_what_the_run_would_be_and_makes_none(project: Path, run: Program) -> None:
    plan = run("train", "tiny.toml", "--dry-run", "--json", "--train.tokens", "320").document
    assert plan["steps"] == 10 and plan["tokens"] == 320 and plan["flops"] > 0
    assert [path.name for path in (project / "runs").iterdir()] == ["tiny-1"]
    assert "parameters" in run("train", "tiny.toml", "--dry-run").out


def test_a_folder_of_texts_is_enough_of_a_recipe(project: Path, run: Program) -> None:
    plan = run("train", "texts", "--dry-run", "--json", "--tokenizer.kind", "bytes").document
    assert plan["recipe"] == "texts" and plan["vocab"] == 257


def test_text_is_reported_before_a_step_is_spent(project: Path, run: Program) -> None:
    (project / "texts/broken.txt").write_bytes(b"good line\nbad \xff line\n")
    document = run("text", "report", "tiny.toml", "--json").document
    assert document["schema"] == "glassformer.text_report"
    assert document["sources"][0]["encoding_errors"] == 1 and document["sources"][0]["tokens"] > 0
    shown = run("text", "report", "tiny.toml", "--quick", "--out", "sizes.svg")
    assert "broken.txt" in shown.out and "line 2" in shown.out
    assert (project / "sizes.svg").read_text(encoding="utf-8").startswith("<svg")
