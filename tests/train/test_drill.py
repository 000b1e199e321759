"""A drill kills, stops and damages real processes: what comes through is the same to the bit; what is not, it tells."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
from trainer import RECIPE

import glassformer as gf
from glassformer.cli.main import main
from glassformer.errors import UsageError
from glassformer.train.drill.command import KEEP, MOST_TIMEOUT
from glassformer.train.drill.disturbances import Disturbance, Kind, draw
from glassformer.train.drill.sizes import PILOT_STEPS, STEPS_EACH, Measured, fit

TINY = RECIPE.replace("steps = 12", "steps = 400") + "\n[parallel]\ntimeout = 5\n"
PAGE = Path(__file__).parents[2] / "docs" / "drill.md"
MEASURED = Measured(elapsed=10.0, start=2.0, step=0.5, save=0.1, restart=3.0, end=1.0)


@pytest.fixture
def folder(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user stands: a recipe and its texts."""
    (tmp_path / "texts").mkdir()
    for number in range(40):
        line = (
            f"In room {number} the cat sat on mat {number * 7 % 30}; nobody in house {number % 9} knew why.\n"
        )
        (tmp_path / "texts" / f"{number}.txt").write_text(line * 2, encoding="utf-8")
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSFORMER_HOME", str(home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)  # which is read once
    return tmp_path


def processes_of(folder: Path) -> list[int]:
    """Those that were begun in `folder` and still live."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={folder / 'temporary'}".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def test_one_rank_is_killed_stopped_damaged_and_without_a_disk_and_ends_the_same_to_the_bit(
    folder: Path,
) -> None:
    said: list[str] = []
    found = gf.drill("tiny.toml", kills=2, minutes=10, seed=7, keep=folder / "kept", progress=said.append)
    rows = found.rows()
    assert found.passed, (rows, found.comparison)
    assert found.ranks == 1 and found.kills == 2 and found.left_out == 0 and "seed 7" in said[0]
    assert Counter(row["fault"].split(" of ")[0].split(" on ")[0] for row in rows) == {
        "SIGKILL": 2, "bit flip": 1, "NaN": 1, "full disk": 1, "SIGSTOP": 1,
    }  # fmt: skip
    seen = {row["fault"].split(" ")[0]: row for row in rows}
    found_by = (
        "not finite at step",
        "silent at step",
    )  # by its loss or, where that was computed twice, by that
    assert any(words in seen["NaN"]["seen"] for words in found_by) and "again" in seen["NaN"]["seen"]
    assert "File too large" in seen["full"]["seen"]
    assert re.search(r"bit \d of byte [\d,]+ of (step-\d+)/.*found in \1/", seen["bit"]["seen"])
    assert seen["bit"]["steps_lost"] >= found.checkpoint_every  # one checkpoint further back
    assert 0.5 <= seen["SIGSTOP"]["seconds_lost"] < 10 and seen["SIGSTOP"]["steps_lost"] == 0
    assert {same.what for same in found.comparison} == {
        "losses", "validation", "sample", "weights", "optimiser", "samples seen", "finished model",
    }  # fmt: skip
    assert gf.Run.open(folder / "kept" / "disturbed").summary()["status"] == "done"
    assert not processes_of(folder) and not list((folder / "temporary").iterdir())


def test_two_ranks_lose_a_rank_their_launcher_and_one_that_stands_still_and_end_the_same_to_the_bit(
    folder: Path,
) -> None:
    found = gf.drill(
        tomllib.loads(TINY), ranks=2, minutes=15, seed=1,
        disturbances=[
            Disturbance("NaN", 4, 1), Disturbance("kill", 9, 1, "save", 3), Disturbance("stop", 14, 0),
            Disturbance("kill", 18, "launcher"),
        ],
    )  # fmt: skip
    rows = found.rows()
    assert found.passed, (rows, found.comparison)
    assert [row["fault"] for row in rows] == [
        "NaN on rank 1", "SIGKILL of rank 1", "SIGSTOP of rank 0", "SIGKILL of launcher",
    ]  # fmt: skip
    assert rows[1]["moment"] == "within a save" and "went on from step" in rows[1]["seen"]
    assert all("exit 1, all gone in" in row["seen"] for row in rows[1:3])
    assert all("stuck" not in row["seen"] for row in rows)
    assert not processes_of(folder) and not list((folder / "temporary").iterdir())


def test_a_weight_that_changes_by_one_bit_is_not_found_by_training_but_by_the_drill(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--kills", "0", "--minutes", "10", "--seed", "3", "--sabotage", "--json"]
    assert main(["drill", "tiny.toml", *flags]) == 3
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["version"]) == ("glassformer.drill", 1)
    assert not told["passed"] and not told["identical"] and told["whole"]
    different = {same["what"] for same in told["comparison"] if not same["identical"]}
    assert {"weights", "losses", "finished model"} <= different and "samples seen" not in different
    (changed,) = [row for row in told["disturbances"] if row["fault"].startswith("a changed weight")]
    assert changed["identical"] is False and changed["seen"] == "nothing"
    before = told["disturbances"][: told["disturbances"].index(changed)]
    assert all(row["identical"] for row in before)


def test_ctrl_c_ends_the_drill_with_all_its_processes_and_what_it_wrote(folder: Path) -> None:
    command = [sys.executable, "-m", "glassformer", "drill", "tiny.toml", "--ranks", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as drill:
        until = time.monotonic() + 60
        while not list((folder / "temporary").glob("*/starts/*/pid-1")) and time.monotonic() < until:
            time.sleep(0.05)
        assert len(processes_of(folder)) >= 4  # the drill, its server, the launcher, the ranks
        drill.send_signal(signal.SIGINT)
        _, said = drill.communicate(timeout=30)
    assert drill.returncode == 130 and "Interrupted" in said
    assert not processes_of(folder) and not list((folder / "temporary").iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["tiny.toml", "--kills", "-1"], "kills is -1"),
        (["tiny.toml", "--minutes", "0"], "minutes is 0"),
        (["missing.toml"], "There is no recipe missing.toml"),
        (["tiny.toml", "--ranks", "3"], "does not divide over 3 ranks"),
        (["tiny.toml", "--train.steps", "3"], "trains 3 steps; a drill needs 6"),
        (["tiny.toml", "--keep", "texts"], "texts is there already"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["drill", *options]) == 2
    assert words in capsys.readouterr().err


def test_a_drill_under_torchrun_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "here",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="starts its ranks itself"):
        gf.drill("tiny.toml")


def test_the_same_seed_draws_the_same_disturbances_and_every_one_has_its_turn() -> None:
    size = {"kills": 20, "ranks": 2, "steps": 200, "every": 7}
    drawn = draw(5, **size)
    assert drawn == draw(5, **size) and drawn != draw(6, **size)
    assert [one.step for one in drawn] == sorted(one.step for one in drawn)
    kills = [one for one in drawn if one.kind == "kill"]
    assert len(kills) == 20 and {one.whom for one in kills} == {0, 1, "all", "launcher"}
    assert Counter(one.moment for one in kills) == {"save": 5, "start": 2, "step": 13}
    assert Counter(one.kind for one in drawn if one.kind != "kill") == {
        "bit flip": 3, "NaN": 3, "full disk": 1, "stop": 1,
    }  # fmt: skip
    assert all(one.step > 14 for one in drawn if one.kind == "bit flip")  # two checkpoints are there
    assert all(1 <= one.step < 200 - 7 for one in drawn)


@pytest.mark.parametrize("minutes", [2.0, 3.0, 5.0, 30.0])
def test_a_drill_is_as_long_as_fits_into_its_minutes_and_no_longer_than_the_recipe(minutes: float) -> None:
    given: dict[str, Any] = {"ends": 12, "waits": 5.0, "disturbances": 16}
    size = fit(MEASURED, minutes=minutes, most=None, **given)
    assert size.seconds <= 0.9 * minutes * 60 and 1 <= size.every <= size.steps // 3
    assert fit(MEASURED, minutes=minutes, most=20, **given).steps <= 20


def test_too_few_minutes_are_refused_with_those_that_it_takes() -> None:
    given: dict[str, Any] = {"most": None, "ends": 12, "waits": 5.0, "disturbances": 16}
    with pytest.raises(UsageError, match=r"take about 1\.\d minutes\. Give --minutes 1\.\d") as refused:
        fit(MEASURED, minutes=0.5, **given)
    assert "0.5 minutes are too short" in str(refused.value) and "16 disturbances" in str(refused.value)
    needed = re.search(r"--minutes ([\d.]+)", str(refused.value))
    assert needed and fit(MEASURED, minutes=float(needed[1]), **given).steps >= 12


def test_the_page_has_a_row_for_every_kind_of_disturbance_and_the_numbers_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `([^`]+)` \|", page.partition("## What befalls it")[2].partition("\n## ")[0], re.M
    )
    assert rows == list(get_args(Kind))
    assert f"A pilot of {PILOT_STEPS} steps" in page and f"at least {KEEP}:" in page
    assert f"at most {MOST_TIMEOUT:.0f} s" in page and f"and {STEPS_EACH} for each disturbance" in page
