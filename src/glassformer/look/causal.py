"""Causal tracing: where a model holds what it knows about a subject (Meng et al. 2022, "ROME", section 2).

    P(o)          probability of the answer o, in the clean run
    P*(o)         with noise N(0, (noise * s)^2) on the token vectors of the subject; s: their standard deviation
    P*,clean h(o) with the same noise, but the state h of one layer at one token as in the clean run

    TE = P(o) - P*(o)                     total effect
    IE(h) = P*,clean h(o) - P*(o)         indirect effect of that state

Both are means over `samples` draws of the noise, the same for every state. h is the residual stream after a block
(`resid_post`), or what the feed-forward or attention of `window` layers around one adds to it; as published, with
window 10: the layers l - 5 to l + 4. s is taken over the model's whole table of token vectors; the authors' code
takes it over the subjects of their data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer import charts, seeds
from glassformer.errors import UsageError
from glassformer.look.asked import one_row
from glassformer.look.measure import Question, Token
from glassformer.look.reading import Model, Reading, Text
from glassformer.look.replace import Put, record, repeated, sweep
from glassformer.look.spans import span
from glassformer.look.trace import matching
from glassformer.look.visible import visible
from glassformer.model.config import ModelConfig
from glassformer.model.transformer import Transformer
from glassformer.stats import mean_interval

State = Literal["resid", "mlp", "attn"]
_PLACES: dict[State, str] = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}
_TITLES: dict[State, str] = {"resid": "the stream", "mlp": "feed-forward", "attn": "attention"}


@dataclass(frozen=True, slots=True)
class CausalTrace:
    """Probabilities of the answer, each for all draws of the noise."""

    answer: str
    tokens: tuple[str, ...]
    subject: tuple[int, ...]
    """The positions that noise was put on."""
    clean: float
    """P(o)."""
    corrupt: Float[Tensor, " sample"]
    """P*(o) of each draw."""
    restored: Float[Tensor, "layer position sample"]
    """P*,clean h(o) of each state and draw."""
    places: State
    window: int
    noise: float
    deviation: float
    """The noise's standard deviation: `noise` times that of the token vectors."""
    seed: int

    @property
    def total_effect(self) -> float:
        """TE, the mean over draws."""
        return self.clean - float(self.corrupt.mean())

    @property
    def effects(self) -> Float[Tensor, "layer position"]:
        """IE of each state, the mean over draws."""
        return (self.restored - self.corrupt).mean(-1)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each state: `effect` is IE, `low` and `high` its 95% interval over the draws."""
        found = []
        for layer, states in enumerate((self.restored - self.corrupt).tolist()):
            for position, draws in enumerate(states):
                effect, low, high = mean_interval(draws)
                at = {"layer": layer, "position": position, "token": self.tokens[position]}
                found.append(
                    {**at, "subject": position in self.subject, "effect": effect, "low": low, "high": high}
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        names = ("answer", "clean", "total_effect", "places", "window", "noise", "deviation", "seed")
        first = {name: getattr(self, name) for name in names}
        _, low, high = mean_interval((self.clean - self.corrupt).tolist())
        first |= {"total_effect_low": low, "total_effect_high": high, "samples": len(self.corrupt)}
        return {**first, "corrupt": float(self.corrupt.mean()), "tokens": list(self.tokens),
                "subject": list(self.subject), "rows": self.rows()}  # fmt: skip

    @property
    def labels(self) -> list[str]:
        """The tokens, those of the subject with a star, as in the paper."""
        return [f"{token}*" if at in self.subject else token for at, token in enumerate(self.tokens)]

    def chart(self) -> charts.Spec:
        """Tokens down, layers across, as in the paper's figure 1."""
        title = f"Indirect effect of {_TITLES[self.places]} on p({visible(self.answer)})"
        over = "layer restored" if self.window == 1 else f"centre of the {self.window} layers restored"
        layers, positions = self.restored.shape[:2]
        return charts.heatmap(
            self.rows(), "layer", "position", "effect", labels=[str(layer) for layer in range(layers)],
            y_labels=self.labels, title=title, x_title=over, y_title="token", value_title="IE", diverging=True,
            size=(80 + 18 * layers, 40 + 24 * positions),
        )  # fmt: skip


def causal_trace(
    model: Model,
    text: Text,
    subject: str | Sequence[int],
    answer: Token | None = None,
    *,
    noise: float = 3.0,
    samples: int = 10,
    seed: int = 0,
    window: int = 1,
    places: State = "resid",
    target: Text | None = None,
    at: int | None = None,
) -> CausalTrace:
    """Trace an answer (left out: the likeliest token) to the states that carry it. `subject` is a part of the text,
    where it stands first, or its positions. Of an encoder-decoder the states are the encoder's.

    Raises UsageError for a subject that is not in the text, and shows what the text is as tokens.
    """
    if places not in get_args(State) or samples < 1 or noise <= 0 or window < 1:
        raise UsageError(
            f"places={places!r}, noise={noise}, samples={samples}, window={window}.",
            expected=f"One of {get_args(State)}; noise above 0; at least 1 sample and 1 layer.",
        )
    asked = Question.of(model, text, target=target, at=at)
    config = asked.reading.model.config
    assert isinstance(config, ModelConfig)
    one_row(asked.reading, "a trace")
    known = asked.reading.places()
    side = "encoder" if config.kind == "encoder-decoder" else "blocks"
    embed = "encoder.embed" if side == "encoder" else "embed"
    states = matching(known, f"{side}.*.{_PLACES[places]}")
    if window > len(states):
        raise UsageError(f"window={window}.", expected=f"The model has {len(states)} layers.")
    positions = span(asked.reading, subject)
    first, output = record(asked.reading, [embed])
    number = asked.best(output) if answer is None else asked.number(answer)

    deviation = noise * _deviation(asked.reading)
    drawn = seeds.generator(seed, "causal_trace").normal(
        0, deviation, (samples, len(positions), config.width)
    )
    vectors = first[embed].repeat(samples, 1, 1)
    vectors[:, positions] += torch.from_numpy(drawn).to(vectors)
    measure = asked.probability(number)
    # the clean row goes along as row 0, as in the authors' code, so that equal states are equal to the bit
    noisy = Put(embed, torch.cat([first[embed], vectors]), {"position": positions})
    seen, output = record(repeated(asked.reading, samples + 1), states, [noisy])
    clean, *corrupt = measure(output).tolist()

    base = torch.tensor(corrupt, dtype=torch.float64)
    restored = base.repeat(len(states), len(asked.reading.source_tokens), 1)
    edits, cells = [], []
    for layer in range(len(states)):
        near = states[max(0, layer - window // 2) : layer + (window + 1) // 2]
        for position in range(restored.shape[1]):
            # before the subject, in a model that reads left to right, noise has changed nothing
            if any((seen[each][1:, position] != seen[each][0, position]).any() for each in near):
                edits.append([Put(each, seen[each][:1], {"position": [position]}) for each in near])
                cells.append((layer, position))
    if edits:
        noised = [Put(embed, vectors, {"position": positions})]
        alone = asked.alone().probability(number)
        found = sweep(repeated(asked.reading, samples), edits, alone, base=noised, at=asked.at).double().cpu()
        for (layer, position), draws in zip(cells, found, strict=True):
            restored[layer, position] = draws
    return CausalTrace(
        asked.name(number), tuple(asked.reading.source_tokens), tuple(positions), clean, base, restored, places, window,
        noise, deviation, seed,
    )  # fmt: skip


def _deviation(reading: Reading) -> float:
    """The standard deviation of all entries of the token vectors, as the place `embed` holds them."""
    model = reading.model
    assert isinstance(model, Transformer)
    scale = model.config.width**0.5 if model.config.scale_embeddings else 1.0
    return float(model.embed.weight.detach().double().std(correction=0)) * scale
