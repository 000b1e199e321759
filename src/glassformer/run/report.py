"""report.html: the story of a run on one page, from what is in its folder and nothing else.

The page is self-contained (styles and charts inside, no script, no network), so it can be mailed. Without the
extra `plots` every chart is a table instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from glassformer import charts
from glassformer.files import write_text
from glassformer.run import checkpoints, page
from glassformer.run.curves import smooth, thin
from glassformer.run.folder import Run
from glassformer.run.report_table import calibration_section, table_section
from glassformer.units import show_bytes, show_count, show_flops, show_seconds

MOST_TOKENS = 40
"""Rows and columns of the attention picture that can still be read."""
SAMPLES_SHOWN = 3
_LEARNED_FROM = "What the model learned from, read before the first step."
_WHAT_IT_WRITES = (
    ("What it writes", "The same prompts as training went on; the newest first."),
    ("What it says", "The same rows, held out, as training went on; the newest first."),
)

Rows = Sequence[Mapping[str, Any]]


def write_report(run: Run) -> Path:
    """Write `report.html` into the run's folder and return its path."""
    events: dict[str, list[dict[str, Any]]] = {}
    for event in run.events.read():
        events.setdefault(event["event"], []).append(event)
    begun = events.get("start", [{}])[-1]
    unit, loss_unit = begun.get("unit", "token"), begun.get("loss_unit", "nats per token")
    steps, validation, samples = (run.events.curve(name) for name in ("step", "validation", "sample"))
    body = [
        *_head(run, unit, loss_unit),
        page.section("How it learned", "", _losses(steps, validation, loss_unit)),
        page.section("Says 70%, right 70%?", *calibration_section(events.get("calibration", []))),
        page.section(*_WHAT_IT_WRITES[unit == "row"], _samples(samples, unit)),
        page.section("Where it looks", *_attention(events.get("attention", []))),
        page.section("Pace and steadiness", "", _pace(steps, unit)),
        page.section(f"The {'table' if unit == 'row' else 'text'}", _LEARNED_FROM, *_text(events)),
        page.section("What it cost", "", _cost(run, events, unit)),
        page.section("How this machine was used", *_engine(events.get("engine", []))),
        page.section("Checkpoints", "Loading checks every file against its SHA-256.", _checkpoints(run)),
        page.section("What happened", "", _happened(run)),
        page.section("How to make it again", "", _recipe(run)),
    ]
    write_text(run.path / "report.html", page.page(f"{run.name}: a glassformer run", body))
    return run.path / "report.html"


def _head(run: Run, unit: str, loss_unit: str) -> list[str]:
    summary, machine = run.summary() | run.judged(), run.manifest.get("machine", {})
    shown = {
        "test_accuracy": ("right, on test rows", "{:.2%}".format),
        "accuracy": ("right, on validation rows", "{:.2%}".format),
        "test_rmse": ("off by, on test rows (rmse)", "{:.4g}".format),
        "rmse": ("off by, on validation rows (rmse)", "{:.4g}".format),
        "test_r2": ("R², test rows", "{:.3f}".format),
        "r2": ("R², validation rows", "{:.3f}".format),
        "val_loss": (f"validation loss, {loss_unit}", "{:.4g}".format),
        "val_bits_per_byte": ("bits per byte, validation", "{:.4g}".format),
        "train_loss": ("training loss, last step", "{:.4g}".format),
        "parameters": ("parameters", show_count),
        "steps": ("steps", "{:,}".format),
        "tokens": (f"{unit}s seen", show_count),
        "seconds": ("training time", show_seconds),
        "tokens_per_second": (f"{unit}s per second", show_count),
        "utilisation": ("of the measured matmul peak", "{:.0%}".format),
        "flops": ("arithmetic", show_flops),
    }
    values = [
        (what, value if isinstance(value, str) else render(value))
        for key, (what, render) in shown.items()
        if (value := summary.get(key)) is not None and not isinstance(value, dict)
    ]
    status = summary["status"]
    facts = [str(run.recipe["name"])] if run.recipe.get("name") else []
    if machine:
        accelerators = ", ".join(machine["accelerators"])
        facts.append(accelerators or f"{machine['cpu']}, {machine['cores']} cores")
    facts += [f"{name} {run.manifest[name]}" for name in ("glassformer",) if name in run.manifest]
    return [
        f'<header><h1>{page.show(run.name)} <span class="pill {status}">{status}</span></h1>'
        f'<div class="quiet">{page.show(" · ".join(facts))}</div></header>',
        page.cards(values),
    ]


def _losses(steps: Rows, validation: Rows, loss_unit: str) -> str:
    training = [{**row, "curve": "training"} for row in steps]
    held_out = [{**row, "curve": "validation"} for row in validation]
    log = not any(row["loss"] <= 0 for row in [*steps, *validation])
    title = f"loss ({loss_unit}, log scale)" if log else f"loss ({loss_unit})"
    look: Any = {"y_title": title, "series": "curve", "log_y": log, "size": (960, 320)}
    raw = charts.line(thin(training, "loss"), "step", "loss", faint=True, **look)
    clear = charts.line([*thin(smooth(training, "loss"), "loss"), *held_out], "step", "loss", **look)
    at = {row["step"]: row["loss"] for row in steps}
    rows = [
        {"step": row["step"], "training": at.get(row["step"]), "validation": row["loss"]}
        for row in validation
    ]
    rows = rows or [{"step": step, "training": loss} for step, loss in at.items()]
    caption = "Loss on training batches and on what is held out"
    loss = _figure(charts.layers(raw, clear), caption, rows, *rows[0]) if rows else ""
    judged = (
        ("bits_per_byte", "Bits for each byte of text held out"),
        ("accuracy", "Share of the validation rows that are right"),
        ("rmse", "Off by, on validation rows (rmse, in the target's own unit)"),
    )
    return loss + "".join(_small(validation, name, caption, size=(960, 180)) for name, caption in judged)


def _pace(steps: Rows, unit: str) -> str:
    curves = [
        _small(steps, "tokens_per_second", f"{unit.capitalize()}s per second", from_zero=True),
        _small(steps, "utilisation", "Utilisation: share of the measured matmul peak", from_zero=True),
        _small(steps, "learning_rate", "Learning rate", from_zero=True),
        _small(steps, "grad_norm", "Gradient norm before clipping"),
    ]
    return f'<div class="pair">{"".join(curves)}</div>' if any(curves) else ""


def _small(
    rows: Rows, name: str, caption: str, *, from_zero: bool = False, size: tuple[int, int] = (440, 150)
) -> str:
    """One curve against the steps, if there is any value of it."""
    drawn = thin(rows, name, most=300)
    spec = charts.line(drawn, "step", name, y_title="", from_zero=from_zero, size=size)
    return _figure(spec, caption, drawn, "step", name) if drawn else ""


def _figure(spec: charts.Spec, caption: str, rows: Rows, *columns: str, own_size: bool = False) -> str:
    """The chart, or a dozen of its rows as a table where charts cannot be drawn."""
    drawn = charts.svg(spec)
    if drawn:
        return page.figure(drawn, caption, own_size=own_size)
    few = [rows[index * (len(rows) - 1) // 11] for index in range(12)] if len(rows) > 12 else rows
    return f"<h3>{page.show(caption)}</h3>" + page.table(
        [{name: row.get(name) for name in columns} for row in few]
    )


def _samples(samples: Rows, unit: str) -> str:
    newest = [
        page.sample(f"step {row['step']:,}", row.get("prompt", ""), row["text"]) for row in reversed(samples)
    ]
    earlier = "".join(newest[SAMPLES_SHOWN:])
    shown = "".join(newest[:SAMPLES_SHOWN])
    if shown and unit == "row" and any("\n" in row["prompt"].strip("\n") for row in samples):  # pictures
        shown = f'<div class="cards">{shown}</div>'
    return shown + page.details(f"{len(newest[SAMPLES_SHOWN:])} earlier", earlier)


def _attention(found: Rows) -> tuple[str, str]:
    if not found:
        return "", ""
    event = found[-1]
    names = [_visible(token) for token in event["tokens"][:MOST_TOKENS]]
    keys = [_visible(token) for token in event.get("keys", event["tokens"])[:MOST_TOKENS]]
    cells: list[dict[str, Any]] = [
        {"query": query, "key": key, "weight": weight or None}  # masked: exactly 0
        for query, row in enumerate(event["pattern"][:MOST_TOKENS])
        for key, weight in enumerate(row[:MOST_TOKENS])
    ]
    spec = charts.heatmap(
        cells,
        "key",
        "query",
        "weight",
        labels=keys,
        y_labels=names,
        x_title="looks at (key)",
        y_title="from (query)",
        size=400,
    )
    strongest = sorted((cell for cell in cells if cell["weight"]), key=lambda cell: -cell["weight"])[:12]
    rows = [{"from": names[c["query"]], "looks at": keys[c["key"]], "weight": c["weight"]} for c in strongest]
    seen = "the tokens of the source" if "keys" in event else "the tokens before it and to itself"
    lead = f"Each row is a token and shows how much weight it gives to {seen}."
    caption = f"Layer {event['layer']}, head {event['head']}"
    picture = _figure(spec, caption, rows, "from", "looks at", "weight", own_size=True)
    return lead, f'<div class="pair">{picture}<div><h3>The strongest links</h3>{page.table(rows)}</div></div>'


def _text(events: Mapping[str, Rows]) -> tuple[str, ...]:
    if "text_report" not in events:
        return ()
    report = events["text_report"][-1]["report"]
    if "table" in report:
        return table_section(report)
    sources = report.get("sources", [])
    telling = {
        key for row in sources for key, value in row.items() if value
    }  # a column of zeros tells nothing
    shares = {
        "lines that repeat an earlier one of their document": report.get("repeated_lines"),
        "stretches that repeat an earlier one of their document": report.get("repeated_stretches"),
        "validation text that also occurs in training": report.get("overlap_stretches"),
    }
    rows = [{"share of": what, "percent": 100 * share} for what, share in shares.items() if share is not None]
    return (
        page.table([{key: value for key, value in row.items() if key in telling} for row in sources]),
        page.table(rows),
        page.notes(report.get("warnings", [])),
    )


def _cost(run: Run, events: Mapping[str, Rows], unit: str) -> str:
    summary = run.summary()
    found = {**summary, **(events["cost"][-1] if "cost" in events else {})}
    flops, seconds, tokens, joules = (found.get(name) for name in ("flops", "seconds", "tokens", "joules"))
    values = []
    if flops:
        values.append(("floating-point operations", show_flops(flops)))
    if flops and tokens:
        values.append((f"for each {unit}", show_flops(flops / tokens)))
    if flops and seconds:
        values.append(("a second, on average", show_flops(flops / seconds)))
    if seconds:
        values.append(("of training", show_seconds(seconds)))
    if joules:
        values.append(
            ("of electricity", f"{joules / 3.6e6:.3g} kWh" if joules >= 3.6e4 else f"{joules:,.0f} J")
        )
    return page.cards(values) if values else ""


def _engine(found: Rows) -> tuple[str, ...]:
    if not found:
        return ()
    event = found[-1]
    candidates = event.get("candidates", [])
    measured = [row for row in candidates if row.get("tokens_per_second")]
    chosen = next(
        (row["name"] for row in candidates if row.get("choice") == event["choice"]), event["choice"]
    )
    lead = f"Chosen: {chosen}" + (f", by measuring {len(candidates)} ways." if len(candidates) > 1 else ".")
    spec = charts.bars(measured, "name", "tokens_per_second", value_title="tokens per second", width=700)
    columns = ("name", "tokens_per_second", "step_seconds", "error")
    rows = [{key: row[key] for key in columns if key in row} for row in candidates]
    chart = charts.svg(spec) if len(measured) > 1 else None
    return lead, page.figure(chart, "") if chart else "", page.table(rows, chosen=str(chosen))


def _checkpoints(run: Run) -> str:
    rows = []
    for entry in checkpoints.list_checkpoints(run.checkpoints):
        first = {"name": entry.name, "size": show_bytes(entry.num_bytes)}
        for file, digest in (entry.digests or {"(no manifest)": ""}).items():
            rows.append({**first, "file": file, "SHA-256": digest})
            first = {"name": "", "size": ""}
    return page.table(rows, code="SHA-256")


def _happened(run: Run) -> str:
    """Everything but the regular rows, in order."""
    rows = []
    for event in run.events.read():
        kind = event["event"]
        if kind == "resumed":
            what = f"went on from step {event['step']:,}, {event.get('lost_steps', 0):,} steps lost"
            what = "; ".join([what, *map(str, event.get("findings", []))])
        elif kind in ("warning", "fault", "memory"):
            what = event["message"]
        elif kind in ("start", "done", "stopped"):
            what = f"step {event['steps']:,}" if "steps" in event else ""
        else:
            continue
        rows.append({"time": event["time"][:19].replace("T", " "), "event": kind, "what": what})
    return page.table(rows)


def _recipe(run: Run) -> str:
    libraries = run.manifest.get("libraries", {})
    made_with = {key: value for key, value in run.manifest.items() if key not in ("libraries", "machine")}
    rows = [{"what": key, "value": value} for key, value in {**made_with, **libraries}.items() if value]
    return (
        f"<pre>{page.show(tomli_w.dumps(run.recipe))}</pre>"
        + page.details("Code, libraries and digests", page.table(rows))
        + _advice()
    )


def _advice() -> str:
    if charts.svg(charts.line([], "x", "y")):
        return ""
    return "<footer>Charts are tables here; with pip install 'glassformer[plots]' they are drawn.</footer>"


def _visible(token: str) -> str:
    """A token as one can see it: white space shown by signs."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")[:12] or "∅"
