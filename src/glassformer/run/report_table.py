"""The report's sections about a plain network's rows: what they are, and whether what is said of them can be
believed. Drawn only where the events `text_report` (with a table) and `calibration` are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glassformer import charts
from glassformer.run import page

WHAT_ECE_MEANS = (
    "When it says 70%, is it right 70% of the time? ECE, the expected calibration error, is the answer in one "
    "number: the gap between how sure the network is and how often it is right, averaged over the rows. 0 is "
    "perfect; 0.05 means five percentage points off, on average."
)

Rows = Sequence[Mapping[str, Any]]


def table_section(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the rows came from and how they are divided."""
    return (
        page.table(report["table"]),
        page.table(report.get("sources", [])),
        page.notes(report.get("warnings", [])),
    )


def calibration_section(found: Rows) -> tuple[str, ...]:
    """The lead and the parts of the section, from the newest event `calibration`."""
    if not found:
        return ()
    event = found[-1]
    bins = event["bins"]
    kinds = list(dict.fromkeys(row["scores"] for row in bins))
    first = [row for row in bins if row["scores"] == kinds[0]]
    drawings = [charts.svg(_diagram([row for row in bins if row["scores"] == kind])) for kind in kinds]
    captions = ["As trained", *(kind[0].upper() + kind[1:] for kind in kinds[1:])]
    pictures = "".join(
        page.figure(drawn, f"{caption}: {event['num_rows']:,} {event['part']} rows", own_size=True)
        for drawn, caption in zip(drawings, captions, strict=True)
        if drawn
    )
    legend = (
        "Each point is the rows of one stretch of confidence, the number how many they are, and the bar the 95% "
        "interval of how often they are right. On the dashed line a network means what it says; a bar that "
        "crosses it is no evidence that it does not."
    )
    return (
        WHAT_ECE_MEANS,
        page.cards(_cards(event)),
        _sentence(event["verdict"]),
        f'<div class="pair">{pictures}</div>' + _sentence(legend, quiet=True) if pictures else "",
        "<h3>The same as a table</h3>" + page.table([_row(row) for row in first]),
        "<h3>Temperature scaling</h3>" + _sentence(event["advice"]) + page.notes(event["warnings"]),
        _mistakes(event),
    )


def _cards(event: Mapping[str, Any]) -> list[tuple[str, str]]:
    """For yes and no answers `accuracy` is how often it is yes, so that the words differ."""
    yes_or_no = event["kind"] == "marks"
    right = "how often it is yes" if yes_or_no else f"right, {event['part']} rows"
    sure = "yes as it says, on average" if yes_or_no else "sure, on average"
    values = [
        (right, f"{event['accuracy']:.1%}"),
        (sure, f"{event['confidence']:.1%}"),
        ("ECE", f"{event['ece']:.3f}"),
        ("ECE that chance explains, up to", f"{event['ece_by_chance_high']:.3f}"),
    ]
    temperature = event.get("temperature")
    if temperature and temperature["ece"] is not None:
        values.append((f"ECE with T = {temperature['value']:.2f}", f"{temperature['ece']:.3f}"))
    return values


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "confidence from": f"{row['low']:.0%}",
        "to": f"{row['high']:.0%}",
        "rows": row["rows"],
        "says, on average": f"{row['confidence']:.1%}",
        "is right": f"{row['accuracy']:.1%}",
        "95% interval": f"{row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}",
    }


def _mistakes(event: Mapping[str, Any]) -> str:
    found = event["mistakes"]
    if not found:
        return ""
    title = "<h3>Where it was most sure, and wrong</h3>"
    if any("\n" in row["shown"] for row in found):  # pictures
        drawn = [
            page.sample(
                row["row"],
                row["shown"],
                f"\n\nsays {row['says']} ({row['sure']:.1%}),\nbut it is {row['is']} ({row['sure_of_that']:.1%})",
            )
            for row in found
        ]
        return f'{title}<div class="cards">{"".join(drawn)}</div>'
    rows = [
        {
            "row": row["row"],
            "it says": row["says"],
            "how sure": f"{row['sure']:.1%}",
            "it is": row["is"],
            "how sure of that": f"{row['sure_of_that']:.1%}",
            "values": row["shown"],
        }
        for row in found
    ]
    return title + page.table(rows)


def _diagram(rows: Rows) -> charts.Spec:
    return charts.reliability(rows, size=330)


def _sentence(text: str, *, quiet: bool = False) -> str:
    kind = ' class="quiet"' if quiet else ""
    return f"<p{kind}>{page.show(text)}</p>"
