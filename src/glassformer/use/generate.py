"""Weights -> words: read the prompt once, then write one token at a time.

    prompt -> ids -> model (all positions at once, keys and values kept)
           -> logits of the last position -> a token (use/sample.py) -> model (one position) -> logits -> ...

- The weights are read and never written: `weights_digest(model)` is the same before and after.
- An empty prompt begins from the end-of-text token, as every document does in training.
- Of a prompt longer than the context the last `context` tokens are read, and a warning says so.
- When the context is full, its last half is read again as a new beginning, and a warning says so; with
  `slide=False` the text ends there instead.
- The same request (prompt, settings, seed) gives the same text, alone or among others: a token's draw hangs
  on the seed and the token's number only. Logits in batches of different sizes may differ in their last bits
  (a matrix product then adds up in another order), which changes about one fp32 draw in a million.
- Prompts of different lengths share a batch without padding, as in Llama's reference code: all are read up to
  the end of the shortest, from where each row goes on with its own prompt until it has none left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.model.transformer import Ids
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.cache import Cache
from glassformer.use.load import Loaded
from glassformer.use.sample import Sampling, choose, log_normaliser, penalised, uniform
from glassformer.use.words import Finish, Words


@dataclass(frozen=True, slots=True)
class Generation:
    """A text that was written, and how it went. Printed, it is the prompt and the text."""

    prompt: str
    text: str
    """What was written: without the prompt, without the stop string."""
    tokens: list[int]
    """Every token drawn, those of a stop string too; the end-of-text token is not among them."""
    logprobs: list[float]
    """The model's own log-probability of each, in nats (temperature 1, no filter)."""
    finish: Finish
    """`length`: max_tokens or the context reached; `stop`: a stop string came; `end`: the model ended it."""
    seconds: float
    tokens_per_second: float
    """Tokens drawn in the whole batch over its seconds, reading the prompts included."""
    warnings: list[str]

    def __str__(self) -> str:
        return self.prompt + self.text

    def to_dict(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"schema": "glassformer.generation", "version": 1, **values}


@overload
def generate(loaded: Loaded, prompt: str = "", **settings: Any) -> Generation: ...
@overload
def generate(loaded: Loaded, prompt: Sequence[str], **settings: Any) -> list[Generation]: ...
def generate(  # type: ignore[misc] # the settings of the overloads are those written here
    loaded: Loaded,
    prompt: str | Sequence[str] = "",
    *,
    max_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int | Sequence[int] = 0,
    stop: str | Sequence[str] = (),
    slide: bool = True,
    on_text: Callable[[str], None] | None = None,
) -> Generation | list[Generation]:
    """Go on with a prompt, or with several at once. One seed serves every prompt; a list gives each its own.

    `on_text` is called with each piece of the text as it comes (of one prompt).
    """
    if on_text is not None and not isinstance(prompt, str):
        raise UsageError("on_text follows one prompt.", do="Call generate for each prompt, or leave it out.")
    writing = _Writing(
        loaded, [prompt] if isinstance(prompt, str) else list(prompt), max_tokens, seed, stop, slide,
        Sampling(temperature, top_k, top_p, min_p, repetition_penalty),
    )  # fmt: skip
    for pieces in writing.steps():
        if on_text is not None and pieces[0]:
            on_text(pieces[0])
    done = writing.done()
    return done[0] if isinstance(prompt, str) else done


def stream(
    loaded: Loaded,
    prompt: str = "",
    *,
    max_tokens: int = 200,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    slide: bool = True,
    **sampling: Any,
) -> Generator[str, None, Generation]:
    """`generate`, piece by piece: whole characters, which together are the text. `sampling` as in `Sampling`.

    Closing the generator ends the work; run to its end, it returns the Generation.
    """
    writing = _Writing(loaded, [prompt], max_tokens, seed, stop, slide, Sampling(**sampling))
    for pieces in writing.steps():
        if pieces[0]:
            yield pieces[0]
    return writing.done()[0]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is read of a prompt.

    A last token of nothing but space is taken off and held back, and the first new token must begin with it:
    byte-level vocabularies put the space at the beginning of a word, so `def ` with its space as a token of its
    own is something that the model never read.
    """

    ids: tuple[int, ...]
    held: bytes
    warnings: tuple[str, ...]

    @classmethod
    def read(cls, loaded: Loaded, prompt: str) -> Prompt:
        ids = loaded.tokenizer.encode(prompt).tolist() or [loaded.tokenizer.end_of_text]
        held = loaded.tokenizer.decode_bytes(ids[-1:])
        if len(ids) < 2 or held.strip():
            held = b""
        if held:
            ids.pop()
        length, context = len(ids), loaded.config.context
        long = f"The prompt has {length} tokens; its last {context} were read, the model's context."
        return cls(tuple(ids[-context:]), held, (long,) if length > context else ())


def next_logits(loaded: Loaded, ids: Ids, cache: Cache) -> Float[Tensor, "batch vocab"]:
    """What the decoder says of the token after the last of `ids`, which follow those in the cache. A model's
    vocabulary may be padded; ids beyond the tokenizer's mean nothing and are left out."""
    hidden = loaded.decoder.hidden(ids, cache=cache)[:, -1]
    logits: Tensor = loaded.model.head(hidden)[:, : loaded.tokenizer.vocab_size].float()
    return logits


def beginning_with(
    scores: Float[Tensor, " vocab"], tokenizer: Tokenizer, held: bytes
) -> Float[Tensor, " vocab"]:
    """Only tokens stay whose text begins with what the prompt held back."""
    fits = torch.from_numpy(tokenizer.beginning_with(held))
    return scores.masked_fill(~fits.to(scores.device), -torch.inf)


class _Writing:
    """Requests that are written side by side, always at the same position."""

    def __init__(
        self,
        loaded: Loaded,
        prompts: Sequence[str],
        max_tokens: int,
        seed: int | Sequence[int],
        stop: str | Sequence[str],
        slide: bool,
        sampling: Sampling,
    ) -> None:
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
        if max_tokens < 0:
            raise UsageError(f"max_tokens is {max_tokens}.", expected="Expected 0 or more.")
        if not all(stop):
            raise UsageError("A stop string is empty, so nothing could be written.", do="Leave it out.")
        if len(seeds) != len(prompts):
            raise UsageError(
                f"{len(prompts)} prompts came with {len(seeds)} seeds.", do="Give one, or one for each."
            )
        self.loaded, self.sampling, self.slide = loaded, sampling, slide
        self.started = self.ended = time.perf_counter()
        self.requests = [
            _Request(loaded, prompt, max_tokens, seed, stop)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    @torch.inference_mode()
    def steps(self) -> Iterator[list[str]]:
        """Write; after each step, the new piece of every request's text (often empty)."""
        if not any(request.open for request in self.requests):
            return
        config, device = self.loaded.config, self.loaded.device
        most = max(len(request.ids) + request.max_tokens for request in self.requests)
        cache = Cache(
            config, batch=len(self.requests), positions=most, dtype=self.loaded.dtype, device=device
        )
        begin, read, end = 0, 0, min(len(request.ids) for request in self.requests)
        while True:
            ids = torch.tensor([request.between(read, end) for request in self.requests], device=device)
            logits = next_logits(self.loaded, ids, cache)
            cache.length = end - begin  # a model without layers has nobody to move it on
            yield self._take(logits, end)
            if not any(request.open for request in self.requests):
                return
            read, end = end, end + 1
            if end - begin > config.context and self.slide:
                begin = read = end - max(1, config.context // 2)
                cache.length = 0
                self._warn(f"whenever it is, its last {end - begin} are read as a new beginning")
            elif end - begin > config.context:
                self._warn("the text ends there")
                yield [request.close("length") for request in self.requests]
                return

    def done(self) -> list[Generation]:
        num_tokens = sum(len(request.tokens) for request in self.requests)
        seconds = self.ended - self.started
        return [request.done(seconds, num_tokens / seconds if seconds else 0.0) for request in self.requests]

    def _take(self, logits: Float[Tensor, "request vocab"], end: int) -> list[str]:
        """Choose each request's token number `end`, where its prompt does not say; the new pieces of text."""
        total = log_normaliser(logits)
        # In 64 bits: in 32, one u in 33 million would round up to 1, which no running sum passes.
        u = torch.tensor(
            [uniform(request.seed, len(request.tokens)) for request in self.requests], dtype=torch.float64
        )
        scores = logits
        if self.sampling.repetition_penalty != 1:
            there = [request.ids[:end] for request in self.requests]
            penalty = self.sampling.repetition_penalty
            scores = torch.stack(
                [penalised(row, ids, penalty) for row, ids in zip(logits, there, strict=True)]
            )
        for row, request in enumerate(self.requests):
            if request.held and len(request.ids) == end:
                scores = scores.clone()
                scores[row] = beginning_with(scores[row], self.loaded.tokenizer, request.held)
        chosen = choose(scores, self.sampling, u.to(logits.device))
        logprobs = logits.gather(-1, chosen[:, None])[:, 0] - total
        drawn = zip(chosen.tolist(), logprobs.tolist(), strict=True)
        pieces = [
            request.take(token, logprob) if len(request.ids) == end else ""
            for request, (token, logprob) in zip(self.requests, drawn, strict=True)
        ]
        self.ended = time.perf_counter()
        return pieces

    def _warn(self, consequence: str) -> None:
        full = f"The context of {self.loaded.config.context} tokens was full after"
        for request in self.requests:
            if request.open and not any(full in warning for warning in request.warnings):
                request.warnings.append(f"{full} {len(request.tokens)} new ones; {consequence}.")


class _Request:
    """One prompt and what was written after it."""

    def __init__(
        self, loaded: Loaded, prompt: str, max_tokens: int, seed: int, stop: tuple[str, ...]
    ) -> None:
        self.prompt, self.max_tokens, self.seed = prompt, max_tokens, seed
        self.tokenizer, self.words = loaded.tokenizer, Words(stop)
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.warnings: list[str] = []
        self.finish: Finish | None = None if max_tokens else "length"
        read = Prompt.read(loaded, prompt)
        self.ids, self.held = list(read.ids), read.held
        self.warnings += read.warnings

    @property
    def open(self) -> bool:
        return self.finish is None

    def between(self, start: int, end: int) -> list[int]:
        """The ids at these positions; where the text has ended already, nothing that matters."""
        ids = self.ids[start:end]
        return ids + [self.tokenizer.end_of_text] * (end - start - len(ids))

    def take(self, token: int, logprob: float) -> str:
        """Go on by one token; the piece of text that is certain now."""
        if not self.open:
            return ""
        if token == self.tokenizer.end_of_text:
            return self.close("end")
        self.ids.append(token)
        self.tokens.append(token)
        self.logprobs.append(logprob)
        new = self.tokenizer.decode_bytes([token])[len(self.held) :]
        self.held = b""
        piece = self.words.add(new)
        if self.words.stopped:
            return piece + self.close("stop")
        return piece + self.close("length") if len(self.tokens) == self.max_tokens else piece

    def close(self, finish: Finish) -> str:
        if not self.open:
            return ""
        piece = self.words.add(b"", last=True)
        self.finish = "stop" if self.words.stopped else finish
        return piece

    def done(self, seconds: float, tokens_per_second: float) -> Generation:
        assert self.finish is not None
        return Generation(
            self.prompt, self.words.text, self.tokens, self.logprobs, self.finish, seconds, tokens_per_second,
            self.warnings,
        )  # fmt: skip
