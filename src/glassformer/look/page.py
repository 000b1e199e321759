"""One pass as one page: a picture of each thing that can be seen, and the numbers under it.

The page is self-contained (styles and pictures inside, no script, no network). Every number on it is the return
value of a function of this room; each section says which, so that the same can be asked for in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import torch

from glassformer import charts
from glassformer.errors import UsageError
from glassformer.files import write_text
from glassformer.look.attention import concentration
from glassformer.look.attribution import attribute
from glassformer.look.blame import blame
from glassformer.look.embedding import embedding_map
from glassformer.look.export import picture
from glassformer.look.heads import heads
from glassformer.look.lens import lens
from glassformer.look.neuron import loudest, neuron
from glassformer.look.parts import head_name
from glassformer.look.positions import positions
from glassformer.look.reading import Text
from glassformer.look.sampling import sampling_view
from glassformer.look.summary import Summary, summary
from glassformer.look.trace import Trace, look
from glassformer.model.stacks import count_parameters
from glassformer.run import page
from glassformer.units import show_count
from glassformer.use.load import Loaded
from glassformer.use.predict import Predictor

MOST_TOKENS = 32
"""Rows and columns of a picture of attention that can still be read."""
MOST_HEADS = 48
_STAGES = ("dots", "scaled", "scores", "pattern")


def write_page(model: Loaded | Predictor, text: Text, path: Path, *, target: Text | None = None) -> Path:
    """Write the page of a text. Needs the extra `plots` for its charts."""
    if isinstance(model, Predictor):
        raise UsageError(
            "A page is of a model that reads text, and this is a plain network.",
            do="Look at its places with --place, or in Python with gf.look and gf.neuron.",
        )
    if path.suffix.lower() != ".html":
        raise UsageError(f"A page cannot be written as {path.name}.", expected="A name ending in .html.")
    found = summary(model, text, target=target)
    config = model.config
    shape = f"{config.kind}, {show_count(count_parameters(model.model))} parameters, {config.layers} layers"
    body = [
        f"<header><h1>{page.show(model.path.name)}</h1><div class='quiet'>{page.show(shape)}</div></header>",
        page.cards(_cards(found)),
        page.notes(found.warnings),
        page.section(
            "Token by token", "How surprised the model was by each: -log p, in nats.", _strip(found)
        ),
    ]
    for title, lead, draw in _sections(model, text, target):
        body.append(page.section(title, lead, *draw()))
    write_text(path, page.page(f"{model.path.name}: a look inside", body))
    return path


def _sections(
    model: Loaded, text: Text, target: Text | None
) -> list[tuple[str, str, Callable[[], list[str]]]]:
    """(title, what it is and the function that gives it, how to draw it)."""
    config = model.config
    attention = ("Where it looks", "Scores q.k, divided by the root of the head's size, masked, and as a softmax: "
                 "gf.look(..., 'blocks.*.attn.*').", lambda: _attention(model, text, target))  # fmt: skip
    rest: list[tuple[str, str, Callable[[], list[str]]]] = []
    if config.head == "tokens" and config.kind != "encoder":
        last = summary(model, text, target=target, top=2).answers
        rest = [
            ("What each layer would say", "The logit lens: the last norm and head on every layer; gf.lens.",
             lambda: [_figure(lens(model, text, target=target).chart())]),
            ("Why this token rather than that one", "What each part adds to the difference of the two likeliest "
             "tokens' logits; gf.attribute.",
             lambda: [_figure(attribute(model, text, last[0]["id"], last[1]["id"], target=target).chart())]),
            ("How the next token is drawn", "Temperature 0.8 and top-p 0.9 on the whole vocabulary; gf.sampling_view.",
             lambda: [_figure(sampling_view(model, text, temperature=0.8, top_p=0.9, top=10, target=target).chart())]),
            ("Who is to blame", "The gradient of the loss, at places and at weights; gf.blame.",
             lambda: _blame(model, text, target)),
        ]  # fmt: skip
    return [
        attention,
        ("What the heads do", "Scores of each head; gf.heads.", lambda: _heads(model, text, target)),
        *rest,
        ("One neuron", "The one whose activation writes most at the last position: inputs times weights, plus bias; "
         "gf.neuron.", lambda: _neuron(model, text, target)),
        ("How it knows where a token stands", "gf.positions.", lambda: [_figure(positions(model).chart())]),
        ("The tokens as points", "Principal components of the token vectors; gf.embedding_map.",
         lambda: [_figure(embedding_map(model).chart())]),
        ("Every place", "The range of the numbers in each; gf.look(..., '*').", lambda: _places(model, text, target)),
    ]  # fmt: skip


def _cards(found: Summary) -> list[tuple[str, str]]:
    losses = [row["loss"] for row in found.tokens if row.get("loss") is not None]
    cards = [("tokens", f"{len(found.tokens):,}")]
    if losses:
        cards.append(("nats per token, mean", f"{sum(losses) / len(losses):.4g}"))
    if found.answers and "token" in found.answers[0]:
        best = found.answers[0]
        cards.append((f"says next: {best['token']}", f"{best['probability']:.1%}"))
    elif found.answers:
        best = found.answers[0]
        value = best.get("probability", best.get("number"))
        cards.append((f"says {best['output']}", f"{value:.4g}"))
    if found.entropy is not None:
        cards.append(("entropy of the next token, nats", f"{found.entropy:.4g}"))
    return cards


def _strip(found: Summary) -> str:
    """The text with each token's loss as the depth of its colour, and the table."""
    most = max((row["loss"] for row in found.tokens if row.get("loss")), default=1.0)
    marked = "".join(
        f'<span title="{escape(_told(row))}" style="background:rgba(213,94,0,'
        f'{0.75 * (row.get("loss") or 0) / most:.3f});border-radius:3px;padding:1px 0">{escape(row["token"])}</span>'
        for row in found.tokens
    )
    next_ = page.table(found.answers)
    return f"<pre>{marked}</pre>" + page.details("Each token", page.table(found.tokens)) + (
        f"<h3>What comes next</h3>{next_}" if next_ else "")  # fmt: skip


def _told(row: dict[str, Any]) -> str:
    return (
        f"{row['loss']:.3f} nats; said {row['said']}" if row.get("loss") is not None else "nothing was said"
    )


def _attention(model: Loaded, text: Text, target: Text | None) -> list[str]:
    """The four stages of the head that tells most, and all heads small."""
    kind = "decoder.*" if model.config.kind == "encoder-decoder" else "blocks.*"
    trace = look(model, text, [f"{kind}.attn.{stage}" for stage in _STAGES], target=target)
    places = [name for name in trace if name.endswith(".pattern")]
    patterns = torch.stack([trace[name][0] for name in places]).float().cpu()
    layer, head = divmod(int(concentration(patterns).argmin()), patterns.shape[1])
    stem = places[layer].removesuffix("pattern")
    parts = [
        f'<div class="pair">{"".join(_figure(picture(trace, stem + s, head=head)) for s in _STAGES)}</div>'
    ]
    order = concentration(patterns).flatten().argsort()[:MOST_HEADS].tolist()
    small = "".join(_thumbnail(patterns, *divmod(number, patterns.shape[1])) for number in sorted(order))
    most = f"the {MOST_HEADS} that tell most of {patterns.shape[0] * patterns.shape[1]}"
    what = "All heads" if patterns.shape[0] * patterns.shape[1] <= MOST_HEADS else most
    return [*parts, f"<h3>{what}</h3>", f'<div style="display:flex;flex-wrap:wrap;gap:14px">{small}</div>']


def _thumbnail(patterns: torch.Tensor, layer: int, head: int) -> str:
    """One head as a small square; each query's row is scaled by its own largest weight."""
    values = patterns[layer, head, -MOST_TOKENS:, -MOST_TOKENS:]
    size = len(values)
    cells = "".join(
        f'<rect x="{x}" y="{y}" width="1" height="1" fill="#0072B2" fill-opacity="{value:.2f}"/>'
        for y, row in enumerate(values.tolist())
        for x, value in enumerate(row)
        if value >= 0.02
    )
    name = head_name(layer, head)
    box = f'<svg viewBox="0 0 {size} {size}" width="88" height="88" style="border:1px solid var(--rule)">{cells}</svg>'
    return f'<div style="font-size:11.5px;text-align:center">{box}<div class="quiet">{name}</div></div>'


def _heads(model: Loaded, text: Text, target: Text | None) -> list[str]:
    found = heads(model, text, target=target)
    return [_figure(found.chart()), page.details("Every head", page.table(found.rows()))]


def _blame(model: Loaded, text: Text, target: Text | None) -> list[str]:
    found = blame(model, text, target=target)
    return [f'<div class="pair">{_figure(found.chart())}{_figure(found.chart("tokens"))}</div>',
            page.details("The weights most to blame", page.table(found.by("weights", 20)))]  # fmt: skip


def _neuron(model: Loaded, text: Text, target: Text | None) -> list[str]:
    if not model.config.ff_width:
        return []
    layer, number = loudest(model, text, target=target)
    return [_figure(neuron(model, text, layer, number, target=target).chart())]


def _places(model: Loaded, text: Text, target: Text | None) -> list[str]:
    trace: Trace = look(model, text, "*", target=target)
    rows = [
        {**row, "axes": ", ".join(row["axes"]), "shape": " x ".join(map(str, row["shape"]))}
        for row in trace.rows()
    ]
    return [page.details(f"{len(rows)} places", page.table(rows))]


def _figure(spec: charts.Spec) -> str:
    """The chart as it is; the sentence about the extra where it is missing."""
    drawn = charts.svg(spec)
    return (drawn and page.figure(drawn, "", own_size=True)) or page.notes([_WITHOUT])


_WITHOUT = "Drawing needs Altair and vl-convert: pip install 'glassformer[plots]'."
