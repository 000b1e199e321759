"""Steps along the residual stream: text, token vectors, norms, what is added, the blocks that are not shown in full.

One entry of the stream is followed all the way, so that each number shown is a number of the line before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.look.arithmetic import Given, Line, Pieces, Vector, mean_of
from glassformer.look.explain_seen import Seen, Step, bias_at, weight_at
from glassformer.look.source import Source, line_of
from glassformer.model.norms import Norm

_TEXT = "The text"
_TOKENS_SHOWN = 8


def beginning(seen: Seen) -> Iterator[Step]:
    """From the text to the vectors that enter the first block."""
    ids, p, j = seen.reading.ids, seen.position, seen.entry
    first = max(0, p + 2 - _TOKENS_SHOWN)
    shown = range(first, min(first + _TOKENS_SHOWN, len(ids)))
    yield Step(
        _TEXT,
        "The text becomes numbers",
        "The text is cut into pieces that the vocabulary holds (tokens), and each is named by its number there. "
        f"Here the model stands at position {p} and has read {seen.word(p)}.",
        "ids = encode(text)",
        tuple(Line(f"{seen.word(at)} at {at}", (ids[at],), ids[at]) for at in shown),
        (line_of("look/reading.py", "_ids", "tokenizer.encode(text)"),),
    )
    scaled = seen.config.scale_embeddings
    row = seen.model.embed.weight.detach()[ids[p]]
    start: Pieces = (float(row[j]), " × √(", seen.config.width, ")") if scaled else (float(row[j]),)
    yield Step(
        _TEXT,
        "Each number becomes a vector",
        f"A table E holds one row of {seen.config.width} learned numbers for every token; the token's row is taken. "
        f"From here on its entry {j} is followed.",
        "embed = E[id] × √(d)" if scaled else "embed = E[id]",
        (
            Vector.of("embed", seen.here(seen.top("embed"))),
            Line(f"embed[{j}]", start, seen.at(seen.top("embed"))),
        ),
        (_embedded("self.embed(ids)"), *([_embedded("x * math.sqrt")] if scaled else [])),
        seen.top("embed"),
    )
    yield from _added(seen)


def _added(seen: Seen) -> Iterator[Step]:
    """Position and type vectors, and the norm of the sum."""
    j, p = seen.entry, seen.position
    parts = [seen.here(seen.top("embed"))]
    positions = seen.config.positions
    if seen.top("pos_embed") in seen.tensors:
        parts.append(seen.here(seen.top("pos_embed")))
        value = float(parts[-1][j])
        if positions == "learned":
            sentence = "A second table holds one learned row for every position; it is added."
            formula, line = "x = embed + P[position]", Line(f"pos_embed[{j}]", (value,), value)
        else:
            sentence = "Every position has a fixed vector of sines and cosines, slow ones and fast ones; it is added."
            formula = (
                "x = embed + PE[position],  PE[p, 2i] = sin(p / 10000^(2i / d)),  PE[p, 2i+1] = cos(...)"
            )
            pair, sine = _wave(j, seen.config.width, halves=positions == "sinusoidal_halves")
            wave: Pieces = (
                "sin(" if sine else "cos(",
                p,
                " / 10000^(",
                2 * pair,
                " / ",
                seen.config.width,
                "))",
            )
            line = Line(f"pos_embed[{j}]", wave, value)
        yield Step(
            _TEXT,
            "The position is added",
            sentence,
            formula,
            (line, _sum(f"x[{j}]", parts, j)),
            (_embedded("rows = "), _embedded('see("pos_embed"')),
            seen.top("pos_embed"),
        )
    if "type_embed" in seen.tensors:
        parts.append(seen.here("type_embed"))
        yield Step(
            _TEXT,
            "The row's part is added",
            "A vector tells the parts of a row apart, such as two sentences; this row is all of part 0.",
            "x = embed + pos_embed + type_embed",
            (_sum(f"x[{j}]", parts, j),),
            (_embedded('see("type_embed"'),),
            "type_embed",
        )
    if isinstance(norm := seen.model.embed_norm, Norm):
        total = torch.stack([part.double() for part in parts]).sum(0)
        yield norm_step(seen, _TEXT, "The sum is brought to one size", norm, total, seen.top("embed_ln"))


def _wave(entry: int, width: int, *, halves: bool) -> tuple[int, bool]:
    """Which pair an entry of the sinusoids belongs to, and whether it is the sine."""
    num_sines = (width + 1) // 2
    return (entry % num_sines, entry < num_sines) if halves else (entry // 2, entry % 2 == 0)


def _sum(left: str, parts: Sequence[Float[Tensor, " width"]], entry: int) -> Line:
    right: list[str | float] = []
    for part in parts:
        right += [*([" + "] if right else []), float(part[entry])]
    return Line(left, tuple(right), sum(float(part[entry]) for part in parts))


def norm_step(
    seen: Seen,
    section: str,
    title: str,
    norm: Norm,
    x: Float[Tensor, " width"],
    place: str,
    *,
    again: bool = False,
) -> Step:
    """LayerNorm or RMSNorm of the vector x, whose result is at `place`."""
    scale, normalized = float(seen.here(f"{place}.scale")), seen.here(f"{place}.normalized")
    lines = norm_lines(norm, x, seen.entry, scale, float(normalized[seen.entry]))
    centred = "the mean of the entries is taken away and then " if norm.centred else ""
    why = (
        "The same kind of norm as before, with a gain of its own."
        if again
        else f"So that numbers neither grow nor fade from block to block, {centred}every entry is divided by the "
        "vector's typical size and multiplied by a learned gain."
    )
    return Step(
        section,
        title,
        why,
        norm_formula(norm),
        (*lines, Vector.of("normalized", normalized)),
        norm_sources(norm),
        f"{place}.normalized",
    )


def norm_formula(norm: Norm) -> str:
    bias = " + bias" if norm.bias is not None else ""
    if norm.centred:
        return f"u = x - mean(x),  scale = √(mean(u²) + ε),  normalized = u / scale × gain{bias}"
    return f"scale = √(mean(x²) + ε),  normalized = x / scale × gain{bias}"


def norm_sources(norm: Norm) -> tuple[Source, ...]:
    fragments = ["wide.mean(", '"scale"', "(wide / scale)", '"normalized", y']
    return tuple(
        line_of("model/norms.py", "Norm.explicit", fragment)
        for fragment in (fragments if norm.centred else fragments[1:])
        if fragment != '"normalized", y' or norm.bias is not None
    )


def norm_lines(norm: Norm, x: Float[Tensor, " size"], entry: int, scale: float, value: float) -> list[Line]:
    """mean, scale and one entry of what the norm gives."""
    lines, wide = [], x.double()
    numerator: Pieces = (float(x[entry]),)
    if norm.centred:
        mean = float(wide.mean())
        lines.append(mean_of("mean(x)", x, mean))
        numerator = ("(", float(x[entry]), " - ", mean, ")")
        wide = wide - mean
    square = mean_of(
        "mean(u²)" if norm.centred else "mean(x²)", wide, float(wide.square().mean()), squares=True
    )
    lines.append(square)
    lines.append(Line("scale", ("√(", square.value, " + ", Given(norm.epsilon), ")"), scale))
    gain, bias = weight_at(norm.weight, entry), bias_at(norm.bias, entry)
    added: Pieces = () if bias is None else (" + ", bias)
    lines.append(Line(f"normalized[{entry}]", (*numerator, " / ", scale, " × ", gain, *added), value))
    return lines


def residual(
    seen: Seen, section: str, added: Sequence[str], before: str, after: str, norm: str
) -> Iterator[Step]:
    """x + what was computed; where norms come after (post), that norm's step too. Places of the block."""
    j, block = seen.entry, seen.shown_block
    places = [seen.block(name) for name in (before, *added)]
    total = torch.stack([seen.here(place).double() for place in places]).sum(0)
    left = after if block.pre else "x"
    value = seen.at(seen.block(after)) if block.pre else float(total[j])
    right: list[str | float] = []
    for place in places:
        right += [*([" + "] if right else []), seen.at(place)]
    yield Step(
        section,
        "The stream takes it in",
        "What was computed is added to the vector that came in. This running sum, the residual stream, is all that "
        "goes on.",
        f"{left} = {' + '.join((before, *added))}",
        (Line(f"{left}[{j}]", tuple(right), value),),
        (line_of("model/block.py", "Block._add", "x + dropout"), _handed_out(seen, after)),
        seen.block(after) if block.pre else None,
    )
    if not block.pre:
        module = getattr(block, {"ln1": "norm1", "ln2": "norm2", "ln_cross": "norm_cross"}[norm])
        step = norm_step(seen, section, "The sum is brought to one size", module, total, seen.block(norm),
                         again=norm != "ln1")  # fmt: skip
        yield Step(
            step.section, step.title, step.sentence, step.formula, step.lines,
            (*step.sources, line_of("model/block.py", "Block._add", "norm(x, see)")), step.place,
        )  # fmt: skip


def _handed_out(seen: Seen, after: str) -> Source:
    """Where the block hands out what it holds now."""
    added = after != "resid_post" or seen.shown_block.parallel
    what = f'{after}", self._add' if added else f'{after}", x)'
    return line_of("model/block.py", "Block.computed", f'see("{what}')


def other_blocks(seen: Seen, section: str, title: str, layers: Sequence[int]) -> Iterator[Step]:
    """What each block that is not shown in full adds to the followed entry."""
    if not layers:
        return
    j, lines = seen.entry, []
    adds = [name for name in ("attn_out", "cross_attn_out", "mlp_out") if seen.block(name) in seen.tensors]
    for layer in layers:
        prefix = f"{seen.stack}.{layer}."
        after = seen.at(f"{prefix}resid_post")
        if seen.shown_block.pre:
            right: list[str | float] = [seen.at(f"{prefix}resid_pre")]
            for name in adds:
                right += [" + ", seen.at(prefix + name)]
            lines.append(Line(f"block {layer}: x[{j}]", tuple(right), after))
        else:
            lines.append(Line(f"block {layer}: x[{j}]", (after,), after))
    formula = f"resid_post = {' + '.join(('resid_pre', *adds))}"
    yield Step(
        section,
        title,
        "The other blocks do the same with weights of their own. Here is only what each adds to the followed entry.",
        formula if seen.shown_block.pre else "resid_post = block(resid_pre), brought to one size inside",
        tuple(lines),
        (line_of("model/transformer.py", "Transformer._through", "x = block(x"),),
        f"{seen.stack}.{layers[-1]}.resid_post",
    )


def _embedded(fragment: str) -> Source:
    return line_of("model/transformer.py", "Transformer._embedded", fragment)
