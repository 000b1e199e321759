"""Steps of one attention head: query, key, their product, the mask, the shares, the blend, the heads together."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from glassformer.look.arithmetic import Given, Line, Pieces, Vector, plain_sum, softmax_lines, sum_of_products
from glassformer.look.explain_seen import Seen, Step, bias_at
from glassformer.look.explain_stream import norm_formula, norm_lines, norm_sources
from glassformer.look.source import Source, line_of
from glassformer.model.norms import Norm


class _Head:
    """One head of one attention, and the key its query gives the largest share."""

    def __init__(self, seen: Seen, attn: str) -> None:
        self.seen, self.attn = seen, attn
        block = seen.shown_block
        module = block.cross if attn == "cross_attn" else block.attn
        assert module is not None
        self.module = module
        self.cross = attn == "cross_attn"
        self.head = seen.heads[attn]
        self.kv_head = self.head // (module.heads // module.kv_heads)
        self.section = f"Block {seen.layer}: {'cross-' if self.cross else ''}attention, head {self.head}"
        self.pattern = self.tensor("pattern")[self.head, seen.position]
        self.key = int(self.pattern.argmax())
        self.words = seen.words(source=self.cross)
        self.to = f"{seen.word(seen.position)} → {self.words[self.key]}"
        self.q = self.tensor("rot_q" if self.has("rot_q") else "q")[seen.position, self.head]
        self.k = self.tensor("rot_k" if self.has("rot_k") else "k")[self.key, self.kv_head]
        self.entry = int((self.q * self.k).abs().argmax())
        """Which entry of query and key is shown: the one that counts most in their product."""

    def place(self, name: str) -> str:
        return self.seen.block(f"{self.attn}.{name}")

    def has(self, name: str) -> bool:
        return self.place(name) in self.seen.tensors

    def tensor(self, name: str) -> Tensor:
        return self.seen(self.place(name))

    def step(self, title: str, sentence: str, formula: str, lines: list[Line | Vector],
             sources: list[Source], place: str | None) -> Step:  # fmt: skip
        return Step(
            self.section, title, sentence, formula, tuple(lines), tuple(sources), place and self.place(place)
        )


def attention(seen: Seen, attn: str = "attn") -> Iterator[Step]:
    """Every step of the shown head."""
    head = _Head(seen, attn)
    yield _projected(head)
    yield from _prepared(head)
    yield _dots(head)
    yield from _distance(head)
    yield from _mask(head)
    yield _shares(head)
    yield _blend(head)
    yield _together(head)


def _projected(head: _Head) -> Step:
    seen, s, module = head.seen, head.entry, head.module
    pre = seen.shown_block.pre
    name = "ln_cross.normalized" if head.cross else "ln1.normalized"
    stream = seen.here(seen.block(name if pre else "resid_mid" if head.cross else "resid_pre"))
    row = head.head * module.head_size + s
    bias = bias_at(module.qkv.bias, row)
    first = module.sizes[0] + head.kv_head * module.head_size + s
    q, k = head.tensor("q")[seen.position, head.head], head.tensor("k")[head.key, head.kv_head]
    v = head.tensor("v")[head.key, head.kv_head]
    lines: list[Line | Vector] = [
        sum_of_products(f"q[{s}]", module.qkv.weight.detach()[row], stream, float(q[s]), plus=bias)
    ]
    if head.cross:
        read = "the encoder's vectors"
        sentence = (
            "The query is made of the decoder's vector here, key and value of " + read + " of the source. "
        )
        sources = [line_of("model/attention.py", "Attention.forward", "self._split(self.project(")]
        sources += [line_of("model/attention.py", "Attention.project", "F.linear(")]
        sources += [line_of("model/attention.py", "Attention.remember", "projected = ")]
    else:
        own = "ln1.normalized" if pre else "resid_pre"
        there = seen(seen.block(own))[head.key]
        lines.append(
            sum_of_products(f"k[{s}]", module.qkv.weight.detach()[first], there, float(k[s]),
                            plus=bias_at(module.qkv.bias, first))
        )  # fmt: skip
        sentence = "Three matrices make of each token what it asks (query), what it offers (key) and what it tells " \
                   "(value). "  # fmt: skip
        sources = [line_of("model/attention.py", "Attention.forward", "torch.split(self.qkv(x)")]
    if module.heads != module.kv_heads:
        sentence += f"Heads share keys and values: query head {head.head} reads key head {head.kv_head}. "
    bias_text = ["", " + b"][module.qkv.bias is not None]
    sentence += f"Shown: the query at {seen.word(seen.position)}, key and value at {head.words[head.key]}."
    lines += [Vector.of("q", q), Vector.of("k", k), Vector.of("v", v)]
    formula = f"q = W_q x{bias_text},  k = W_k x{bias_text},  v = W_v x{bias_text}"
    return head.step("Query, key and value", sentence, formula, lines, sources, "q")


def _prepared(head: _Head) -> Iterator[Step]:
    """QK norm and RoPE, where a model has them."""
    seen, module = head.seen, head.module
    norm = module.q_norm
    turned = seen.config.positions == "rope" and not head.cross
    q = head.tensor("q")[seen.position, head.head]
    k = head.tensor("k")[head.key, head.kv_head]
    if isinstance(norm, Norm):
        y, scale = normed(norm, q)
        value = float(y[head.entry]) if turned else float(head.q[head.entry])
        lines: list[Line | Vector] = [*norm_lines(norm, q, head.entry, scale, value)]
        yield head.step(
            "Query and key are brought to one size",
            "Each head's query and key go through a norm of their own, so that their product cannot run away. Shown: "
            "the query.",
            norm_formula(norm),
            lines,
            [line_of("model/attention.py", "Attention._turned", "norm(y)"), *norm_sources(norm)],
            None if turned else "rot_q",
        )
        q, k = y, (normed(module.k_norm, k)[0] if isinstance(module.k_norm, Norm) else k)
    if turned:
        yield _turned(head, q, k)


def _turned(head: _Head, q: Tensor, k: Tensor) -> Step:
    seen, half = head.seen, head.seen.config.rotary_width // 2
    pair = head.entry % half if head.entry < 2 * half else 0
    other = pair + half
    lines: list[Line | Vector] = []
    for name, vector, after, p in (("q", q, head.q, seen.position), ("k", k, head.k, head.key)):
        base: Pieces = (p, " × ", Given(seen.config.rope_base), "^(", -2 * pair, " / ", 2 * half, ")")
        angle = p * seen.config.rope_base ** (-2 * pair / (2 * half))
        lines.append(Line(f"angle at {p}", base, angle))
        a, b = float(vector[pair]), float(vector[other])
        lines.append(
            Line(
                f"rot_{name}[{pair}]",
                (a, " × cos(", angle, ") - ", b, " × sin(", angle, ")"),
                float(after[pair]),
            )
        )
        lines.append(
            Line(
                f"rot_{name}[{other}]",
                (b, " × cos(", angle, ") + ", a, " × sin(", angle, ")"),
                float(after[other]),
            )
        )
    rest = "" if 2 * half == head.module.head_size else f" Entries from {2 * half} on stay as they are."
    return head.step(
        "The position turns query and key",
        "Entries are taken in pairs, each pair an arrow in the plane, turned by an angle that grows with the "
        f"position. So the product that follows depends on the distance between the two.{rest}",
        "angle = p × base^(-2i / d),  (a, b) → (a cos - b sin, b cos + a sin)",
        lines,
        [
            line_of("model/positions.py", "rotations", "angle = "),
            line_of("model/positions.py", "rotate", "first * cos - second * sin"),
        ],
        "rot_q",
    )


def _dots(head: _Head) -> Step:
    p = head.seen.position
    dots = float(head.tensor("dots")[head.head, p, head.key])
    scaled = float(head.tensor("scaled")[head.head, p, head.key])
    return head.step(
        "Query meets key",
        "Entry by entry they are multiplied and summed: large where they point the same way. Divided by √(d), the "
        f"length of the vectors does not matter. Shown: {head.to}.",
        "dots = q · k = Σ_i q_i × k_i,  scaled = dots / √(d)",
        [
            sum_of_products("dots", head.q, head.k, dots),
            Line("scaled", (dots, " / √(", head.module.head_size, ")"), scaled),
        ],
        [_explicit('see("dots"'), _explicit('see("scaled"')],
        "scaled",
    )


def _distance(head: _Head) -> Iterator[Step]:
    """ALiBi."""
    seen = head.seen
    if seen.config.positions != "alibi" or head.cross:
        return
    p, slope = seen.position, float(seen.model.slopes[head.head])
    lines: list[Line | Vector] = []
    for key in sorted({max(0, p - 1), head.key}):
        scaled = float(head.tensor("scaled")[head.head, p, key])
        score = float(head.tensor("scores")[head.head, p, key])
        right: Pieces = (scaled, " - ", slope, " × ", abs(p - key))
        lines.append(Line(f"scores → {head.words[key]}", right, score))
    yield head.step(
        "Distance costs",
        "Each head has a slope, and a key loses that much for every position between it and the query.",
        "scores = scaled - slope × distance",
        lines,
        [line_of("model/attention.py", "attention_mask", "-slopes[:"), _explicit("scores + mask")],
        "scores",
    )


def _mask(head: _Head) -> Iterator[Step]:
    """What comes later cannot be read."""
    seen, p = head.seen, head.seen.position
    if not head.module.causal:
        return
    lines: list[Line | Vector] = []
    for key in range(p + 1, min(p + 3, len(head.words))):
        was = float(head.tensor("scaled")[head.head, p, key])
        score = float(head.tensor("scores")[head.head, p, key])
        lines.append(Line(f"scores → {head.words[key]}", ("-∞",), score, f"it was {was:.4f}"))
    end = "" if lines else " Here nothing comes later."
    yield head.step(
        "What comes later is masked",
        f"The model learns to say what comes next, so it must not look there: those scores become -∞.{end}",
        "scores = scaled where key ≤ query, else -∞",
        lines,
        [_explicit("scores.masked_fill") if seen.config.positions != "alibi" else
         line_of("model/attention.py", "attention_mask", "-slopes[:")],
        "scores",
    )  # fmt: skip


def _shares(head: _Head) -> Step:
    p = head.seen.position
    scores = head.tensor("scores")[head.head, p]
    open_ = scores.isfinite().nonzero()[:, 0]
    names = [head.words[int(key)] for key in open_]
    every = " All tokens of the row take part, earlier and later ones." if not head.module.causal else ""
    return head.step(
        "Scores become shares",
        "Every score is put into the exponential function and divided by the sum S over all keys: shares that are "
        f"positive and sum to 1 (softmax). Taking the largest score from all changes no share.{every}",
        "pattern = e^(score - largest) / S,  S = Σ e^(score - largest)",
        [*softmax_lines(names.__getitem__, scores[open_], head.pattern[open_])],
        [_explicit('see("pattern"')],
        "pattern",
    )


def _blend(head: _Head) -> Step:
    seen = head.seen
    z = head.tensor("z")[seen.position, head.head]
    s = int(z.abs().argmax())
    values = head.tensor("v")[:, head.kv_head, s]
    read = head.pattern != 0
    names = [word for word, counts in zip(head.words, read, strict=True) if counts]
    return head.step(
        "Values are blended",
        "The values of all tokens are mixed, each by its share.",
        "z = Σ_key pattern × v",
        [
            sum_of_products(
                f"z[{s}]", head.pattern[read], values[read], float(z[s]), names=names.__getitem__
            ),
            Vector.of("z", z),
        ],
        [_explicit("dropout(pattern")],
        "z",
    )


def _together(head: _Head) -> Step:
    seen, module, j = head.seen, head.module, head.seen.entry
    size = module.head_size
    z = head.tensor("z")[seen.position, head.head]
    row = module.out.weight.detach()[j, head.head * size : (head.head + 1) * size]
    shares = head.tensor("result")[seen.position, :, j]
    names = [f"head {h}" for h in range(module.heads)]
    out = seen.block(f"{head.attn}_out")
    plus = bias_at(module.out.bias, j)
    count = "The only head writes" if module.heads == 1 else f"All {module.heads} heads write"
    return Step(
        head.section,
        "The heads are put together",
        f"Each head's blend is turned into the stream's {seen.config.width} entries by its part of the matrix W_o. "
        f"{count} into the same vector.",
        "result = W_o[head] z,  attn_out = Σ_head result" + (" + b" if plus is not None else ""),
        (
            sum_of_products(f"result[{j}] of head {head.head}", row, z, float(shares[head.head])),
            plain_sum(f"{head.attn}_out[{j}]", shares, seen.at(out), plus=plus, names=names.__getitem__),
        ),
        (line_of("model/attention.py", "Attention.forward", "self.out(z"),),
        out,
    )


def normed(norm: Norm, x: Tensor) -> tuple[Tensor, float]:
    """What the norm makes of a vector, and what it divides by: between two places, where nothing is recorded."""
    wide = x.double()
    wide = wide - wide.mean() if norm.centred else wide
    scale = math.sqrt(float(wide.square().mean()) + norm.epsilon)
    with torch.no_grad():
        return norm(x.to(norm.weight)).cpu(), scale


def _explicit(fragment: str) -> Source:
    return line_of("model/attention.py", "Attention.explicit", fragment)
