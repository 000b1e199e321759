"""A law and a forecast in sentences: what a stranger reads first, and what the terminal, the page and a notebook share.

Every number in them is one of the law's or the forecast's, with its interval where it has one, its unit and what was
counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from glassformer.scale.laws import FORMULAS
from glassformer.units import show_count

if TYPE_CHECKING:
    from glassformer.scale.fit import Law
    from glassformer.scale.forecast import Forecast, Forecaster

_COUNTS = {"N": "parameters", "D": "tokens", "N*": "best parameters", "D*": "on tokens", "N* from (80 %)": "80 % from",
           "N* to": "to"}  # fmt: skip
_SHARES = {
    "more loss": "more loss",
    "narrower": "narrower by",
    "width after": "width of the 80 %",
    "error": "forecast too high by",
    "expected": "it said, up to",
    "a e-fold": "drift for each e-fold",
    "off": "off",
    "leverage": "leverage",
    "for each 1 % of the cap": "for each 1 % of the cap",
    "worth": "worth",
}


def shown(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows for people: counts as 7.3B, FLOPs as 1.2e21, shares in percent; columns by what they mean."""
    every = [dict(row) for row in rows]
    worth = bool(every) and "worth" in every[0]
    out = []
    for row in every:
        new: dict[str, Any] = {}
        for name, value in row.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                new[_COUNTS.get(name, name)] = value
            elif name in _COUNTS:
                new[_COUNTS[name]] = show_count(value)
            elif name == "C":
                new["FLOPs"] = flops(value)
            elif name in _SHARES or (worth and name in ("low", "high")):
                new[_SHARES.get(name, name)] = _percent(value)
            else:
                new[name] = value
        out.append(new)
    return out


def flops(value: float) -> str:
    """1.2e21."""
    return f"{value:.3g}".replace("e+", "e")


def title(law: Law) -> str:
    """The law and what it was fitted to, in a line."""
    points, formula = law.points, FORMULAS.get(law.form, law.form)
    if points is None:
        return f"{law.form}: {formula}"
    runs = len(set(points.runs))
    low, high = points.ranges()["N"]
    counted = f"{runs} runs" if runs == len(points) else f"{len(points)} points of {runs} runs"
    return (
        f"{formula}, fitted to {counted} of {show_count(low)} to {show_count(high)} parameters and "
        f"{flops(points.C.min())} to {flops(points.C.max())} FLOPs."
    )  # fmt: skip


def counting(law: Law) -> str:
    """The unit and what was counted how."""
    points = law.points
    if points is None:
        return ""
    tokenizer = points.tokenizer or ("not needed" if points.unit == "bits per byte" else "not said")
    return f"Loss in {points.unit or 'a unit that nobody said'} (tokenizer: {tokenizer}). {points.counting}."


def of_law(law: Law) -> list[str]:
    """What the numbers of a law mean."""
    v = law.values
    said = []
    if "E" in v:
        said.append(f"No size, text or compute brings the loss below {_with(law, 'E')}.")
    if law.kind.needs == "nd" and "alpha" in v:
        beta = v.get("beta", v["alpha"])
        said += [
            f"Ten times the parameters leave {10 ** -v['alpha']:.0%} of what size is to blame for "
            f"(alpha = {_with(law, 'alpha')}), ten times the tokens {10**-beta:.0%} of what text is "
            f"(beta = {_with(law, 'beta' if 'beta' in v else 'alpha')}).",
            f"The best size grows as C^{_with(law, 'a')}: ten times the compute is best spent on "
            f"{10 ** v['a']:.2g} times the parameters and {10 ** (1 - v['a']):.2g} times the tokens.",
            *_gain(law),
        ]
    elif law.form == "kaplan":
        said.append(
            f"Ten times the parameters, with tokens without end, multiply the loss by {10 ** -v['alpha_N']:.3g} "
            f"(alpha_N = {_with(law, 'alpha_N')}), ten times the tokens by {10 ** -v['alpha_D']:.3g} (alpha_D = "
            f"{_with(law, 'alpha_D')}). There is no floor: far beyond the runs it is too low."
        )  # fmt: skip
    elif law.form == "frontier":
        said.append(
            f"Ten times the compute leave {10 ** -v['gamma']:.0%} of what lies above the floor (gamma = "
            f"{_with(law, 'gamma')})."
        )  # fmt: skip
    else:
        name = f"alpha_{law.kind.needs.upper()}"
        said.append(
            f"Ten times the {law.kind.needs.upper()} multiply the loss by {10 ** -v[name]:.3g} ({name} = "
            f"{_with(law, name)}). There is no floor: far beyond the runs it is too low."
        )  # fmt: skip
    if len(law.residuals):
        said.append(
            f"Half of the points lie within {np.median(np.abs(law.residuals)):.2%} of the law, nine of ten within "
            f"{np.quantile(np.abs(law.residuals), 0.9):.2%}."
        )
    if law.held:
        said.append(
            "Not fitted but given: "
            + ", ".join(f"{name} = {value:g}" for name, value in law.held.items())
            + "."
        )
    return said


def of_fit(law: Law) -> str:
    """How sure the fit itself is: starts, replicates, objective."""
    return (
        f"{law.starts_agreed} of {law.starts} starts came to this fit (objective {law.objective:.9g}); intervals are "
        f"95 % of {law.converged} bootstrap replicates of runs."
    )  # fmt: skip


def of_forecast(forecaster: Forecaster, forecast: Forecast, gain: float) -> list[str]:
    """What is forecast, how sure that is, how far it reaches, and how well such forecasts did so far."""
    unit = forecast.unit or "(unit not said)"
    low, high = forecast.intervals[0.9]
    inner = forecast.intervals[0.5]
    said = [
        f"{show_count(forecast.N)} parameters on {show_count(forecast.D)} tokens ({flops(forecast.C)} FLOPs): a loss "
        f"of {forecast.loss:.4g} {unit}.",
        f"Nine times out of ten it will lie between {low:.4g} and {high:.4g}, one time in two between {inner[0]:.4g} "
        f"and {inner[1]:.4g}.",
    ]
    beyond = forecast.beyond
    if beyond["C"] > 1.01:
        said.append(
            f"That is {beyond['C']:.3g} times the compute of the largest run, {beyond['N']:.2g} times its "
            f"parameters and {beyond['D']:.2g} times its tokens."
        )  # fmt: skip
    else:
        said.append("That is within the compute of the runs.")
    cuts = forecaster.tested.cuts
    if cuts:
        off = float(np.mean([abs(cut.error) for cut in cuts]))
        said.append(
            f"How good are such forecasts? The smaller runs forecast the larger ones at {len(cuts)} cuts, up to "
            f"{max(cut.beyond for cut in cuts):.3g} times beyond, and were {off:.1%} off on average; the interval is "
            "as wide as that asks for."
        )  # fmt: skip
    else:
        said.append(
            "These runs are too few or too alike to test a forecast on themselves; the interval is that of published "
            "studies."
        )
    flat, flat_low, flat_high = forecaster.flattens(gain)
    said.append(
        f"From {flops(flat)} FLOPs on (80 %: {flops(flat_low)} to {flops(flat_high)}), doubling the compute lowers the "
        f"loss by less than {gain:g}."
    )
    return said


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%" if abs(share) >= 5e-6 else "0%"


def _gain(law: Law) -> list[str]:
    """What ten times the largest compute buys."""
    from glassformer.scale.optimum import lowest

    if law.points is None:
        return []
    largest = float((6 * law.points.N * law.points.D).max())
    costs = (largest, 10 * largest)
    sizes = [lowest(law, cost) for cost in costs]
    now, then = (law.loss(size, cost / (6 * size)) for size, cost in zip(sizes, costs, strict=True))
    return [f"Ten times the largest compute, divided so, lowers the loss from {now:.4g} to {then:.4g}."]


def _with(law: Law, name: str) -> str:
    """A number with its 95 % interval."""
    value = law.values[name]
    if name in law.held or not len(law.draws):
        return f"{value:.4g}"
    low, high = law.interval(name)
    return f"{value:.3g} ({low:.3g} to {high:.3g})"
