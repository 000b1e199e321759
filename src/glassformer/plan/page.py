"""A plan as one page: every number opens to its formula, to what went into it, and to where that is from.

The page is self-contained: styles and pictures inside, no script, no network. Opening is HTML's own `details`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from glassformer.errors import UsageError
from glassformer.files import write_text
from glassformer.plan.plan import MAIN, Plan
from glassformer.plan.quantity import Quantity
from glassformer.plan.words import HELD, PARTS, bare, one_value, shown, shown_interval, titled
from glassformer.run import page

_COLOURS = (
    "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#8C6BB1", "#7A8794", "#B8A13A", "#4D4D4D",
)  # fmt: skip
"""Of Okabe and Ito (2008), and three more."""
_EXACT = ("FLOP", "parameters", "tokens", "rows", "steps", "accelerators")
"""Units of what is counted, or was given."""
_REACH = math.log(4)
"""An interval's picture goes from a quarter of the value to four times it."""

STYLE = """<style>
.numbers { display: grid; gap: 0; }
.numbers details { border-top: 1px solid var(--rule); }
.numbers > details:first-child { border-top: 0; }
.numbers summary { display: grid;
  grid-template-columns: minmax(170px, 1.25fr) minmax(120px, .8fr) minmax(170px, 1.15fr) 150px;
  gap: 14px; align-items: center; padding: 11px 6px; margin: 0; color: var(--ink); font-size: 14.5px; list-style: none;
  border-radius: 8px; }
.numbers summary::-webkit-details-marker { display: none; }
.numbers summary:hover { background: var(--code); }
.numbers summary > :first-child::before { content: "▸"; color: var(--accent); display: inline-block; width: 1.15em;
  transition: transform .12s; }
.numbers details[open] > summary > :first-child::before { transform: rotate(90deg); }
.numbers summary b { font-size: 17px; font-weight: 650; letter-spacing: -0.01em; font-variant-numeric: tabular-nums; }
.numbers summary i { font-style: normal; color: var(--quiet); font-size: 13px; font-variant-numeric: tabular-nums; }
.numbers svg { width: 150px; height: 18px; }
.opened { padding: 2px 6px 16px 26px; }
.opened > code { display: inline-block; background: var(--code); border: 1px solid var(--rule); border-radius: 8px;
  padding: 5px 10px; margin: 2px 0 8px; white-space: pre-wrap; }
.tree, .tree ul { list-style: none; margin: 0; padding: 0 0 0 16px; border-left: 2px solid var(--rule); }
.tree li { padding: 4px 0 4px 4px; font-size: 13.5px; }
.numbers .tree details { border: 0; }
.numbers .tree summary { display: block; padding: 0; font-size: 13.5px; border-radius: 4px; }
.numbers .tree summary b { font-size: 13.5px; font-weight: 620; letter-spacing: 0; }
.numbers .tree summary::before { content: "▸ "; color: var(--accent); margin-left: -1em; padding-right: 2px; }
.numbers .tree details[open] > summary::before { content: "▾ "; }
.numbers .tree summary > :first-child::before { content: none; }
.tree b { font-variant-numeric: tabular-nums; font-weight: 620; }
.tree span, .tree code { color: var(--quiet); }
.bar { display: flex; height: 34px; border-radius: 9px; overflow: hidden; gap: 1.5px; background: var(--rule);
  margin: 4px 0 12px; }
.bar div { min-width: 1.5px; color: white; font-size: 12.5px; line-height: 34px; text-align: center; overflow: hidden;
  white-space: nowrap; font-weight: 600; }
.legend { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 2px 34px;
  font-size: 13.5px; }
.legend + .scroll { margin-top: 16px; }
.legend div { display: grid; grid-template-columns: 14px 1fr auto 52px; gap: 9px; align-items: baseline;
  padding: 3px 0; }
.legend em { width: 11px; height: 11px; border-radius: 3px; display: inline-block; }
.legend b, .legend i { font-style: normal; font-weight: 500; font-variant-numeric: tabular-nums; text-align: right; }
.legend i { color: var(--quiet); }
.lede { font-size: 17px; max-width: 76ch; }
@media (max-width: 760px) { .numbers summary { grid-template-columns: 1fr auto;
  } .numbers summary svg { display: none; }
  .numbers summary i { grid-column: 2; text-align: right; } }
@media print { .numbers svg { display: none; } }
</style>"""


def write_page(plan: Plan, path: Path) -> Path:
    """Write the page of a plan."""
    if path.suffix.lower() != ".html":
        raise UsageError(f"A page cannot be written as {path.name}.", expected="A name ending in .html.")
    write_text(path, page.page(f"{plan.title}: a plan", [STYLE, *body(plan)]))
    return path


def card(plan: Plan) -> str:
    """What a notebook shows: the numbers, which open."""
    return page_part(f"<h3>{escape(plan.title)}</h3>" + numbers(plan, MAIN))


def page_part(inside: str) -> str:
    """A piece that brings its own style, to stand in somebody else's page."""
    names = {
        "--ink": "inherit",
        "--quiet": "#5b6775",
        "--rule": "#e3e7ec",
        "--accent": "#0072b2",
        "--code": "#f2f4f7",
    }
    own = "; ".join(f"{name}: {value}" for name, value in names.items())
    return f'{STYLE}<div style="{own}; font: 15px/1.5 system-ui, sans-serif">{inside}</div>'


def body(plan: Plan) -> Iterator[str]:
    """Section by section."""
    yield f"<header><h1>{escape(plan.title)}</h1><p class='lede'>{escape(plan.sentence())}</p></header>"
    yield page.section("Before you believe it", "", page.notes(list(plan.warnings)))
    yield page.section(
        "What it takes", "Each number opens to its formula, what went into it, and where that is from. The line shows "
        "80 % on a scale of factors, from a quarter to four times the value.", numbers(plan, MAIN),
    )  # fmt: skip
    yield page.section(
        "Where a step goes", f"{shown(plan.step_seconds)} a step, by what the busiest accelerator spends it on.",
        bar(plan.split(), "seconds", "s", PARTS),
    )  # fmt: skip
    yield page.section(
        "What an accelerator holds", plan.memory_sentence(), bar(plan.memory_rows(), "bytes", "bytes", HELD,
        spare=plan.spare()),
    )  # fmt: skip
    yield page.section("How it is divided", plan.layout_sentence(), page.table(list(plan.layouts), chosen="chosen"),
                       page.notes([plan.unfit] if plan.unfit else []))  # fmt: skip
    yield page.section(
        "What goes wrong on the way", plan.failure_sentence(), bar(plan.time, "days", "days", {}),
        page.table(list(plan.stalls)),
    )  # fmt: skip
    yield page.section("What it costs", plan.money_sentence(), numbers(plan, plan.named("money")))
    yield page.section("Is it the right size?", plan.size_sentence(), _flatness(plan))
    yield page.section("Every other number", "", numbers(plan, plan.named("others")))
    yield page.section("Runs like it", "Published runs of about as many FLOPs, with what they took.",
                       page.table(list(plan.nearest)))  # fmt: skip
    yield page.section("How sure", "", *(f"<p>{escape(note)}</p>" for note in plan.notes))
    yield "<footer>Made by <code>glassformer plan</code>. Prices are of their dates; nothing here is an offer.</footer>"


def numbers(plan: Plan, names: Sequence[str]) -> str:
    """Numbers that open."""
    inside = "".join(_number(plan.quantities[name]) for name in names if name in plan.quantities)
    return f'<div class="numbers">{inside}</div>' if inside else ""


def bar(
    rows: Sequence[Mapping[str, Any]], value: str, unit: str, names: Mapping[str, str], *, spare: float = 0.0
) -> str:
    """Parts of a whole side by side, and their names; `spare` is what is left empty."""
    rows = [row for row in rows if row[value] > 0]
    whole = sum(row[value] for row in rows) + spare
    if not whole:
        return ""
    drawn, told = [], []
    for place, row in enumerate(rows):
        share, colour = row[value] / whole, _COLOURS[min(place, len(_COLOURS) - 1)]
        name = names.get(row["part"], row["part"])
        inside = escape(name) if share > 0.0095 * len(name) + 0.012 else ""
        drawn.append(
            f'<div style="width:{share:.3%};background:{colour}" title="{escape(name)}">{inside}</div>'
        )
        told.append(
            f'<div><em style="background:{colour}"></em><span>{escape(name)}</span>'
            f"<b>{escape(one_value(row[value], unit))}</b><i>{share:.1%}</i></div>"
        )
    return f'<div class="bar" role="img">{"".join(drawn)}</div><div class="legend">{"".join(told)}</div>'


def _number(one: Quantity) -> str:
    said = "exact" if one.unit in _EXACT else ""
    head = (
        f"<span>{escape(titled(one))}</span><b>{escape(bare(shown(one)))}</b>"
        f"<i>{escape(bare(shown_interval(one)) or said)}</i>{_whisker(one)}"
    )
    return f"<details><summary>{head}</summary><div class='opened'>{_opened(one)}</div></details>"


def _opened(one: Quantity) -> str:
    formula = f"<code>{escape(one.formula)}</code>" if one.formula else ""
    source = f"<p class='quiet'>{escape(one.source)}</p>" if one.source else ""
    inputs = f"<ul class='tree'>{''.join(map(_branch, one.inputs))}</ul>" if one.inputs else ""
    return formula + source + inputs


def _branch(one: Quantity) -> str:
    interval = shown_interval(one)
    said = f"{escape(titled(one))} <b>{escape(shown(one))}</b>"
    said += f" <span>({escape(interval)})</span>" if interval else ""
    said += f" = <code>{escape(one.formula)}</code>" if one.formula else ""
    said += f" <span>· {escape(one.source)}</span>" if one.source else ""
    if not one.inputs:
        return f"<li>{said}</li>"
    return (
        f"<li><details><summary>{said}</summary><ul>{''.join(map(_branch, one.inputs))}</ul></details></li>"
    )


def _whisker(one: Quantity) -> str:
    """The interval as a line around its value."""
    if not 0 < one.low < one.high:
        return "<span></span>"
    low, high = (
        75 + 70 * max(-1.0, min(1.0, math.log(end / one.value) / _REACH)) for end in (one.low, one.high)
    )
    return (
        f'<svg viewBox="0 0 150 18" aria-hidden="true"><line x1="5" x2="145" y1="9" y2="9" stroke="var(--rule)"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="9" y2="9" stroke="var(--accent)" stroke-width="5" '
        f'stroke-linecap="round" opacity=".45"/><circle cx="75" cy="9" r="4.2" fill="var(--accent)"/></svg>'
    )


def _flatness(plan: Plan) -> str:
    found = plan.optimum
    if found is None:
        return ""
    rows = [
        {
            "size": f"{row['size']:g} times the best", "parameters": one_value(row["parameters"], "parameters"),
            "tokens": one_value(row["tokens"], "tokens"), "loss higher by": f"{row['loss_higher']:.2%}",
        }
        for row in found.flatness
    ]  # fmt: skip
    return page.table(rows)
