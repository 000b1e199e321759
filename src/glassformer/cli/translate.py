"""`glassformer translate RUN TEXT`: one text in, another out."""

from __future__ import annotations

import sys
from pathlib import Path

import glassformer as gf
from glassformer.cli.model import COMPUTING, Computing
from glassformer.cli.terminal import document, facts, note
from glassformer.errors import UsageError


def translate(
    model: Path,
    /,
    *texts: str,
    file: Path | None = None,
    reference: Path | None = None,
    beam: int = 4,
    length_penalty: float = 0.6,
    more: int = 50,
    computing: Computing = COMPUTING,
    json: bool = False,
) -> None:
    """Translate texts, or a file of lines; with a reference, measure how well.

    Args:
        model: A run, or a model folder.
        texts: What to translate; each argument is a text of its own.
        file: A file of lines to translate as well; `-` reads standard input.
        reference: The right translations, line by line: prints BLEU, cased and lower-cased, with its signature.
        beam: Beginnings kept at every step; 1 is greedy search.
        length_penalty: How much longer texts are favoured (alpha of Wu et al. 2016).
        more: The most tokens a translation may be longer than its source.
        json: One JSON document instead of lines of text.
    """
    sources = [*texts, *(() if file is None else _lines(file))]
    if not sources:
        raise UsageError("There is nothing to translate.", do="Give a text in quotes, or --file FILE.")
    wanted = None if reference is None else _lines(reference)
    if wanted is not None and len(wanted) != len(sources):
        raise UsageError(
            f"{reference} has {len(wanted)} lines for {len(sources)} texts.", expected="A line for each text."
        )
    loaded = computing.open(model)
    found = gf.translate(loaded, sources, beam=beam, length_penalty=length_penalty, more=more)
    scores = {} if wanted is None else gf.judge_translations([one.text for one in found], wanted)
    if json:
        document({"translations": [one.to_dict() for one in found], **scores}, "translation")
        return
    for one in found:
        print(one.text)
    if scores:
        facts(scores)
        if "bleu" not in scores:
            note("BLEU needs sacrebleu: pip install 'glassformer[eval]'.")


def _lines(file: Path) -> list[str]:
    from glassformer.text.lines import rows

    if str(file) == "-":
        return [line.rstrip("\n") for line in sys.stdin]
    return [row[0].decode("utf-8", "replace") for row in rows(file, ("text",))]
