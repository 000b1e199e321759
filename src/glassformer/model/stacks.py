"""Whole models: embeddings, stacks of blocks, and a head.

decoder           ids -> token vectors (+ positions) -> causal blocks -> norm -> scores of the next token
encoder           ids -> token vectors (+ positions) -> blocks that see the whole row -> norm -> scores of the
                  token that stands here, or of classes, or the vectors themselves
encoder-decoder   source -> encoder blocks -> memory;  ids -> causal blocks that also read the memory -> scores
                  of the next token
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from glassformer.model.attention import KeyValues
from glassformer.model.config import ModelConfig
from glassformer.model.dropout import dropout
from glassformer.model.feedforward import ACTIVATIONS
from glassformer.model.norms import Norm
from glassformer.model.places import See, unseen, wants, within
from glassformer.model.transformer import Ids, Memory, Transformer, Vectors


class Decoder(Transformer):
    """Reads tokens from left to right and gives, at each, a score for every token that could come next."""

    def forward(
        self,
        ids: Ids,
        *,
        segments: Int[Tensor, "batch key"] | None = None,
        cache: KeyValues | None = None,
        see: See = unseen,
    ) -> Float[Tensor, "batch position vocab"]:
        """Logits. `segments` numbers the document of each token, and attention stays inside documents; with a
        `cache`, `ids` are the tokens after those it holds."""
        return self._scores(self.hidden(ids, segments=segments, cache=cache, see=see), see, ids)

    def hidden(
        self,
        ids: Ids,
        *,
        segments: Int[Tensor, "batch key"] | None = None,
        cache: KeyValues | None = None,
        see: See = unseen,
    ) -> Vectors:
        """The last layer's vectors after the final norm: what the head turns into logits."""
        x = self._embedded(ids, start=0 if cache is None else cache.length, see=see)
        return self._through(self.stacks[0], x, segments=segments, cache=cache, see=see)

    def loss(
        self,
        ids: Ids,
        targets: Ids,
        *,
        segments: Ids | None = None,
        num_targets: Int[Tensor, ""] | int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats over the targets that are not -100.

        `num_targets` divides instead of this row's own count, so that micro-batches add up to the mean.
        """
        hidden = self.hidden(ids, segments=segments)
        return self.compare(
            hidden, targets, num_targets=num_targets, label_smoothing=label_smoothing, z_loss=z_loss
        )


class Encoder(Transformer):
    """Reads a row whole: every position sees all others (Devlin et al. 2019)."""

    def forward(
        self,
        ids: Ids,
        *,
        segments: Ids | None = None,
        types: Ids | None = None,
        see: See = unseen,
    ) -> Float[Tensor, "batch position vocab"] | Float[Tensor, "batch class"] | Vectors:
        """What the config's head gives: scores of tokens, scores of classes, or the vectors.

        `segments` numbers the text of each token, -1 where a row is padded; attention stays inside a text. Scores
        of classes are of a whole row, whose padding alone is left out.
        """
        x = self.hidden(ids, segments=segments, types=types, see=see)
        match self.config.head:
            case "tokens":
                return self._scores(self.transformed(x), see)
            case "classes":
                pooled = see("pooled", self.pooled(x, segments))
                dropped = dropout(pooled, self.config.dropout, self.training)
                logits: Tensor = see("class_logits", self.head(dropped))
                if wants(see, "class_probabilities"):
                    see("class_probabilities", logits.softmax(-1))
                return logits
            case _:
                if self.config.pooler:
                    see("pooled", self.pooled(x, segments))
                return x

    def hidden(
        self, ids: Ids, *, segments: Ids | None = None, types: Ids | None = None, see: See = unseen
    ) -> Vectors:
        """The last layer's vectors."""
        x = self._embedded(ids, segments=segments, types=types, see=see)
        return self._through(self.stacks[0], x, segments=segments, see=see)

    def pooled(self, x: Vectors, segments: Ids | None = None) -> Float[Tensor, "batch width"]:
        """One vector for each row: the pooler's, or the mean over its tokens."""
        if self.pooler is not None:
            return torch.tanh(self.pooler(x[:, 0]))
        if segments is None:
            return x.mean(1)
        kept = (segments >= 0).to(x.dtype)[..., None]
        return (x * kept).sum(1) / kept.sum(1).clamp(min=1)

    def transformed(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """What the head for tokens reads."""
        if self.transform is None or self.transform_norm is None:
            return x
        y: Tensor = self.transform_norm(ACTIVATIONS[self.config.activation](self.transform(x)))
        return y

    def loss(
        self,
        ids: Ids,
        targets: Int[Tensor, "batch picked"] | Int[Tensor, " batch"],
        *,
        places: Int[Tensor, "batch picked"] | None = None,
        segments: Ids | None = None,
        num_targets: Int[Tensor, ""] | int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats: of the tokens at `places`, which `ids` hide, or of each row's class."""
        x = self.hidden(ids, segments=segments)
        if places is not None:
            x = self.transformed(x.gather(1, places[..., None].expand(-1, -1, x.shape[-1])))
        else:
            x = dropout(self.pooled(x, segments), self.config.dropout, self.training)[:, None]
        return self.compare(
            x, targets, num_targets=num_targets, label_smoothing=label_smoothing, z_loss=z_loss
        )

    def _add_head(self, config: ModelConfig) -> None:
        d = config.width
        self.pooler = nn.Linear(d, d) if config.pooler else None
        self.transform = nn.Linear(d, d, bias=config.bias) if config.head_transform else None
        self.transform_norm = Norm(config) if config.head_transform else None
        if config.head == "tokens":
            super()._add_head(config)
        elif config.head == "classes":
            self.head = nn.Linear(d, config.num_classes)


class EncoderDecoder(Transformer):
    """Reads one text whole and writes another from left to right (Vaswani et al. 2017)."""

    def forward(self, source: Ids, ids: Ids, *, see: See = unseen, **segments: Any) -> Tensor:
        """Logits of the token after each of `ids`. `source_segments` and `segments` as in `loss`."""
        return self.write(ids, self.read(source, segments=segments.get("source_segments"), see=see),
                          segments=segments.get("segments"), see=see)  # fmt: skip

    def read(self, source: Ids, *, segments: Ids | None = None, see: See = unseen) -> Memory:
        """The encoder's part, done once."""
        encoder, decoder = self.stacks
        x = self._embedded(source, segments=segments, see=within(see, "encoder"))
        x = self._through(encoder, x, segments=segments, see=see)
        blocks = getattr(self, decoder.name)
        return Memory([block.cross.remember(x) for block in blocks], segments)

    def write(
        self, ids: Ids, memory: Memory, *, segments: Ids | None = None, cache: KeyValues | None = None,
        see: See = unseen,
    ) -> Float[Tensor, "batch position vocab"]:  # fmt: skip
        """The decoder's part; with a `cache`, `ids` are the tokens after those it holds."""
        x = self.hidden(ids, memory, segments=segments, cache=cache, see=see)
        return self._scores(x, see, ids)

    def hidden(
        self, ids: Ids, memory: Memory, *, segments: Ids | None = None, cache: KeyValues | None = None,
        see: See = unseen,
    ) -> Vectors:  # fmt: skip
        """The decoder's vectors after the final norm."""
        start = 0 if cache is None else cache.length
        x = self._embedded(ids, start=start, segments=segments, see=within(see, "decoder"))
        mask = None
        if memory.segments is not None:
            reading = ids.new_zeros(ids.shape) if segments is None else segments
            read = memory.segments[:, None, None, :]
            # a padded query may look anywhere: nothing is learned from it, and a row of -inf has no softmax
            mask = (reading[:, None, :, None] == read) | (reading < 0)[:, None, :, None]
        return self._through(
            self.stacks[1], x, segments=segments, cache=cache, memory=memory, memory_mask=mask, see=see
        )

    def loss(
        self,
        source: Ids,
        ids: Ids,
        targets: Ids,
        *,
        source_segments: Ids | None = None,
        segments: Ids | None = None,
        num_targets: Int[Tensor, ""] | int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats over the targets that are not -100.

        A row may hold several pairs: `source_segments` and `segments` number the pair of each position, -1 where
        padded, and neither attention nor positions reach from one pair into another.
        """
        hidden = self.hidden(ids, self.read(source, segments=source_segments), segments=segments)
        return self.compare(
            hidden, targets, num_targets=num_targets, label_smoothing=label_smoothing, z_loss=z_loss
        )


def count_parameters(model: nn.Module) -> int:
    """Distinct weights; a tied head is the embedding and counts once."""
    return sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())


_MEMBERS: dict[str, type[Transformer]] = {
    "decoder": Decoder,
    "encoder": Encoder,
    "encoder-decoder": EncoderDecoder,
}


def build(config: ModelConfig, *, seed: int = 0, device: str | torch.device | None = None) -> Transformer:
    """The model a config describes, its weights drawn from `seed`. On `meta` they have shapes and no numbers, for ranks
    that fill in their parts (`train/parallel/tensors.py`)."""
    if device is not None and torch.device(device).type == "meta":
        with torch.device("meta"):
            return _MEMBERS[config.kind](config, seed=seed)
    model = _MEMBERS[config.kind](config, seed=seed)
    return model if device is None else model.to(device)
