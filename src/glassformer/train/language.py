"""The task `language`: a decoder learns to go on with a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from glassformer.errors import TokenizerError
from glassformer.files import cache_folder
from glassformer.look.attention import attention_rows
from glassformer.text.batches import NO_LOSS, Batch, Batches, validation_batches
from glassformer.text.shards import prepare
from glassformer.train.recipe import Recipe
from glassformer.train.task import Event, OnTokens, Progress
from glassformer.use.generate import generate

_PICTURED_TOKENS = 32


class LanguageTask(OnTokens):
    recipe: Recipe

    def __init__(self, recipe: Recipe, base: Path, progress: Progress) -> None:
        data = recipe.data
        self.prepared = prepare(
            data, recipe.tokenizer, base=base, cache=cache_folder() / "tokens", progress=progress
        )
        super().__init__(recipe, self.prepared.tokenizer)
        self.digests = {"data": self.prepared.digest, "tokenizer": self.tokenizer.digest}
        self.report, self.warnings = self.prepared.report, self.prepared.warnings
        self.training_tokens = self.prepared.train.num_tokens
        self.validation_tokens = self.prepared.validation.num_tokens
        self.batches = Batches(
            self.prepared.train, batch=recipe.train.batch, context=self.config.context, seed=recipe.train.seed,
            packing=data.packing, mask_documents=data.mask_documents, weights=data.weights,
        )  # fmt: skip

    def validation(self, rows: int) -> Iterator[Batch]:
        return validation_batches(
            self.prepared.validation, batch=rows, context=self.config.context,
            mask_documents=self.recipe.data.mask_documents,
        )  # fmt: skip

    def num_bytes(self, batch: Batch) -> int:
        return int(self.tokenizer.token_bytes[batch.targets[batch.targets != NO_LOSS]].sum())

    def samples(self, model: nn.Module) -> Iterator[Event]:
        train = self.recipe.train
        prompts = ("\n",) if train.sample_prompts is None else train.sample_prompts
        for prompt in prompts if train.sample_tokens else ():
            try:
                text = generate(
                    self.loaded(model), prompt, max_tokens=train.sample_tokens, seed=train.seed
                ).text
            except TokenizerError as error:  # a prompt that this text's characters cannot spell
                yield {"event": "warning", "message": f"no sample of {prompt!r}: {error}"}
            else:
                yield {"event": "sample", "prompt": prompt, "text": text}

    def picture(self, model: nn.Module) -> Event | None:
        store = self.prepared.validation if self.prepared.validation.num_tokens else self.prepared.train
        text = self.tokenizer.decode(store.ids[:_PICTURED_TOKENS].tolist())
        if not (text and self.config.layers):
            return None
        return attention_rows(self.loaded(model).decoder, self.tokenizer, text)
