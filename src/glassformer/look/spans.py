"""Which tokens a part of a text is in: every token that holds a byte of it.

    "The Eiffel Tower is"  ->  The| E|iffel| Tower| is      "Eiffel Tower" -> 1, 2, 3

WordPiece keeps no bytes; there the part is found by its own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from glassformer.errors import UsageError
from glassformer.look.reading import Reading


def span(reading: Reading, part: str | Sequence[int]) -> list[int]:
    """The positions of `part` in what is read (of an encoder-decoder, the source), where it stands first; positions
    are checked and handed back. Raises UsageError where it is not, with the text as tokens."""
    ids = [int(i) for i in reading.inputs[0][0]]
    if not isinstance(part, str):
        positions = sorted({int(at) for at in part})
        if not positions or not 0 <= positions[0] <= positions[-1] < len(ids):
            raise UsageError(
                f"The positions {positions} were given.", expected=f"Some of 0 to {len(ids) - 1}."
            )
        return positions
    tokenizer = reading.tokenizer
    if tokenizer is None:
        raise UsageError(f"A bare model reads ids, not {part!r}.", do="Give the positions of the part.")
    if tokenizer.kind == "wordpiece":
        own = tokenizer.encode(part).tolist()
        starts = [at for at in range(len(ids) - len(own) + 1) if own and ids[at : at + len(own)] == own]
        found = range(starts[0], starts[0] + len(own)) if starts else range(0)
    else:
        pieces = [tokenizer.decode_bytes([i]) for i in ids]
        sought = part.encode("utf-8", "surrogatepass")
        begin = b"".join(pieces).find(sought) if sought else -1
        ends = [sum(map(len, pieces[: at + 1])) for at in range(len(pieces))]
        inside = [
            at
            for at, end in enumerate(ends)
            if begin >= 0 and end > begin and end - len(pieces[at]) < begin + len(sought) and pieces[at]
        ]
        found = range(inside[0], inside[-1] + 1) if inside else range(0)
    if not found:
        raise UsageError(
            f"{part!r} is not in the text, which is read as {'|'.join(reading.words(ids))}",
            do="Write it as it stands there, capitals and spaces included.",
        )
    return list(found)
