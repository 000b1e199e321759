"""The task `translate`: an encoder-decoder learns to write a target for a source (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from glassformer.files import cache_folder
from glassformer.look.attention import cross_attention_rows
from glassformer.text.batches import NO_LOSS
from glassformer.text.pair_batches import PairBatch, PairBatches, pair_validation_batches
from glassformer.text.pairs import prepare_pairs
from glassformer.train.recipe import PairRecipe
from glassformer.train.task import Event, OnTokens, Progress
from glassformer.use.bleu import judge_translations
from glassformer.use.translate import translate

_SAMPLES = 3
_JUDGED = 2000
"""Pairs translated at the end, at most."""


class TranslationTask(OnTokens):
    recipe: PairRecipe

    def __init__(self, recipe: PairRecipe, base: Path, progress: Progress) -> None:
        self.prepared = prepare_pairs(
            recipe.data, recipe.tokenizer, base=base, cache=cache_folder() / "tokens", progress=progress
        )
        super().__init__(recipe, self.prepared.tokenizer)
        self.digests = {"data": self.prepared.digest, "tokenizer": self.tokenizer.digest}
        self.report, self.warnings = self.prepared.report, self.prepared.warnings
        self.training_tokens = self.prepared.train.target.num_tokens
        self.validation_tokens = self.prepared.validation.target.num_tokens
        self.batches = PairBatches(
            self.prepared.train, batch=recipe.train.batch, context=self.config.context, seed=recipe.train.seed
        )

    def validation(self, rows: int) -> Iterator[PairBatch]:
        return pair_validation_batches(self.prepared.validation, batch=rows, context=self.config.context)

    def num_bytes(self, batch: PairBatch) -> int:
        return int(self.tokenizer.token_bytes[batch.targets[batch.targets != NO_LOSS]].sum())

    def samples(self, model: nn.Module) -> Iterator[Event]:
        prompts = self.recipe.train.sample_prompts
        if prompts is None:
            prompts = tuple(source for source, _ in self.prepared.texts[:_SAMPLES])
        found = translate(self.loaded(model), list(prompts), beam=1) if prompts else []
        for sample in found:
            yield {"event": "sample", "prompt": f"{sample.source}\n", "text": sample.text}

    def judge(self, model: nn.Module, *, whole: bool) -> Event:
        """BLEU (where sacrebleu is installed) and exact matches of pairs held out, by greedy search."""
        pairs = self.prepared.texts[:_JUDGED] if whole else []
        if not pairs:
            return {}
        written = [
            found.text for found in translate(self.loaded(model), [source for source, _ in pairs], beam=1)
        ]
        wanted = [target for _, target in pairs]
        return judge_translations(written, wanted)

    def picture(self, model: nn.Module) -> Event | None:
        if not (self.prepared.texts and self.config.layers):
            return None
        source, target = min(self.prepared.texts[:50], key=lambda pair: abs(len(pair[0]) - 60))
        return cross_attention_rows(self.loaded(model), source, target)
