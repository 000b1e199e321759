"""`glassformer plan RECIPE|PRESET`: what a run will cost, before spending."""

from __future__ import annotations

import gc
from dataclasses import asdict
from pathlib import Path

from cyclopts import App

import glassformer as gf
from glassformer.cli.overrides import Values
from glassformer.cli.terminal import ANSWER_IS_NO, columns, document, facts, heading, note, styled, table

plan = App(name="plan", help="What a run will cost, before spending: time, memory, money, energy, failures.")


@plan.default
def run(
    what: str | None = None,
    /,
    *,
    tokens: str | None = None,
    hardware: str | None = None,
    count: str | None = None,
    days: str | None = None,
    budget: str | None = None,
    length: str | None = None,
    batch: str | None = None,
    precision: str | None = None,
    layout: str | None = None,
    law: str | None = None,
    unique: str | None = None,
    serve: str | None = None,
    price: str | None = None,
    grid_carbon: float | None = None,
    calibrate: Path | None = None,
    explain: str | None = None,
    html: Path | None = None,
    json: bool = False,
    model: Values = None,
) -> None:
    """Say what a run will cost: each number with an interval, its formula and its sources.

    Args:
        what: A recipe's name or file, or a published model (glassformer plan presets). Without it, the best model for a
            budget.
        tokens: Training tokens, such as 15T; otherwise the recipe's or the preset's, or the best number for the size.
        hardware: An accelerator (glassformer plan hardware); otherwise this machine for a recipe, H100 for a preset.
        count: So many accelerators; left out, the fewest that take --days, or 90.
        days: How long it may take: 60, 12h or "2 weeks".
        budget: What may be spent: $5M, 1e24 (FLOPs), or a time.
        length: Tokens in a row.
        batch: Rows in a step.
        precision: fp32, tf32, bf16, fp16, fp8, fp4, autocast, bf16-pure or bf16-grads16.
        layout: How to divide the run, such as data=128,tensor=8,pipeline=16; left out, the quickest that fits.
        law: A published law of loss (besiroglu-2024), or the .json of your own from glassformer scale fit --out.
        unique: Tokens that there are; more are repeats.
        serve: Tokens to be served later, which the budget pays as well.
        price: Dollars for an hour of an accelerator, instead of the table's.
        grid_carbon: Kilograms of CO2 for each kWh of your grid; there is no default.
        calibrate: A table of steps that you measured: three rows of your cluster bring its other steps nearer.
        explain: Open one number down to its inputs and sources, such as days.
        html: Write the page in which every number opens.
        json: One JSON document.
        model: --model.KEY VALUE: another value of the recipe's model.
    """
    gc.disable()  # a plan leaves next to nothing to collect, and looking for it takes a tenth of the time
    try:
        found = gf.plan(
            what, {f"model.{key}": value for key, value in (model or {}).items()}, tokens=tokens, hardware=hardware,
            count=count, days=days, budget=budget, length=length, batch=batch, precision=precision, layout=layout,
            law=law, unique=unique, serve=serve, price=price, grid_carbon=grid_carbon, calibrate=calibrate,
        )  # fmt: skip
        _show(found, explain, html, json=json)
    finally:
        gc.enable()


def _show(found: gf.Plan, explain: str | None, html: Path | None, *, json: bool) -> None:
    if html is not None:
        from glassformer.plan.page import write_page

        write_page(found, html)
    if json:
        document(found.to_dict(), "run_plan")
        return
    from glassformer.plan.sheet import opened, sheet

    if explain is not None:
        styled(opened(found.explain(explain), columns()))
        return
    styled(sheet(found, columns()))
    for warning in found.warnings:
        note(f"warning: {warning}")
    if html is not None:
        note(f"The page is {html}.")


@plan.command
def presets(*, json: bool = False) -> None:
    """List published models that can be planned by name.

    Args:
        json: One JSON document instead of a table.
    """
    from glassformer.plan.lists import preset_rows

    rows = preset_rows()
    document({"presets": rows}, "plan_presets") if json else table(rows)


@plan.command
def hardware(*, json: bool = False) -> None:
    """List accelerators, with what is known of each.

    Args:
        json: One JSON document instead of a table.
    """
    from glassformer.plan.lists import hardware_rows

    rows = hardware_rows()
    document({"hardware": rows}, "plan_hardware") if json else table(rows)


@plan.command
def claims(*, json: bool = False) -> None:
    """Settle six claims about what training costs, each computed anew from published rows.

    Args:
        json: One JSON document instead of tables.
    """
    from glassformer.plan.claims import claims as settled
    from glassformer.plan.lists import claim_rows

    found = settled()
    if json:
        document({"claims": [{**asdict(one), "readings": one.rows()} for one in found]}, "plan_claims")
        return
    for one in found:
        heading(f"{one.name}: {one.text}")
        print(f"{one.verdict}{f': {one.on}' if one.on else ''}")
        table(claim_rows(one))
        if one.numbers:
            facts(one.numbers)
        print(f"from {len(one.used)} rows: {', '.join(one.used[:6])}{', ...' if len(one.used) > 6 else ''}")


@plan.command
def check(run: Path, /, *, plan: Path | None = None, json: bool = False) -> int:
    """Compare what a finished run took with what was planned; it is kept in the run and in your calibration table.

    Args:
        run: The folder of a finished run.
        plan: What was planned, from glassformer plan --json; otherwise the run's own plan.json, or a plan made now.
        json: One JSON document instead of a table.
    """
    from glassformer.plan.check import check_plan

    found = check_plan(run, plan)
    if json:
        document(found.to_dict(), "plan_check")
    else:
        table(found.rows)
        print(found.sentence())
        for warning in found.warnings:
            note(f"warning: {warning}")
    return 0 if found.holds else ANSWER_IS_NO


@plan.command
def calibration(*, json: bool = False) -> None:
    """Show every run that was checked against its plan: how good plans are on your machines.

    Args:
        json: One JSON document instead of a table.
    """
    from glassformer.plan.check import calibration_rows, calibration_sentence, told_rows

    rows = calibration_rows()
    if json:
        document({"checks": rows}, "plan_calibration")
        return
    table(told_rows(rows))
    print(calibration_sentence(rows))
