"""What the recipe says about text: `[data]` and `[tokenizer]`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from glassformer.configs import Config, Names
from glassformer.text.lines import is_table

Encoding = Literal["strict", "replace", "bytes"]
OnError = Literal["stop", "skip"]


class SourceConfig(Config):
    """One source of text among several."""

    path: str
    """A file, a directory, a glob, `python:stdlib` (the standard library's own code) or `python:tests` (its tests)."""
    weight: float | None = Field(None, gt=0)
    """Its share of training samples, relative to the other sources' weights. Given for all sources or for
    none; without weights every token is seen equally often."""
    field: str | None = None
    """The column or key holding the text, for .jsonl, .csv, .tsv and .parquet; left out, `text`."""


class DataConfig(Config):
    """`[data]`: which text, how it is read, how it becomes samples."""

    paths: tuple[str | SourceConfig, ...] = Field(("python:stdlib",), min_length=1)
    """Files, directories, globs, or tables with `path`, `weight`, `field`. Relative to the recipe's
    folder."""
    field: str | None = None
    """The column or key holding the text, for all sources that do not name their own."""
    encoding: Encoding = "strict"
    """Invalid UTF-8: `strict` refuses with line numbers, `replace` puts U+FFFD, `bytes` keeps the bytes
    exactly."""
    on_error: OnError = "stop"
    """A file that cannot be read whole: stop, or skip it and say so."""
    validation: float = Field(0.05, ge=0, lt=1)
    """Fraction held out from training, to measure the loss on."""
    split: Literal["documents", "tail"] = "documents"
    """`documents`: each is held out or not by its own hash, so adding files moves none of the others.
    `tail`: the last part of every source is held out, as nanoGPT does with a single file."""
    packing: Literal["stream", "fit"] = "stream"
    """`stream`: documents end to end, cut into windows. `fit`: whole documents, best-fit into rows,
    padded."""
    mask_documents: bool = False
    """Attention may not cross from one document into another in the same row."""

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """Every entry of `paths` as a table, with the common `field` filled in."""
        tables = (
            SourceConfig(path=entry, weight=None) if isinstance(entry, str) else entry for entry in self.paths
        )
        return tuple(t if t.field else t.model_copy(update={"field": self.field}) for t in tables)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The sources' weights, or None when samples follow the sizes of the sources."""
        given = tuple(source.weight for source in self.sources if source.weight is not None)
        return given or None

    @field_validator("paths", mode="before")
    @classmethod
    def _one_path_is_a_list_of_one(cls, paths: Any) -> Any:
        return (paths,) if isinstance(paths, str | dict) else paths

    @model_validator(mode="after")
    def _sources_fit_together(self) -> Self:
        paths = [source.path for source in self.sources]
        if repeated := sorted({path for path in paths if paths.count(path) > 1}):
            raise ValueError(f"paths names {', '.join(repeated)} more than once; name each source once")
        if self.weights and len(self.weights) != len(self.paths):
            missing = ", ".join(source.path for source in self.sources if source.weight is None)
            raise ValueError(f"paths gives some sources a weight, but not {missing}; give all one, or none")
        return self


class PairConfig(Config):
    """`[data]` of a translation: pairs of texts."""

    paths: Names = Field(("python:numbers",), min_length=1, max_length=2)
    """One .tsv, .csv, .jsonl or .parquet with both sides in a row; or two files of lines, source and target; or
    `python:numbers`, numbers in English and German words."""
    validation_paths: Names = Field((), max_length=2)
    """Pairs to hold out, given in the same way; left out, a fraction of `paths` is."""
    validation: float = Field(0.05, ge=0, lt=1)
    """Fraction held out, each pair by its own hash."""
    source_field: str = "source"
    """The field that holds the text to be read (.csv, .jsonl, .parquet)."""
    target_field: str = "target"
    """The field that holds the text to be written."""
    reverse: bool = False
    """Learn the other direction: from target to source."""
    encoding: Encoding = "strict"
    """Invalid UTF-8, as for text."""

    @model_validator(mode="after")
    def _two_files_or_a_table(self) -> Self:
        for name, paths in (("paths", self.paths), ("validation_paths", self.validation_paths)):
            if len(paths) == 1 and not is_table(paths[0]) and not paths[0].startswith("python:"):
                raise ValueError(
                    f"{name} names one file, {paths[0]}, which holds one side; give two files of lines, "
                    "or a .tsv, .csv, .jsonl or .parquet with both"
                )
        return self


class MaskConfig(Config):
    """`[mask]`: what an encoder has to guess (Devlin et al. 2019)."""

    share: float = Field(0.15, gt=0, lt=1)
    """Of each row's tokens, so many are to be guessed."""
    hidden: float = Field(0.8, ge=0, le=1)
    """Of those, so many are replaced by the mask token."""
    random: float = Field(0.1, ge=0, le=1)
    """And so many by a random token; the rest stay as they are."""

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        if self.hidden + self.random > 1:
            raise ValueError(f"hidden {self.hidden:g} and random {self.random:g} are more than all")
        return self


class LabelConfig(Config):
    """`[data]` of a classifier: texts with their classes."""

    paths: Names = Field(("python:packages",), min_length=1)
    """.tsv (text, then label), .csv, .jsonl or .parquet; or `python:packages`, functions of Python's standard
    library and the package each is from."""
    validation_paths: Names = ()
    """Texts to hold out, given in the same way; left out, a fraction of `paths` is."""
    validation: float = Field(0.1, ge=0, lt=1)
    """Fraction held out, each text by its own hash."""
    text_field: str = "text"
    """The field that holds the text (.csv, .jsonl, .parquet)."""
    label_field: str = "label"
    """The field that holds its class."""
    encoding: Encoding = "strict"
    """Invalid UTF-8, as for text."""

    @model_validator(mode="after")
    def _tables(self) -> Self:
        for path in (*self.paths, *self.validation_paths):
            if not is_table(path) and not path.startswith("python:"):
                raise ValueError(
                    f"{path} cannot hold texts with labels; give a .tsv, .csv, .jsonl or .parquet"
                )
        return self


SMALLEST_BPE = 257
"""256 bytes and `<|endoftext|>`."""


class TokenizerConfig(Config):
    """`[tokenizer]`: how words become ids."""

    kind: Literal["bpe", "characters", "bytes"] = "bpe"
    vocab: int = Field(8192, ge=1)
    """Size of the vocabulary, special tokens included. Ignored by `bytes` (257) and `characters` (as many as
    occur)."""
    normalization: Literal["none", "nfc", "nfkc"] = "none"
    """Unicode normalisation before encoding; `none` keeps the round trip exact."""
    training_bytes: int = Field(200_000_000, ge=1)
    """At most this much text is used to learn the vocabulary (every n-th document of a larger corpus)."""
    mask_token: bool = False
    """A token `<|mask|>` that stands for a hidden one; the task `mask` asks for it by itself."""
    path: str | None = None
    """A `tokenizer.json` to use as it is, instead of training one."""

    @model_validator(mode="after")
    def _vocab_holds_all_bytes(self) -> Self:
        smallest = SMALLEST_BPE + self.mask_token
        if self.kind == "bpe" and self.path is None and self.vocab < smallest:
            raise ValueError(
                f"vocab {self.vocab} is too small for kind 'bpe': it needs at least {smallest} (256 bytes and "
                f"{smallest - 256} special token{'s' * self.mask_token}); use kind 'bytes' for the smallest vocabulary"
            )
        return self
