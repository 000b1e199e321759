"""The task `mask`: an encoder learns to guess the tokens of a text that were hidden (Devlin et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from glassformer.files import cache_folder
from glassformer.look.attention import attention_rows
from glassformer.model import count
from glassformer.seeds import generator
from glassformer.text.batches import NO_LOSS, Batches, validation_batches
from glassformer.text.masked import MaskBatch, MaskedBatches, mask_id, masked, num_picked
from glassformer.text.shards import prepare
from glassformer.text.tokenizer import MASK, Ids
from glassformer.train.recipe import MaskRecipe
from glassformer.train.task import Event, OnTokens, Progress
from glassformer.use.fill import fill_in

_PICTURED_TOKENS = 32
_SAMPLES, _SAMPLE_TOKENS = 3, 24
_JUDGED = 20_000
"""Hidden tokens whose guesses are counted at the end, at most."""


class MaskTask(OnTokens):
    recipe: MaskRecipe

    def __init__(self, recipe: MaskRecipe, base: Path, progress: Progress) -> None:
        data = recipe.data
        self.prepared = prepare(
            data, recipe.tokenizer, base=base, cache=cache_folder() / "tokens", progress=progress
        )
        super().__init__(recipe, self.prepared.tokenizer)
        mask_id(self.tokenizer)  # a tokenizer from elsewhere may have none
        self.digests = {"data": self.prepared.digest, "tokenizer": self.tokenizer.digest}
        self.report, self.warnings = self.prepared.report, self.prepared.warnings
        self.training_tokens = self.prepared.train.num_tokens
        self.validation_tokens = self.prepared.validation.num_tokens
        context = self.config.context
        picked = num_picked(recipe.mask, context) / context
        self.flops_per_token = count.flops_per_token(self.config, "matmul", predicted=picked)
        plain = Batches(
            self.prepared.train, batch=recipe.train.batch, context=context, seed=recipe.train.seed,
            packing=data.packing, mask_documents=data.mask_documents, weights=data.weights,
        )  # fmt: skip
        self.batches = MaskedBatches(plain, recipe.mask, self.tokenizer, recipe.train.seed)

    def validation(self, rows: int) -> Iterator[MaskBatch]:
        """The same places are hidden every time. Where training knows no padding, the last row is left out unless it
        is full or the only one, so that what was compiled for training serves here too."""
        store, context = self.prepared.validation, self.config.context
        plain = validation_batches(
            store, batch=rows, context=context, mask_documents=self.recipe.data.mask_documents
        )
        padded = self.batches.waste > 0 or store.num_tokens < context
        for number, batch in enumerate(plain):
            if not padded:
                short = (batch.targets == NO_LOSS).any(1, keepdims=True)
                batch = replace(batch, targets=np.where(short, NO_LOSS, batch.targets))
            key = f"validation {number}"
            yield masked(batch, self.recipe.mask, self.tokenizer, self.recipe.train.seed, key, padded=padded)

    def samples(self, model: nn.Module) -> Iterator[Event]:
        prompts = self.recipe.train.sample_prompts
        for prompt in self._hidden_texts() if prompts is None else prompts:
            yield {"event": "sample", "prompt": f"{prompt}\n", "text": fill_in(self.loaded(model), prompt)}

    def judge(self, model: nn.Module, *, whole: bool) -> Event:
        """How often the likeliest token is the hidden one, on text held out."""
        if not whole:
            return {}
        encoder = self.loaded(model).encoder
        right = total = 0
        for batch in self.validation(self.recipe.train.batch // self.recipe.train.accumulate):
            arrays = {
                name: None if values is None else torch.from_numpy(values).to(encoder.embed.weight.device)
                for name, values in batch.arrays().items()
            }
            ids, targets, places = arrays["ids"], arrays["targets"], arrays["places"]
            assert ids is not None and targets is not None and places is not None
            with torch.no_grad():
                x = encoder.hidden(ids, segments=arrays["segments"])
                x = x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
                guesses = encoder.head(encoder.transformed(x)).argmax(-1)
            right += int((guesses == targets).sum())
            total += batch.num_targets
            if total >= _JUDGED:
                break
        return {"accuracy": right / total, "judged_tokens": total} if total else {}

    def picture(self, model: nn.Module) -> Event | None:
        ids = self._held_out(0, _PICTURED_TOKENS - 1)
        text = self.tokenizer.decode(ids)
        return (
            attention_rows(self.loaded(model).encoder, self.tokenizer, text) if self.config.layers else None
        )

    def _hidden_texts(self) -> Iterator[str]:
        """Stretches of held-out text with one token of each hidden."""
        size = min(_SAMPLE_TOKENS, self.config.context - 1)
        for number in range(_SAMPLES):
            ids = self._held_out(number, size)
            ordinary = np.flatnonzero(self.tokenizer.token_bytes[ids] > 0)
            if len(ordinary):
                place = int(generator(self.recipe.train.seed, "sample", number).choice(ordinary))
                yield self.tokenizer.decode(ids[:place]) + MASK + self.tokenizer.decode(ids[place + 1 :])

    def _held_out(self, number: int, size: int) -> Ids:
        store = self.prepared.validation if self.prepared.validation.num_tokens else self.prepared.train
        first = number * store.num_tokens // _SAMPLES
        return np.asarray(store.ids[first : first + size], np.int64)
