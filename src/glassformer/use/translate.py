"""One text in, another out: beam search over an encoder-decoder.

At every step each of the `beam` best beginnings is gone on with in every way, and the best `beam` of all are kept.
A text that ends leaves the beam with the score

    log p(y | x) / ((5 + |y|) / 6)^alpha           alpha: the length penalty (Wu et al. 2016, equation 14)

where |y| counts its tokens, the end included. The search is over when no beginning can still beat the best
finished one, or when a text is `more` tokens longer than its source (Vaswani et al. 2017: 50). A beam of 1 is
greedy search. Texts of about the same length are translated together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, overload

import torch
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.model.stacks import EncoderDecoder
from glassformer.model.transformer import Memory
from glassformer.use.cache import Cache
from glassformer.use.load import Loaded

_ROWS = 256
"""Beginnings that are gone on with at the same time, over all texts."""


@dataclass(frozen=True, slots=True)
class Translation:
    """A text and what was written for it."""

    source: str
    text: str
    tokens: list[int]
    logprob: float
    """Nats of the whole text, its end included."""
    score: float
    """What the search ranked it by."""
    finished: bool
    """Whether the model ended it, rather than the limit on its length."""

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@overload
def translate(loaded: Loaded, source: str, **settings: Any) -> Translation: ...
@overload
def translate(loaded: Loaded, source: Sequence[str], **settings: Any) -> list[Translation]: ...
def translate(  # type: ignore[misc] # the settings of the overloads are those written here
    loaded: Loaded,
    source: str | Sequence[str],
    *,
    beam: int = 4,
    length_penalty: float = 0.6,
    more: int = 50,
) -> Translation | list[Translation]:
    """Translate a text, or several. A text longer than the context is refused."""
    if beam < 1 or length_penalty < 0 or more < 1:
        raise UsageError(
            f"beam is {beam}, length_penalty {length_penalty:g}, more {more}.",
            expected="At least 1, 0 and 1.",
        )
    sources = [source] if isinstance(source, str) else list(source)
    model, end = loaded.translator, loaded.tokenizer.end_of_text
    ids = [[*loaded.tokenizer.encode(text).tolist(), end] for text in sources]
    for text, tokens in zip(sources, ids, strict=True):
        if len(tokens) > loaded.config.context:
            raise UsageError(
                f"{text[:40]!r}... has {len(tokens)} tokens.",
                expected=f"At most {loaded.config.context}, the model's context.",
                do="Give it in parts.",
            )
    found: dict[int, Translation] = {}
    for group in _alike(ids, max(1, _ROWS // beam)):
        with torch.inference_mode():
            search = _Search(model, loaded, [ids[number] for number in group], beam, length_penalty, more)
            results = search.run()
        for number, (tokens, logprob, score, finished) in zip(group, results, strict=True):
            text = loaded.tokenizer.decode(tokens)
            found[number] = Translation(sources[number], text, tokens, logprob, score, finished)
    done = [found[number] for number in range(len(sources))]
    return done[0] if isinstance(source, str) else done


Found = tuple[list[int], float, float, bool]


class _Search:
    """The search for several texts side by side, each with its own beam."""

    def __init__(
        self, model: EncoderDecoder, loaded: Loaded, ids: list[list[int]], beam: int, alpha: float, more: int
    ) -> None:
        self.model, self.loaded, self.beam, self.alpha = model, loaded, beam, alpha
        self.end, self.most = loaded.tokenizer.end_of_text, [len(tokens) + more for tokens in ids]
        longest = max(map(len, ids))
        source = torch.full((len(ids), longest), self.end, device=loaded.device)
        segments = torch.full((len(ids), longest), -1, device=loaded.device)
        for row, tokens in enumerate(ids):
            source[row, : len(tokens)], segments[row, : len(tokens)] = torch.tensor(tokens), 0
        self.memory = model.read(source, segments=segments)
        self.best: list[Found | None] = [None] * len(ids)

    def run(self) -> list[Found]:
        """The best text for each source."""
        beam, config = self.beam, self.loaded.config
        open_texts = list(range(len(self.best)))
        device = self.loaded.device
        memory = self._spread(open_texts)
        limit = min(max(self.most), config.context)
        cache = Cache(
            config, batch=len(open_texts) * beam, positions=limit, dtype=self.loaded.dtype, device=device
        )
        last = torch.full((len(open_texts) * beam, 1), self.end, device=device)
        texts: list[list[int]] = [[] for _ in range(len(open_texts) * beam)]
        scores = torch.full((len(open_texts), beam), -torch.inf, device=device)
        scores[:, 0] = 0.0  # at first all beginnings are the same one
        for length in range(1, limit + 1):
            logits = self.model.write(last, memory, cache=cache)[:, -1, : self.loaded.tokenizer.vocab_size]
            cache.length = length
            logprobs = logits.float().log_softmax(-1).view(len(open_texts), beam, -1)
            total = scores[..., None] + logprobs
            top, index = total.flatten(1).topk(min(2 * beam, total[0].numel()))
            size = logprobs.shape[-1]
            rows, scores, stay = self._choose(open_texts, texts, top.tolist(), (index // size).tolist(),
                                              (index % size).tolist(), length, limit)  # fmt: skip
            if not stay:
                break
            texts = [[*texts[row], token] for row, token in rows]
            order = torch.tensor([row for row, _ in rows], device=device)
            last = torch.tensor([[token] for _, token in rows], device=device)
            cache.reorder(order)
            if len(stay) < len(open_texts):
                open_texts = stay
                memory = self._spread(open_texts)
        return [found for found in self.best if found is not None]

    def _choose(
        self,
        open_texts: list[int],
        texts: list[list[int]],
        top: list[list[float]],
        parents: list[list[int]],
        tokens: list[list[int]],
        length: int,
        limit: int,
    ) -> tuple[list[tuple[int, int]], Tensor, list[int]]:
        """((row, next token) of every beginning to go on with, their scores, the sources still open)."""
        penalty = ((5 + length) / 6) ** self.alpha
        rows: list[tuple[int, int]] = []
        kept: list[list[float]] = []
        stay: list[int] = []
        for place, number in enumerate(open_texts):
            going: list[tuple[float, int, int]] = []
            for rank, (score, parent, token) in enumerate(
                zip(top[place], parents[place], tokens[place], strict=True)
            ):
                row = place * self.beam + parent
                if token != self.end:
                    going.append((score, row, token))
                elif rank < self.beam:
                    self._offer(number, texts[row], score, score / penalty, True)
            going = going[: self.beam]
            best = self.best[number]
            most = min(self.most[number], limit)
            reachable = ((5 + most) / 6) ** self.alpha
            hopeless = best is not None and going[0][0] / reachable <= best[2]
            if length >= most and best is None:
                score, row, token = going[0]
                self._offer(number, [*texts[row], token], score, score / penalty, False)
            if hopeless or length >= most:
                continue
            stay.append(number)
            while len(going) < self.beam:
                going.append((-torch.inf, going[0][1], going[0][2]))
            rows += [(row, token) for _, row, token in going]
            kept.append([score for score, _, _ in going])
        return rows, torch.tensor(kept, device=self.loaded.device), stay

    def _offer(self, number: int, tokens: list[int], logprob: float, score: float, finished: bool) -> None:
        best = self.best[number]
        if best is None or score > best[2]:
            self.best[number] = (list(tokens), logprob, score, finished)

    def _spread(self, numbers: list[int]) -> Memory:
        """What the encoder made of these sources, once for each beginning of each."""
        index = torch.tensor(
            [number for number in numbers for _ in range(self.beam)], device=self.loaded.device
        )
        return self.memory.rows(index)


def _alike(ids: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Numbers of texts, those of about the same length together."""
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    for first in range(0, len(order), most):
        yield order[first : first + most]
