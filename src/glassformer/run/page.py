"""The pieces of a page that needs nothing else: no network, no script; light or dark as its reader likes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f7f8fa; --sheet: #ffffff; --ink: #1b2430; --quiet: #5b6775; --rule: #e3e7ec;
  --accent: #0072b2; --good: #0b7a55; --warn: #b45309; --bad: #b3261e; --code: #f2f4f7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f141a; --sheet: #171d25; --ink: #e6eaf0; --quiet: #97a3b2; --rule: #28313d;
    --accent: #56b4e9; --good: #4cc38a; --warn: #f0a34a; --bad: #ff8a80; --code: #11171e;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 72px; }
header { margin-bottom: 22px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 6px;
  display: flex; align-items: center; gap: 14px; flex-wrap: wrap; }
h2 { font-size: 19px; letter-spacing: -0.01em; margin: 0 0 8px; }
h3 { font-size: 14px; font-weight: 600; margin: 22px 0 6px; }
p { margin: 0 0 12px; max-width: 74ch; }
.quiet, .lead { color: var(--quiet); }
.pill { font-size: 12px; font-weight: 600; padding: 3px 10px; border-radius: 99px;
  border: 1px solid currentColor; letter-spacing: 0; }
.done { color: var(--good); } .running { color: var(--accent); } .new { color: var(--quiet); }
.stopped, .warn { color: var(--warn); } .killed, .bad { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(178px, 1fr)); gap: 12px;
  margin: 0 0 20px; }
.card { background: var(--sheet); border: 1px solid var(--rule); border-radius: 12px; padding: 14px 16px; }
.card b { display: block; font-size: 23px; font-weight: 650; letter-spacing: -0.02em; line-height: 1.25;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.card span { color: var(--quiet); font-size: 12.5px; }
section { background: var(--sheet); border: 1px solid var(--rule); border-radius: 14px;
  padding: 22px 24px; margin: 0 0 16px; }
section > .lead { margin: -4px 0 14px; }
.pair { display: grid; gap: 6px 28px;
  grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); }
figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; color: var(--ink); }
figure.own svg { width: auto; max-width: 100%; }
figure svg text { font-family: Helvetica, Arial, "Liberation Sans", sans-serif; }
@media (prefers-color-scheme: dark) {
  figure svg [stroke="#0072B2" i] { stroke: var(--accent); }
  figure svg [fill="#0072B2" i] { fill: var(--accent); }
}
figcaption { font-size: 13.5px; font-weight: 600; margin: 12px 0 2px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: min(100%, 420px); font-size: 13.5px;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--quiet); border-bottom: 1px solid var(--rule);
  padding: 6px 18px 6px 0; white-space: nowrap; }
td { padding: 6px 18px 6px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td:first-child { white-space: nowrap; }
.scroll + .scroll { margin-top: 18px; }
section .cards { margin: 14px 0 0; }
.cards + p { margin-top: 16px; }
.pair h3 { margin-top: 12px; }
td.number, th.number { text-align: right; }
tr.chosen td { font-weight: 650; }
code, pre { font: 12.5px/1.55 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--code); border: 1px solid var(--rule); border-radius: 10px;
  padding: 12px 14px; margin: 0; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
pre b { color: var(--accent); font-weight: 650; }
.sample { margin: 0 0 12px; }
.sample > div { color: var(--quiet); font-size: 12.5px; margin-bottom: 4px; }
details > summary { cursor: pointer; color: var(--accent); font-size: 13.5px; margin: 8px 0; }
ul.notes { list-style: none; margin: 8px 0 0; padding: 0; }
ul.notes li { padding: 3px 0 3px 14px; border-left: 3px solid var(--warn); margin: 0 0 8px; }
footer { color: var(--quiet); font-size: 12.5px; margin-top: 22px; }
@media (max-width: 700px) { section figure { overflow-x: auto; } figure svg { min-width: 560px; } }
@media print { body { background: white; } section, .card { break-inside: avoid; } }
"""


_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(title: str, body: Iterable[str]) -> str:
    """A whole HTML document. The policy lets nothing be loaded and nothing be run."""
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


def section(title: str, lead: str = "", *parts: str) -> str:
    """A titled sheet, or nothing when there is nothing to put on it."""
    inside = "\n".join(part for part in parts if part)
    if not inside:
        return ""
    sentence = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{sentence}\n{inside}\n</section>"


def cards(values: Sequence[tuple[str, str]]) -> str:
    """The key numbers: (what, shown)."""
    inside = "".join(
        f'<div class="card"><b>{escape(shown)}</b><span>{escape(what)}</span></div>' for what, shown in values
    )
    return f'<div class="cards">{inside}</div>'


def table(rows: Sequence[Mapping[str, Any]], *, chosen: str | None = None, code: str | None = None) -> str:
    """Rows as a table, numbers to the right; `chosen` begins the row to mark, `code` names one of digests."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    right = {name for name in columns if all(_is_number(row.get(name)) for row in rows)}

    def cell(tag: str, name: str, content: str) -> str:
        return f'<{tag} class="number">{content}</{tag}>' if name in right else f"<{tag}>{content}</{tag}>"

    head = "".join(cell("th", name, escape(name.replace("_", " "))) for name in columns)
    lines = []
    for row in rows:
        mark = ' class="chosen"' if chosen is not None and row[columns[0]] == chosen else ""
        shown = {name: show(row.get(name)) for name in columns}
        if code in shown:
            shown[code] = f"<code>{shown[code]}</code>"
        lines.append(f"<tr{mark}>" + "".join(cell("td", name, shown[name]) for name in columns) + "</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def show(value: Any) -> str:
    """A value in a cell, escaped: counts with separators, other numbers with four figures."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return escape(str(value))


def figure(svg: str, caption: str, *, own_size: bool = False) -> str:
    kind = ' class="own"' if own_size else ""
    return f"<figure{kind}><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def notes(sentences: Sequence[str]) -> str:
    """Warnings and the like, one below the other."""
    return (
        '<ul class="notes">' + "".join(f"<li>{escape(text)}</li>" for text in sentences) + "</ul>"
        if sentences
        else ""
    )


def sample(about: str, prompt: str, text: str) -> str:
    """Text that the model wrote, its prompt set off. Nothing in it is ever markup."""
    written = f"<b>{escape(prompt)}</b>{escape(text.removeprefix(prompt))}"
    return f'<div class="sample"><div>{escape(about)}</div><pre>{written}</pre></div>'


def details(summary: str, inside: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>" if inside else ""


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
