"""The task `label`: an encoder learns which class a text is of, from scratch or on top of another's weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from glassformer.errors import ConfigError
from glassformer.files import write_json
from glassformer.text.labels import LabelBatch, LabelBatches, label_validation_batches, prepare_labels
from glassformer.train.recipe import LabelRecipe
from glassformer.train.task import Event, OnTokens, Progress
from glassformer.use.classify import classify
from glassformer.use.load import LABELS, Loaded, save_model

_SAMPLES = 3


class LabelTask(OnTokens):
    recipe: LabelRecipe

    def __init__(self, recipe: LabelRecipe, base: Path, progress: Progress) -> None:
        self.prepared = prepare_labels(recipe.data, recipe.tokenizer, base=base, progress=progress)
        asked, found = recipe.model.classes, len(self.prepared.classes)
        if asked not in (None, found):
            raise ConfigError(
                "The model does not fit the text:", [f"model.classes is {asked}, but the text has {found}"],
                do="Leave model.classes out.",
            )  # fmt: skip
        super().__init__(recipe, self.prepared.tokenizer, classes=found)
        self.digests = {"data": self.prepared.digest, "tokenizer": self.tokenizer.digest}
        self.report, self.warnings = self.prepared.report, self.prepared.warnings
        self.training_tokens = sum(len(ids) for ids, _ in self.prepared.train)
        self.validation_tokens = sum(len(ids) for ids, _ in self.prepared.validation)
        self.batches = LabelBatches(
            self.prepared.train, batch=recipe.train.batch, context=self.config.context, seed=recipe.train.seed,
            end_of_text=self.tokenizer.end_of_text,
        )  # fmt: skip

    def keep(self, folder: Path) -> None:
        super().keep(folder)
        write_json(folder / LABELS, list(self.prepared.classes))

    def validation(self, rows: int) -> Iterator[LabelBatch]:
        return label_validation_batches(
            self.prepared.validation, batch=rows, context=self.config.context,
            end_of_text=self.tokenizer.end_of_text,
        )  # fmt: skip

    def samples(self, model: nn.Module) -> Iterator[Event]:
        prompts = self.recipe.train.sample_prompts
        if prompts is None:
            prompts = tuple(text.decode("utf-8", "replace") for text, _ in self.prepared.texts[:_SAMPLES])
        for row in classify(self.loaded(model), list(prompts), cut=True):
            yield {"event": "sample", "prompt": f"{row['text']}\n",
                   "text": f"{row['class']} ({row['probability']:.0%})"}  # fmt: skip

    def judge(self, model: nn.Module, *, whole: bool) -> Event:
        """How often the likeliest class is the right one, and how often it would be if the commonest class of the
        training texts were always named."""
        texts = self.prepared.texts
        if not (texts and whole):
            return {}
        rows = classify(self.loaded(model), [text.decode("utf-8", "replace") for text, _ in texts], cut=True)
        right = sum(row["class"] == label for row, (_, label) in zip(rows, texts, strict=True))
        counts: dict[str, int] = self.prepared.report["classes"]
        commonest = max(counts, key=lambda name: counts[name])
        chance = sum(label == commonest for _, label in texts) / len(texts)
        return {"accuracy": right / len(texts), "commonest_class": chance, "judged_texts": len(texts)}

    def save(self, folder: Path, model: nn.Module) -> None:
        save_model(folder, self.loaded(model).model, self.tokenizer, classes=self.prepared.classes)

    def loaded(self, model: nn.Module) -> Loaded:
        return Loaded(model, self.tokenizer, self.config, Path(), classes=self.prepared.classes)  # type: ignore[arg-type] # `build` made it
