"""The engine measures, chooses, gives reasons, and never lets a compiler end a run."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from trainer import Trainer

from glassformer.errors import GlassformerError, UsageError
from glassformer.model.config import ModelConfig
from glassformer.model.count import Precision
from glassformer.model.network import NetworkConfig
from glassformer.train import engine
from glassformer.train.compiler import cannot_compile, tune_compiler
from glassformer.train.config import EngineConfig
from glassformer.train.engine import Choice, choose, measure, pick_device
from glassformer.train.step import Update, refuse_not_finite

MODEL = ModelConfig(vocab=64, width=16, layers=1, heads=2, context=16)
AUTO = ("--engine.precision", "auto", "--engine.attention", "auto")


def takes(seconds: Callable[[Choice], float]) -> engine.Trial:
    """Steps that take as long as `seconds` says."""
    return lambda choice, rows, parts=1: lambda: time.sleep(seconds(choice))


def chosen(
    trial: engine.Trial, *, num_steps: int | None = 10, seconds: float = 0.0, **config: str
) -> list[engine.Candidate]:
    settings = EngineConfig.model_validate({"device": "cpu", **config})
    return choose(settings, trial, model=MODEL, batch=4, num_steps=num_steps, seconds=seconds)


def test_the_quickest_is_chosen_and_all_that_was_tried_is_kept() -> None:
    quick = takes(lambda choice: 0.001 if choice.attention == "fused" else 0.02)
    tried = chosen(quick, precision="fp32")
    assert [(c.choice.attention, c.choice.compiled) for c in tried] == [("fused", False), ("explicit", False)]
    assert all(c.step_seconds and c.first_seconds and c.error is None for c in tried)


def test_what_is_asked_for_in_full_is_not_measured() -> None:
    def never(choice: Choice, rows: int, parts: int = 1) -> Callable[[], None]:
        raise AssertionError("nothing to choose from, so nothing to measure")

    (only,) = chosen(never, precision="bf16", compile="off", attention="fused")
    assert only.choice == Choice("cpu", "bf16", False, "fused") and only.step_seconds is None


def test_bfloat16_is_tried_only_where_its_products_pay() -> None:
    names = {
        c.choice.precision for c in chosen(takes(lambda choice: 0.001), compile="off", attention="fused")
    }
    assert names in ({"fp32"}, {"fp32", "bf16", "autocast"})  # which one is this machine's own affair
    assert isinstance(engine._bf16_pays("cpu", 64), bool)


def test_compilation_is_tried_for_long_runs_only() -> None:
    slower_compiled = takes(lambda choice: 0.02 if choice.compiled else 0.01)
    long = chosen(slower_compiled, precision="fp32", attention="fused", num_steps=100_000)
    assert [c.choice.compiled for c in long] == [False, True]
    assert not any(c.choice.compiled for c in chosen(slower_compiled, precision="fp32", attention="fused"))
    minutes = chosen(slower_compiled, precision="fp32", attention="fused", num_steps=None, seconds=600)
    assert any(c.choice.compiled for c in minutes)


def test_a_way_that_raises_is_a_candidate_with_an_error_and_another_is_taken() -> None:
    def breaks(choice: Choice, rows: int, parts: int = 1) -> Callable[[], None]:
        if choice.attention == "fused":
            raise RuntimeError("no kernel for this shape\nand a long trace")
        return lambda: None

    first, second = chosen(breaks, precision="fp32")
    assert first.choice.attention == "explicit" and first.error is None
    assert second.choice.attention == "fused" and second.error == "no kernel for this shape"


def test_when_nothing_works_every_reason_is_given() -> None:
    def breaks(choice: Choice, rows: int, parts: int = 1) -> Callable[[], None]:
        raise RuntimeError(f"no {choice.attention}")

    with pytest.raises(GlassformerError, match=r"no explicit.*no fused"):
        chosen(breaks, precision="fp32")


@pytest.mark.parametrize("compiled", [Update(4.2, 3.0), Update(2.0, 1.0), Update(4.2, math.nan)])
def test_a_compiled_step_that_finds_other_numbers_than_an_eager_one_is_not_used(compiled: Update) -> None:
    asked = []

    def trial(choice: Choice, rows: int, parts: int = 1) -> Callable[[], Update]:
        asked.append((choice.compiled, rows, parts))

        def step() -> Update:
            time.sleep(0.001 if choice.compiled else 0.01)
            found = compiled if choice.compiled else Update(4.2, 1.0)
            refuse_not_finite(found)
            return found

        return step

    best, other = chosen(trial, precision="fp32", attention="fused", num_steps=100_000)
    assert not best.choice.compiled and other.choice.compiled
    assert re.search(r"gradient 3.* gradient 1|loss 2.* loss 4\.2|gradient nan", str(other.error))
    rounded = Update(4.21, 1.02)
    compiled = rounded
    best, _ = chosen(trial, precision="fp32", attention="fused", num_steps=100_000)
    assert best.choice.compiled and best.first == rounded
    assert (False, 4, 1) in asked  # the whole batch, eagerly


def test_a_compilation_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_COMPILE_LIMIT", 0.2)
    endless = takes(lambda choice: 60.0 if choice.compiled else 0.001)
    began = time.monotonic()
    best, other = chosen(endless, precision="fp32", attention="fused", compile="on")
    assert time.monotonic() - began < 30
    assert not best.choice.compiled and other.choice.compiled and other.error == "took longer than 0 s"


def test_a_small_plain_network_is_not_measured_but_computed_in_one_thread() -> None:
    def never(choice: Choice, rows: int, parts: int = 1) -> Callable[[], None]:
        raise AssertionError("a small step is not worth a trial")

    network = NetworkConfig(inputs=64, outputs=10, hidden=(256,))
    settings = EngineConfig(device="cpu")
    (only,) = choose(settings, never, model=network, batch=64, num_steps=10**7, seconds=0.0)
    assert only.choice == Choice("cpu", "fp32", False, None, threads=1)
    assert only.choice.name == "fp32 eager, 1 thread"
    before = torch.get_num_threads()
    with engine.threads_of(only.choice):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_a_large_plain_network_is_measured_without_any_attention() -> None:
    network = NetworkConfig(inputs=2048, outputs=10, hidden=(4096, 4096))
    settings = EngineConfig(device="cpu", precision="fp32")
    tried = choose(
        settings, takes(lambda choice: 0.001), model=network, batch=4096, num_steps=10, seconds=0.0
    )
    assert [candidate.choice for candidate in tried] == [Choice("cpu", "fp32", False, None)]
    assert tried[0].step_seconds is not None


def test_a_row_of_a_candidate_is_plain_data() -> None:
    row = measure(Choice("cpu", "fp32", False, "fused"), takes(lambda choice: 0.0), 2, 4).row()
    assert row["name"] == "fp32 eager, fused attention" and json.loads(json.dumps(row)) == row


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_wrong_usage(name: str) -> None:
    with pytest.raises(UsageError, match=r"torch sees no GPU.*doctor"):
        pick_device(name)
    assert pick_device("auto") == "cpu"


def test_a_device_nobody_makes_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="'abacus' is not a device"):
        pick_device("abacus")


def test_without_a_compiler_the_reason_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "install g++" in (cannot_compile("cpu") or "") and cannot_compile("cuda") is None
    (tmp_path / "my-c++").write_text("#!/bin/sh\n")
    (tmp_path / "my-c++").chmod(0o755)
    monkeypatch.setenv("CXX", "my-c++")
    assert cannot_compile("cpu") is None


@pytest.mark.parametrize(
    ("arch", "tune", "march"),
    [("cooperlake", "generic", "native -mtune=cooperlake"), ("znver3", "znver3", None), ("x86-64", "generic", None)],
)  # fmt: skip
def test_gcc_is_told_what_to_tune_for_where_it_does_not_know_the_processor(
    arch: str, tune: str, march: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config as inductor

    gcc = tmp_path / "g++"
    gcc.write_text(f"#!/bin/sh\necho '  -march=    {arch}'\necho '  -mtune=    {tune}'\n")
    gcc.chmod(0o755)
    monkeypatch.setenv("CXX", str(gcc))
    for before, after in ((None, march), ("haswell", "haswell")):  # left alone where somebody has set it
        with inductor.patch({"cpp.march": before}):
            tune_compiler.__wrapped__()
            assert inductor.cpp.march == after


def test_every_precision_of_the_recipe_is_one_the_counts_know() -> None:
    asked = get_args(EngineConfig.model_fields["precision"].annotation)
    assert set(asked) == {"auto", *get_args(Precision)}


# In real runs


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_run_on_a_gpu_that_is_not_there_ends_with_code_2(trainer: Trainer) -> None:
    refused = trainer("run", "--engine.device", "cuda")
    assert refused.exit == 2 and "torch sees no GPU" in refused.said


def test_a_run_without_a_compiler_trains_eagerly_and_says_why(trainer: Trainer, tmp_path: Path) -> None:
    ended = trainer("run", "--engine.compile", "on", PATH=str(tmp_path), CXX="")
    (choice,) = ended.all("engine")
    assert ended.exit == 0 and not choice["choice"]["compiled"]
    assert any("there is none; install g++" in str(candidate["error"]) for candidate in choice["candidates"])


def test_a_compiler_that_fails_costs_the_compilation_and_not_the_run(
    trainer: Trainer, tmp_path: Path
) -> None:
    broken = tmp_path / "bin" / "g++"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'ld: cannot find -lgomp' >&2\nexit 1\n")
    broken.chmod(0o755)
    environment = {
        "PATH": str(broken.parent),
        "CXX": "g++",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
    }
    ended = trainer("run", "--engine.compile", "on", "--train.minutes", "0.002", **environment)
    (choice,) = ended.all("engine")
    assert ended.exit == 0 and not choice["choice"]["compiled"], ended.said
    assert any("compiler" in str(candidate["error"]) for candidate in choice["candidates"])


def test_the_choice_of_the_first_process_holds_for_all_even_where_another_would_be_made(
    trainer: Trainer,
) -> None:
    stopped = trainer("run", *AUTO, "--stop-after", "0s")
    assert stopped.exit == 75 and len(stopped.all("engine")[0]["candidates"]) >= 2
    events = trainer.run("run").events.path
    choice = {"device": "cpu", "precision": "bf16", "compiled": False, "attention": "fused"}
    lines = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    lines = [line | {"choice": choice} if line["event"] == "engine" else line for line in lines]
    events.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    resumed = trainer("run", *AUTO)
    assert resumed.exit == 0 and "using bf16 eager, fused attention" in resumed.said
    assert not resumed.all("engine")


def test_other_engine_settings_on_resume_are_obeyed_and_recorded(trainer: Trainer) -> None:
    assert trainer("run", "--stop-after", "0s").exit == 75
    resumed = trainer("run", "--engine.precision", "bf16")
    run = trainer.run("run")
    assert resumed.exit == 0 and "using bf16 eager, explicit attention" in resumed.said
    warnings: list[dict[str, Any]] = [event for event in run.events.read() if event["event"] == "warning"]
    assert any("other engine settings" in w["message"] and "last digits" in w["message"] for w in warnings)
    assert [row["step"] for row in run.rows()] == list(range(1, 13))


def test_a_compiled_run_goes_on_eagerly_where_there_is_no_compiler_any_more(
    trainer: Trainer, tmp_path: Path
) -> None:
    compiled = ("--engine.compile", "on")
    assert trainer("run", *compiled, "--stop-after", "0s", PATH=str(tmp_path), CXX="").exit == 75
    events = trainer.run("run").events.path
    events.write_text(
        events.read_text(encoding="utf-8").replace('"compiled": false', '"compiled": true'), encoding="utf-8"
    )
    resumed = trainer("run", *compiled, PATH=str(tmp_path), CXX="")
    assert resumed.exit == 0 and "using fp32 eager" in resumed.said
    assert "no longer uses fp32 compiled" in events.read_text(encoding="utf-8")


@pytest.mark.sampled
def test_a_compiled_run_killed_on_its_way_comes_to_the_same_end(trainer: Trainer, tmp_path: Path) -> None:
    flags = ("--engine.compile", "on", "--model.dropout", "0")
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    whole = trainer("whole", *flags, **cache)
    assert whole.exit == 0 and whole.all("engine")[0]["choice"]["compiled"], whole.said
    killed = ({"at": 'writes: "event": "validation"+"step": 8', "do": "SIGKILL"},)
    assert trainer("killed", *flags, plans=killed, **cache).exit == -9
    assert trainer("killed", *flags, **cache).exit == 0
    assert trainer.story("killed") == trainer.story("whole")
