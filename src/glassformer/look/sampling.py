"""The next token as it is drawn: what each setting does to the whole vocabulary, and the draw itself.

    l                                what the model says: one logit for every token
    l -> l' -> l'' ...               after each setting that is on, as use/sample.py applies them; -inf is cut
    p = softmax(last)                what is drawn from
    the first v with p_1 + ... + p_v > u                  u from the seed, uniform in [0, 1)

Of each stage: how many tokens are left, the share of the stage before that they hold, the share that the model
itself gives them, and the entropy H = -sum p log p in nats. Nothing is computed twice: these are the functions
that `generate` calls, so the token shown is the one that `generate` writes first with this seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer import charts
from glassformer.errors import UsageError
from glassformer.look.asked import one_row
from glassformer.look.embedding import distinct
from glassformer.look.reading import Reading, Text
from glassformer.model.config import ModelConfig
from glassformer.model.stacks import Decoder
from glassformer.model.transformer import Transformer
from glassformer.use.cache import Cache
from glassformer.use.generate import Prompt, beginning_with, next_logits
from glassformer.use.load import Loaded
from glassformer.use.sample import Sampling, draw, log_normaliser, penalised, running, stages, uniform

MOST_DRAWS = 1_000_000
"""That are counted in one go: some seconds' work."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The distribution after one setting."""

    name: str
    """`model`, `repetition_penalty`, `held_space` (a space that the prompt ended in), `temperature`, `top_k`,
    `top_p` or `min_p`."""
    setting: float | str | None
    logits: Float[Tensor, " vocab"] = field(repr=False)
    probabilities: Float[Tensor, " vocab"] = field(repr=False)
    num_kept: int
    """Tokens that can still be drawn."""
    kept: float
    """The share of the stage before that they hold."""
    own: float
    """The probability that the model itself gives them together."""
    entropy: float
    """Nats."""


@dataclass(frozen=True, slots=True)
class SamplingView:
    """What the settings make of one step, and what is drawn."""

    reading: Reading = field(repr=False)
    settings: Sampling
    seed: int
    stages: tuple[Stage, ...]
    u: float | None
    """What the running sum has to pass; None for temperature 0, which draws nothing."""
    token: int
    below: float
    """The running sum before the token, in the order of the vocabulary."""
    through: float
    """The same with the token: below <= u < through."""
    counts: Int[Tensor, " vocab"] | None = field(repr=False)
    """How often each token came, of `draws` seeds from `seed` on."""
    top: int
    warnings: tuple[str, ...] = ()

    @property
    def probabilities(self) -> Float[Tensor, " vocab"]:
        """What is drawn from."""
        return self.stages[-1].probabilities

    def rows(self) -> list[dict[str, Any]]:
        """The `top` likeliest tokens by the model's own probability, and the drawn one: the logit, the probability
        after each stage, and which stage cut it."""
        own = self.stages[0].probabilities
        ids = own.argsort(descending=True, stable=True)[: self.top].tolist()
        ids += [] if self.token in ids else [self.token]
        return [self._row(i, word) for i, word in zip(ids, self.reading.words(ids), strict=True)]

    def _row(self, i: int, word: str) -> dict[str, Any]:
        cut = next((stage.name for stage in self.stages if stage.logits[i] == -torch.inf), None)
        return {
            "token": word,
            "id": i,
            "logit": float(self.stages[0].logits[i]),
            **{stage.name: float(stage.probabilities[i]) for stage in self.stages},
            "kept": cut is None,
            "cut_by": cut,
            "drawn": i == self.token,
            **({} if self.counts is None else {"draws": int(self.counts[i])}),
        }

    def stage_rows(self) -> list[dict[str, Any]]:
        """One row for each stage: how many tokens are left, what they hold, the entropy."""
        return [
            {
                "stage": stage.name, "setting": stage.setting, "tokens": stage.num_kept, "kept": stage.kept,
                "model's_own": stage.own, "entropy": stage.entropy,
            }
            for stage in self.stages
        ]  # fmt: skip

    def draw_rows(self, around: int = 3) -> list[dict[str, Any]]:
        """The drawn token among those that can be drawn, in the order of the vocabulary: u falls into its part."""
        able = self.probabilities.nonzero()[:, 0]
        here = int((able == self.token).nonzero()[0, 0])
        ids = able[max(0, here - around) : here + around + 1].tolist()
        total = running(self.probabilities)
        before = [float(total[i - 1]) if i else 0.0 for i in ids]
        return [
            {
                "token": word, "id": i, "probability": float(self.probabilities[i]), "from": low,
                "to": float(total[i]), "drawn": i == self.token,
            }
            for i, word, low in zip(ids, self.reading.words(ids), before, strict=True)
        ]  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """The draw in a few lines."""
        word = self.reading.words([self.token])[0]
        return {"seed": self.seed, "u": self.u, "token": f"{word!r} ({self.token})",
                "sum_before": self.below, "sum_with": self.through}  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.reading.tokens, "settings": asdict(self.settings), "seed": self.seed, "u": self.u,
            "token": self.token, "word": self.reading.words([self.token])[0], "below": self.below,
            "through": self.through, "draws": None if self.counts is None else int(self.counts.sum()),
            "stages": self.stage_rows(), "rows": self.rows(), "draw": self.draw_rows(),
            "warnings": list(self.warnings),
        }  # fmt: skip

    def chart(self) -> charts.Spec:
        """The likeliest tokens before and after the settings, and how often each was drawn."""
        rows = self.rows()
        names = distinct([row["token"] for row in rows], [row["id"] for row in rows])
        shown = {"the model": "model", "drawn from": self.stages[-1].name}
        bars = [
            {"token": name, "probability": row[column], "of": what}
            for name, row in zip(names, rows, strict=True)
            for what, column in shown.items()
        ]
        if self.counts is not None:
            share = 1 / int(self.counts.sum())
            bars += [
                {"token": name, "probability": row["draws"] * share, "of": f"{self.counts.sum():,} draws"}
                for name, row in zip(names, rows, strict=True)
            ]
        drawn = self.reading.words([self.token])[0]
        return charts.bars(
            bars, "token", "probability", series="of", title=f"The next token: {drawn!r} is drawn"
        )


def sampling_view(
    model: Loaded | Transformer,
    text: Text = "",
    *,
    target: Text | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    draws: int = 0,
    top: int = 20,
) -> SamplingView:
    """What each setting does to the distribution of the token after `text` (of an encoder-decoder, after `target`),
    and the token that is drawn. With `draws`, also what the first token would be with each of so many seeds.

    A text for a loaded decoder is read as `generate` reads a prompt: empty, it begins a document; of a long one
    the last `context` tokens are read; a space at its end begins the new token.
    """
    settings = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    _check(settings, draws, top)
    with torch.no_grad():
        reading, logits, prompt = _read(model, text, target)
        log_normaliser(logits)  # says so where they hold no distribution
        found = tuple(_stages(reading, logits, settings, prompt.held if prompt else b""))
        mass = found[-1].probabilities
        greedy, counts = temperature == 0, None
        u = None if greedy else uniform(seed, 0)
        # temperature 0 leaves one token, which comes whatever u is
        token = int(draw(mass, torch.tensor(u or 0.0, dtype=torch.float64, device=mass.device)))
        if draws:
            several = torch.tensor([uniform(seed + n, 0) for n in range(draws)], dtype=torch.float64)
            counts = torch.bincount(draw(mass, several.to(mass.device)), minlength=len(mass))
    total = running(mass)
    return SamplingView(
        reading, settings, seed, found, u, token, float(total[token - 1]) if token else 0.0,
        float(total[token]), counts, top, prompt.warnings if prompt else (),
    )  # fmt: skip


def _check(settings: Sampling, draws: int, top: int) -> None:
    if draws < 0 or top < 1:
        raise UsageError(f"draws is {draws} and top {top}.", expected="draws 0 or more, top 1 or more.")
    if draws > MOST_DRAWS:
        raise UsageError(f"{draws:,} draws were asked for.", expected=f"At most {MOST_DRAWS:,}.")
    if draws and settings.temperature == 0:
        raise UsageError(
            "Temperature 0 takes the same token every time, so draws would show nothing.",
            do="Leave draws out, or give a temperature above 0.",
        )


def _read(
    model: Loaded | Transformer, text: Text, target: Text | None
) -> tuple[Reading, Float[Tensor, " vocab"], Prompt | None]:
    """What is read, and the logits of the token after it."""
    if isinstance(model, Loaded) and isinstance(model.model, Decoder) and isinstance(text, str):
        prompt = Prompt.read(model, text)
        ids = torch.tensor([prompt.ids], device=model.device)
        cache = Cache(model.config, positions=ids.shape[1], dtype=model.dtype, device=model.device)
        return Reading(model.model, (ids,), model.tokenizer), next_logits(model, ids, cache)[0], prompt
    reading = Reading.of(model, text, target=target)
    config = reading.model.config
    if not isinstance(config, ModelConfig) or config.kind == "encoder":
        raise UsageError(
            "This model does not write, so nothing is drawn.", expected="A decoder or an encoder-decoder."
        )
    one_row(reading, "a draw")
    size = config.vocab_size if reading.tokenizer is None else reading.tokenizer.vocab_size
    return reading, reading.run()[0, -1, :size].float(), None


def _stages(
    reading: Reading, logits: Float[Tensor, " vocab"], settings: Sampling, held: bytes
) -> Iterator[Stage]:
    own = before = logits.softmax(-1)

    def stage(name: str, setting: float | str | None, now: Float[Tensor, " vocab"]) -> Stage:
        nonlocal before
        able = now > -torch.inf
        kept = float(before.double()[able].sum() / before.double().sum())
        share = float(own.double()[able].sum() / own.double().sum())
        before = now.softmax(-1)
        entropy = float(torch.special.entr(before.double()).sum())
        return Stage(name, setting, now, before, int(able.sum()), kept, share, entropy)

    yield stage("model", None, logits)
    if settings.repetition_penalty != 1:
        logits = penalised(logits, reading.ids, settings.repetition_penalty)
        yield stage("repetition_penalty", settings.repetition_penalty, logits)
    if held and reading.tokenizer is not None:
        logits = beginning_with(logits, reading.tokenizer, held)
        yield stage("held_space", repr(held.decode()), logits)
    for name, after in stages(logits, settings):
        yield stage(name, getattr(settings, name), after)
