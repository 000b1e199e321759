"""`glassformer patch RUN "clean" "corrupt"` and `glassformer patch RUN "text" --subject PART`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import glassformer as gf
from glassformer import charts
from glassformer.cli.maps import seen, show_map
from glassformer.cli.model import COMPUTING, Computing, warn_not_finite
from glassformer.cli.terminal import document, facts, note
from glassformer.errors import UsageError
from glassformer.look.visible import visible

_STRONGEST = 15


def patch(
    model: Path,
    text: str,
    corrupt: str | None = None,
    /,
    *,
    answer: str | None = None,
    instead: str | None = None,
    loss: bool = False,
    place: list[str] | None = None,
    by: Literal["position", "head", "layer"] | None = None,
    subject: str | None = None,
    noise: float | None = None,
    samples: int | None = None,
    window: int | None = None,
    seed: int | None = None,
    target: str | None = None,
    at: int | None = None,
    computing: Computing = COMPUTING,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Find the numbers inside a model that carry its answer: put those of one text into the run of another
    (activation patching), or restore a subject drowned in noise (causal tracing).

    Args:
        model: A run, a folder with config.json, model.safetensors and tokenizer.json, or a .gguf file.
        text: The clean text. An encoder's holds <|mask|> where the answer stands.
        corrupt: A text of as many tokens that makes the model answer otherwise.
        answer: One token, with its space; otherwise what the model says.
        instead: The other answer; otherwise what the model says after the corrupt text.
        loss: Measure the loss of the clean text's tokens, not two answers' difference.
        place: What to put in: a pattern such as blocks.*.attn_out or blocks.*.attn.z (each head); may be given
            several times. With --subject: resid, mlp or attn.
        by: Put in one position, one head or a whole layer's at a time.
        subject: Trace the answer to the states of this part of the text.
        noise: With --subject: times the standard deviation of the token vectors; 3.
        samples: With --subject: draws of the noise; 10.
        window: With --subject: layers restored together; 1. As published, 10 for mlp and attn.
        seed: With --subject: of the noise; 0.
        target: Of an encoder-decoder, what is written.
        at: The position that answers, from 0; otherwise the last, or the hidden one.
        out: Save the map: .png, .svg, .html or .json.
        json: One JSON document instead of a map.
    """
    traced = {"noise": noise, "samples": samples, "window": window, "seed": seed}
    compared = {"corrupt": corrupt, "instead": instead, "loss": loss or None, "by": by}
    _check(subject, compared if subject is not None else traced, corrupt, answer, instead, loss)
    places = place or None
    if subject is not None and places and len(places) > 1:
        raise UsageError(
            f"--place is {', '.join(places)}.", expected="With --subject, one of resid, mlp, attn."
        )
    loaded = computing.open(model)
    warn_not_finite(loaded)
    if subject is not None:
        given: dict[str, Any] = {name: value for name, value in traced.items() if value is not None}
        if places:
            given["places"] = places[0]
        found = gf.causal_trace(loaded, text, subject, answer, target=target, at=at, **given)
        _save(found.chart(), out)
        _show_trace(found, json)
        return
    assert corrupt is not None
    metric: Any = "loss" if loss else None if answer is None else (answer, instead)
    patched = gf.patch(loaded, text, corrupt, places=places, metric=metric, by=by, target=target, at=at)
    _save(patched.chart(), out)
    _show_patched(patched, json)


def _check(
    subject: str | None,
    useless: dict[str, Any],
    corrupt: str | None,
    answer: str | None,
    instead: str | None,
    loss: bool,
) -> None:
    idle = [
        name if name == "corrupt" else f"--{name}" for name, value in useless.items() if value is not None
    ]
    if idle:
        which = "with --subject" if subject is not None else "without --subject"
        raise UsageError(f"{', '.join(idle)} has no effect {which}.", do="Leave it out.")
    if subject is None and corrupt is None:
        raise UsageError(
            "One text was given.", do="Give a corrupt one too, or with --subject the part of it to trace."
        )
    if subject is None and (answer is None) != (instead is None):
        raise UsageError("Of --answer and --instead, one was given.", expected="Both, or neither.")
    if loss and answer is not None:
        raise UsageError("--answer and --instead have no effect with --loss.", do="Leave them out.")


def _show_trace(found: gf.CausalTrace, json: bool) -> None:
    if json:
        document(found.to_dict(), "causal_trace")
        return
    values = found.to_dict()
    names = ("answer", "clean", "corrupt", "total_effect", "places", "window", "samples", "seed")
    facts({**{name: values[name] for name in names}, "answer": visible(found.answer)})
    strongest = sorted(found.rows(), key=lambda row: -abs(row["effect"]))[:_STRONGEST]
    cells = found.effects.tolist()
    down = [str(layer) for layer in range(len(cells))]
    show_map(
        cells, down, found.labels, "layer", full=max(map(max, cells)),
        strongest=[{**row, "token": seen(row["token"])} for row in strongest],
    )  # fmt: skip


def _show_patched(found: gf.Patched, json: bool) -> None:
    if json:
        document(found.to_dict(), "patched")
        return
    values = found.to_dict()
    answers = {
        name: value and visible(value) for name, value in values.items() if name in ("answer", "instead")
    }
    facts({"metric": found.metric, **answers, "clean": found.clean, "corrupt": found.corrupt})
    strongest = sorted(found.rows(), key=lambda row: -abs(row["recovered"]))[:_STRONGEST]
    strongest = [{**row, "token": seen(row["token"])} if "token" in row else row for row in strongest]
    show_map(
        found.recovered.tolist(), found.names, found.labels, "layer" if found.single else "place", full=1.0,
        strongest=strongest,
    )  # fmt: skip


def _save(chart: charts.Spec, out: Path | None) -> None:
    if out is not None:
        charts.save(chart, out)
        note(f"The chart is in {out}.")
