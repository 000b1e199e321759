"""`glassformer calibrate RUN`: says 70%, right 70%?"""

from __future__ import annotations

from pathlib import Path

import glassformer as gf
from glassformer import charts
from glassformer.cli.terminal import document, facts, note, table


def calibrate(
    run: Path,
    /,
    *,
    out: Path | None = None,
    apply: bool = False,
    base: Path | None = None,
    json: bool = False,
) -> None:
    """Measure how far a plain network can be taken at its word, and what temperature scaling would do.

    Args:
        run: A finished run of task classify or marks.
        out: Save the reliability diagram: .html, .svg, .png or .json.
        apply: Store the fitted temperature with the model; predictions use it from then on.
        base: The folder that the recipe's data.paths start from; the current one.
        json: One JSON document instead of tables.
    """
    from glassformer.train.launch import prepare_process

    prepare_process()
    opened = gf.Run.open(run)
    data = gf.open_table(opened, base)
    model = gf.load_network(run)
    for warning in model.warnings:
        note(f"warning: {warning}")
    found = gf.reliability_of(model, data)
    if out is not None:
        title = f"{found.measured.num_rows:,} {found.part} rows: says 70%, right 70%?"
        charts.save(charts.reliability(found.rows(), series="scores", title=title), out)
        note(f"The diagram is in {out}.")
    if apply:
        with opened.lock():
            gf.apply_temperature(model, found, opened.model)
    if json:
        document({"run": str(run), **found.to_dict(), "applied": apply}, "calibration")
        return
    table(found.measured.rows())
    measured = found.measured
    facts(
        {
            "rows": f"{measured.num_rows:,} {found.part} rows",
            "right": f"{measured.accuracy:.2%}",
            "sure, on average": f"{measured.confidence:.2%}",
            "ECE": measured.ece,
            "ECE by chance": f"{measured.ece_by_chance:.4g}, up to {measured.ece_by_chance_high:.4g}",
            "ECE scaled": found.scaled.ece if found.scaled else None,
        }
    )
    print(found.verdict)
    print(f"Temperature scaling: {found.advice}")
    for warning in found.warnings:
        note(f"warning: {warning}")
    if apply and found.temperature:
        note(f"Stored with the model: T = {found.temperature.value:.4f}.")
    elif model.columns.temperature != 1:
        note(f"Stored with the model: T = {model.columns.temperature:.4f}.")
