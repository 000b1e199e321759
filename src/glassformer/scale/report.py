"""One page of a law, of a division of compute, or of a forecast: charts, sentences, doubts, and the checklist.

    law_report(law, "law.html")    forecast_report(forecaster, forecast, "forecast.html")

and of an Allocation and a Repeats. The page is self-contained (styles and charts inside, no script, no network), so it
can be mailed; without the extra `plots` its charts are left out. A notebook shows a smaller piece (`card`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer import charts
from glassformer.errors import UsageError
from glassformer.files import write_text
from glassformer.run import page
from glassformer.scale import pictures, words
from glassformer.scale.checklist import checklist, score
from glassformer.scale.isoflop import Allocation, approaches, isoflop
from glassformer.scale.optimum import optimum
from glassformer.scale.points import Points
from glassformer.scale.repeats import Repeats
from glassformer.units import show_count

if TYPE_CHECKING:
    from glassformer.scale.fit import Law
    from glassformer.scale.forecast import Forecast, Forecaster
    from glassformer.scale.honesty import Doubt
    from glassformer.scale.next_run import NextRuns

_HALF = (390, 270)
"""A chart of which two stand side by side."""
Rows = Sequence[Mapping[str, Any]]
_WEAK = ("weak", "one ratio", "few sizes")
"""Doubts after which a profile is worth its place."""


def law_report(law: Law, path: str | Path) -> Path:
    """The page of a law that was fitted to points."""
    points = _points(law)
    body = [
        _header(f"A law of loss: {law.form}", words.title(law), words.counting(law)),
        page.cards(_cards(law)),
        page.section("In words", "", _sentences(words.of_law(law))),
        _doubts(law.doubts),
        page.section(
            "The runs and the law", "Each dot is a run, the larger the model the darker.",
            _pair(pictures.frontier(law, _HALF), pictures.residuals(law, _HALF)),
        ),
        *_division(law, points),
        page.section("The numbers", "With the middle 95 % of the bootstrap.", page.table(law.rows()), *_profiles(law)),
        page.section(
            "Points that lie off",
            "More than six robust standard deviations. Above them, the law with all points and the law without these.",
            page.table(words.shown(law.off)),
        ),
        page.section(
            "Runs that it hangs on most",
            "Leverage: how much of the fit at a run is the run's own; all together they are as many as the law has "
            "numbers. Beside it, the law without the run.",
            page.table(words.shown(law.influential)),
        ),
        _checklist(law, None),
    ]  # fmt: skip
    return _write(path, f"A law of loss: {law.form}", body)


def forecast_report(
    forecaster: Forecaster, forecast: Forecast, path: str | Path, *, gain: float = 0.01,
    following: NextRuns | None = None,
) -> Path:  # fmt: skip
    """The page of a forecast, with the law that it is of."""
    law = forecaster.law
    _points(law)
    low, high = forecast.intervals[0.9]
    unit = forecast.unit or "unit not said"
    values = [
        (f"loss, {unit}", f"{forecast.loss:.4g}"),
        ("nine times out of ten", f"{low:.3g} to {high:.3g}"),
        (f"parameters, on {show_count(forecast.D)} tokens", show_count(forecast.N)),
        ("training FLOPs", words.flops(forecast.C)),
        ("times the largest compute so far", f"{forecast.beyond['C']:.3g}"),
    ]
    flat = optimum(law, flops=forecast.C)
    body = [
        _header("A forecast of loss", words.title(law), words.counting(law)),
        page.cards(values),
        page.notes(list(forecast.warnings)),
        page.section(
            "What will it be", "", _figure(pictures.fan(forecaster, forecast, (960, 400)), forecast.rows()),
            _sentences(words.of_forecast(forecaster, forecast, gain)), page.table(words.shown(forecast.rows())),
        ),
        page.section(
            "Has it been right so far?",
            "The runs of little compute forecast those of much, which are known. This sets the width of the interval.",
            _figure(pictures.tested(forecaster.tested), forecaster.tested.rows()),
            page.table(words.shown(forecaster.tested.rows())),
        ) if forecaster.tested.cuts else "",
        _doubts(forecaster.doubts),
        page.section(
            "The same compute, other sizes", "", _sentences(flat.sentences()), page.table(words.shown(flat.rows())),
        ),
        page.section(
            "Which run next", "What one more run would tell, by the law's own doubts.",
            _sentences(following.sentences()), page.table(words.shown(following.rows())),
        ) if following is not None else "",
        page.section("The law", "", _sentences(words.of_law(law)), page.table(law.rows()),
                     _pair(pictures.frontier(law, _HALF), pictures.residuals(law, _HALF))),
        _checklist(law, forecaster),
    ]  # fmt: skip
    return _write(path, "A forecast of loss", body)


def allocation_report(found: Allocation, points: Points, path: str | Path) -> Path:
    """The page of the best size by compute, by parabolas or by envelope, beside what the other methods say."""
    low, high = found.interval()
    most = float(points.C.max()) * 100
    N, D = found.best(most)  # noqa: N806 # the field's symbols
    values = [
        (f"a of N* ~ C^a: {low:.3f} to {high:.3f}", f"{found.a:.3f}"),
        (f"best size at {words.flops(most)} FLOPs", show_count(N)), ("on tokens", show_count(D)),
        ("tokens for each parameter there", f"{D / N:.3g}"),
    ]  # fmt: skip
    drawn = [pictures.sizes(found, _HALF)]
    if found.method == "isoflop":
        drawn.insert(0, pictures.parabolas(points, found, _HALF))
    body = [
        _header(
            f"The best size for compute: {found.method}", f"{len(points)} points; {points.counting}.", ""
        ),
        page.cards(values),
        page.notes(list(found.warnings)),
        page.section("The budgets", "", _pair(*drawn), page.table(words.shown(found.rows()))),
        _methods(points, most),
    ]
    return _write(path, "The best size for compute", body)


def repeats_report(found: Repeats, points: Points, path: str | Path) -> Path:
    """The page of what repeated text is worth."""
    flag = "weakly known" if found.weakly_identified else "identified"
    end = f"{found.low:.3g} to any" if found.high == float("inf") else f"{found.low:.3g} to {found.high:.3g}"
    values = [
        ("R_D*: passes until one more is worth 1/e of fresh text", f"{found.R_D:.3g}"),
        ("95 % (profile)", end), ("R_N*", f"{found.R_N:.3g}"), ("R_D* is", flag),
    ]  # fmt: skip
    body = [
        _header("What repeating is worth", f"{len(points)} runs; {points.counting}.", ""),
        page.cards(values),
        page.section("In words", "", _sentences(found.sentences())),
        page.section(
            "Passes over the same text", "Beside fresh text of the same length; the band is what R_D* leaves open.",
            _pair(pictures.epochs(found, _HALF), found.chart(_HALF)), page.table(words.shown(found.rows())),
        ),
    ]  # fmt: skip
    return _write(path, "What repeating is worth", body)


def card(
    title: str, sentences: Iterable[str], rows: Rows = (), *, warnings: Iterable[str] = (),
    chart: charts.Spec | None = None,
) -> str:  # fmt: skip
    """A small piece of HTML for a notebook: sentences, a table and a chart; the notebook's own style."""
    said = "".join(f"<p>{page.show(sentence)}</p>" for sentence in sentences)
    doubted = "".join(f"<li>{page.show(warning)}</li>" for warning in warnings)
    drawn = (charts.svg(chart) or "") if chart is not None else ""
    return f"<div><h4>{page.show(title)}</h4>{said}{drawn}{page.table(rows)}<ul>{doubted}</ul></div>"


def _write(path: str | Path, title: str, body: Iterable[str]) -> Path:
    path = Path(path)
    advice = "" if charts.svg(charts.line([], "x", "y")) else (
        "<footer>Charts are left out here; with pip install 'glassformer[plots]' they are drawn.</footer>"
    )  # fmt: skip
    write_text(path, page.page(title, [*body, advice]))
    return path


def _header(title: str, line: str, counted: str) -> str:
    lines = "<br>".join(page.show(one) for one in (line, counted) if one)
    return f"<header><h1>{page.show(title)}</h1><div class='quiet'>{lines}</div></header>"


def _cards(law: Law) -> list[tuple[str, str]]:
    points = _points(law)
    cards = []
    names = [
        name
        for name in ("E", "alpha", "beta", "a", "gamma", "alpha_N", "alpha_D", "alpha_C")
        if name in law.values
    ]
    for name in names:
        what = {"E": f"floor E, {points.per}", "a": "a of N* ~ C^a"}.get(name, name)
        if len(law.draws) and name not in law.held:
            low, high = law.interval(name)
            what += f": {low:.3g} to {high:.3g}"
        cards.append((what, f"{law.values[name]:.4g}"))
    cards.append((f"off the law, half of {len(points)} points", str(law.facts()["typical residual"])))
    return cards


def _doubts(found: Sequence[Doubt]) -> str:
    if not found:
        return page.section("What is to be said against it", "", "<p>None of the checks found anything.</p>")
    rows = [
        {"doubt": doubt.name, "what was seen": doubt.message, "what it does to the answer": doubt.effect}
        for doubt in found
    ]
    lead = f"{len(found)} of the checks found something. Each says what it does to the answer."
    return page.section("What is to be said against it", lead, page.table(rows))


def _division(law: Law, points: Points) -> list[str]:
    """The best size, how flat it is, the parabolas where there are any, and how much the method matters."""
    if law.kind.needs != "nd":
        return []
    at = 10 * float((6 * points.N * points.D).max())
    best = optimum(law, flops=at)
    parts = [
        page.section("How to divide compute", "At ten times the largest compute so far.", _sentences(best.sentences()),
                     page.table(words.shown(best.rows())))
    ]  # fmt: skip
    try:
        found = isoflop(points, bootstrap=200)
    except UsageError:
        return parts
    pair = _pair(pictures.parabolas(points, found, _HALF), pictures.sizes(found, _HALF))
    return [
        *parts,
        page.section("Equal compute, other sizes", "Approach 2: a parabola for each budget.", pair),
        _methods(points, at),
    ]


def _methods(points: Points, flops: float) -> str:
    rows = approaches(points, flops)
    return page.section(
        "How much the method matters",
        f"The same points, at {words.flops(flops)} FLOPs. Where these differ, so does the answer.",
        page.table(words.shown(rows)),
    )  # fmt: skip


def _profiles(law: Law) -> list[str]:
    """Profiles of the numbers that the points hardly hold."""
    names = [n for n in ("alpha", "beta", "a", "gamma") if n in law.values and n not in law.held]
    doubted = any(doubt.name in _WEAK for doubt in law.doubts)
    if not doubted or law.prior is not None:
        return []
    found = [law.profile(name) for name in names]
    return [
        "<h3>Profiles: each number held, the others free</h3>",
        page.table([one.facts() for one in found]),
        _pair(*(one.chart(_HALF) for one in found[:2])),
    ]


def _checklist(law: Law, forecaster: Forecaster | None) -> str:
    answers = checklist(law, forecaster)
    groups = list(dict.fromkeys(answer.group for answer in answers))
    parts = []
    for group in groups:
        rows = [{"question": a.question, "answer": a.answer} for a in answers if a.group == group]
        table = page.table(rows).replace("<td>unknown</td>", '<td class="warn">unknown</td>')
        parts += [f"<h3>{page.show(group.capitalize())}</h3>", table]
    lead = (
        f"The questions that a report of a law should answer (Li et al. 2025, 2502.18969); {score(answers)}."
    )
    return page.section("The checklist", lead, *parts)


def _sentences(said: Iterable[str]) -> str:
    return "".join(f"<p>{page.show(sentence)}</p>" for sentence in said)


def _pair(*specs: charts.Spec) -> str:
    return f'<div class="pair">{"".join(_figure(spec, ()) for spec in specs)}</div>'


def _figure(spec: charts.Spec, rows: Rows) -> str:
    """The chart; its rows as a table where charts cannot be drawn."""
    drawn = charts.svg(spec)
    return page.figure(drawn, "") if drawn else page.table(rows)


def _points(law: Law) -> Points:
    if law.points is None:
        raise UsageError("This law has no points to show.", expected="One that was fitted here.")
    return law.points
