"""`glassformer runs list|show|verify|scrub|repair|consolidate`: what is on disk."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

import glassformer as gf
from glassformer import charts
from glassformer.cli.terminal import ANSWER_IS_NO, counted, document, facts, note, sparkline, table
from glassformer.run.curves import thin
from glassformer.run.repair import Repaired
from glassformer.run.repair import repair as repair_run
from glassformer.run.scrub import Scrubbed, run_folders
from glassformer.run.scrub import scrub as scrub_run
from glassformer.units import show_bytes

_LISTED = (
    "run",
    "status",
    "steps",
    "tokens",
    "val_loss",
    "val_bits_per_byte",
    "accuracy",
    "r2",
    "tokens_per_second",
    "parameters",
)
_CURVE_WIDTH = 60

runs = App(name="runs", help="List, show, verify, mend and consolidate runs.")


@runs.command(name="list")
def list_runs(root: Path = Path("runs"), /, *, json: bool = False) -> None:
    """List the runs in a folder.

    Args:
        root: The folder that holds them.
        json: One JSON document instead of a table.
    """
    found = [{**run.summary(), **run.judged()} for run in gf.Run.list(root)]
    if json:
        document({"runs": found}, "runs")
    elif found:
        table([{name: summary.get(name) for name in _LISTED} for summary in found])
    else:
        note(f"There are no runs in {root}. Make one with: glassformer train")


@runs.command
def show(run: Path, /, *, out: Path | None = None, json: bool = False) -> None:
    """Show a run in numbers, and its loss curve.

    Args:
        run: The folder of the run.
        out: Save a chart of its losses here: .html, .svg, .png or .json.
        json: One JSON document instead of a table.
    """
    opened = gf.Run.open(run)
    if out is not None:
        charts.save(_losses(opened), out)
        note(f"The chart is in {out}.")
    if json:
        document({"path": str(run), **opened.summary(), **opened.judged()}, "run")
        return
    losses = [row["loss"] for row in thin(opened.rows(), "loss", most=_CURVE_WIDTH)]
    report = opened.path / "report.html"
    facts(
        {
            **counted({**opened.summary(), **opened.judged()}, opened.unit),
            "loss": sparkline(losses, _CURVE_WIDTH),
            "report": report if report.exists() else None,
        }
    )


def _losses(run: gf.Run) -> charts.Spec:
    names = {"step": "training", "validation": "validation"}
    rows = [{**row, "loss of": names[kind]} for kind in names for row in run.events.curve(kind)]
    unit = (run.events.last("start") or {}).get("loss_unit", "nats per token")
    return charts.line(rows, "step", "loss", series="loss of", y_title=f"loss ({unit})")


@runs.command
def verify(*run: Path, json: bool = False) -> int:
    """Read every byte of the checkpoints and models of runs and compare with their digests.

    Args:
        run: Folders of runs; without any, all in runs/.
        json: One JSON document instead of lines.
    """
    opened = [gf.Run.open(path) for path in run] or gf.Run.list(Path("runs"))
    found = {str(one.path): one.verify() for one in opened}
    damaged = [path for path, findings in found.items() if findings]
    if json:
        rows = [
            {"run": path, "findings": [asdict(one) for one in findings]} for path, findings in found.items()
        ]
        document({"whole": not damaged, "runs": rows}, "verify")
    for path, findings in found.items() if not json else ():
        print(f"{path}: {'damaged' if findings else 'whole'}")
        for finding in findings:
            print(f"  {finding}")
    if damaged:
        note("Training goes on from the newest whole checkpoint by itself. Check the disk and the memory.")
    return ANSWER_IS_NO if damaged else 0


@runs.command
def scrub(*run: Path, dry_run: bool = False, json: bool = False) -> int:
    """Read every byte of runs, set damaged checkpoints aside and remove what killed saves left.

    Args:
        run: Folders of runs; without any, all in runs/.
        dry_run: Change nothing, and say what would be done; works beside a run that is training.
        json: One JSON document instead of lines.
    """
    found = [scrub_run(path, dry_run=dry_run) for path in run or run_folders(Path("runs"))]
    whole = all(one.whole for one in found)
    if json:
        rows = [{**asdict(one), "whole": one.whole} for one in found]
        document({"whole": whole, "dry_run": dry_run, "runs": rows}, "scrub")
    for one in found if not json else ():
        _show_scrubbed(one, dry_run)
    if not whole:
        note("Mend what can be mended with: glassformer runs repair RUN --from ANOTHER_COPY")
    return 0 if whole else ANSWER_IS_NO


def _show_scrubbed(one: Scrubbed, dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    read = f"{one.num_files:,} files, {show_bytes(one.num_bytes)} read"
    print(f"{one.run}: {'whole' if one.whole else 'damaged'} ({read})")
    for finding in one.findings:
        print(f"  {finding}")
    for name in one.set_aside:
        print(f"  {would}set aside: {name}")
    for name in one.left_overs:
        print(f"  {would}removed: {name}")
    for line in one.torn_lines:
        print(f"  torn by a kill: line {line} of events.jsonl, which readers skip")
    if one.held_bytes:
        print(f"  holds {show_bytes(one.held_bytes)} of the disk for its next checkpoints")
    _show_newest(one)


def _show_newest(one: Scrubbed | Repaired) -> None:
    if one.newest is not None and one.lost_steps:
        print(f"  goes on from step {one.newest:,}: {one.lost_steps:,} steps lost")


@runs.command
def repair(
    run: Path, /, *, source: Annotated[Path | None, Parameter(name="--from")] = None, json: bool = False
) -> int:
    """Mend what is damaged in a run, to the bit as it was; what was damaged is kept beside.

    Args:
        run: The folder of the run.
        source: Another copy of this folder, to take whole files from.
        json: One JSON document instead of lines.
    """
    done = repair_run(run, source)
    if json:
        document({**asdict(done), "whole": done.whole}, "repair")
        return 0 if done.whole else ANSWER_IS_NO
    print(f"{run}: {'whole' if done.whole else 'still damaged'}")
    for row in done.mended:
        kept = f"; the damaged one is {row['kept']}" if row["kept"] else ""
        print(f"  mended: {row['what']}, {row['how']}{kept}")
    for name in done.set_aside:
        print(f"  set aside, could not be mended: {name}")
    for name in done.left_overs:
        print(f"  removed: {name}")
    for finding in done.findings:
        print(f"  {finding}")
    _show_newest(done)
    if not done.whole:
        note(
            "Another copy of the run may have what is missing: --from. A finished model is also written anew by the "
            "same glassformer train command, which trains no step again."
        )
    return 0 if done.whole else ANSWER_IS_NO


@runs.command
def consolidate(run: Path, /, *, out: Path, step: int | None = None, json: bool = False) -> None:
    """Write one model folder from a checkpoint of a run, whatever number of ranks saved it.

    Args:
        run: The folder of the run.
        out: The model folder to write: config.json, model.safetensors, tokenizer.json.
        step: Of which step; left out, the newest whole checkpoint.
        json: One JSON document instead of a table.
    """
    made = gf.consolidate(run, out, step=step)
    for problem in made.passed_over if not json else ():
        note(f"Passed over: {problem}")
    values = {"run": str(run), "out": str(made.path), "step": made.step, "bytes": made.num_bytes}
    if json:
        document({**values, "passed_over": list(made.passed_over)}, "consolidate")
    else:
        facts(values)
