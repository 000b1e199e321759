"""How good translations are, against what people wrote. BLEU is sacrebleu's, always with its signature.

The signature says what was counted (case, tokenizer, smoothing, version); without it two BLEUs cannot be compared
(Post 2018, A Call for Clarity in Reporting BLEU Scores).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True, slots=True)
class Bleu:
    """Of a whole set of translations, from 0 to 100."""

    score: float
    signature: str

    def __str__(self) -> str:
        return f"BLEU {self.score:.2f} ({self.signature})"


def bleu(written: Sequence[str], wanted: Sequence[str], *, lowercase: bool = False) -> Bleu | None:
    """BLEU of translations against one reference each; None where sacrebleu is not installed."""
    if find_spec("sacrebleu") is None:
        return None
    from sacrebleu.metrics.bleu import BLEU

    metric: Any = BLEU(lowercase=lowercase)
    score = metric.corpus_score(list(written), [list(wanted)]).score
    return Bleu(float(score), str(metric.get_signature()))


def judge_translations(written: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
    """Every score by name: exact matches, and BLEU with its signature, cased and lower-cased, where sacrebleu is."""
    scores: dict[str, Any] = {"texts": len(wanted), "exact_match": exact_match(written, wanted)}
    for name, lowercase in (("bleu", False), ("bleu_lowercase", True)):
        if found := bleu(written, wanted, lowercase=lowercase):
            scores |= {name: found.score, f"{name}_signature": found.signature}
    return scores


def exact_match(written: Sequence[str], wanted: Sequence[str]) -> float:
    """The part that is just what was wanted."""
    return sum(a == b for a, b in zip(written, wanted, strict=True)) / max(1, len(wanted))
