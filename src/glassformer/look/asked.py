"""What is asked about a text, in a person's words: one token of the vocabulary, one position of the row, one class.

token_id(reading, " Paris")     the id of the one token that this is
position_of(reading, -1)        the last position, counted from 0
class_number("spam", known)     the number of the class of this name
check_number("layer", 3, 2)     UsageError: there is no layer 3, the model has 0 to 1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glassformer.errors import ModelError, UsageError, nearest
from glassformer.look.reading import Reading
from glassformer.model.mlp import Network
from glassformer.model.transformer import Transformer


def scorer(reading: Reading, what: str) -> Transformer:
    """The model, which must score the tokens of its vocabulary, and read one text."""
    model = reading.model
    if isinstance(model, Network):
        raise UsageError(f"A plain network scores no tokens, so there is no {what} of it.")
    if model.config.head != "tokens":
        raise ModelError(
            f"The model's head is for {model.config.head}, so there is no {what} of it.",
            expected="Expected a head for tokens.",
            do="Use a decoder, an encoder-decoder, or an encoder with head 'tokens'.",
        )
    one_row(reading, what)
    return model


def one_row(reading: Reading, what: str) -> None:
    """Raises UsageError where several rows were given."""
    for rows in map(len, reading.inputs):
        if rows != 1:
            raise UsageError(f"{rows} rows were given; {what} is of one.", expected="One text at a time.")


def token_id(reading: Reading, token: str | int) -> int:
    """The id of one token. Raises UsageError for a text that is none or several, and says how it splits."""
    tokenizer, config = reading.tokenizer, reading.model.config
    if not isinstance(token, str):
        size: int = config.vocab_size  # type: ignore[union-attr] # `scorer` has refused plain networks
        if not 0 <= token < size:
            raise UsageError(f"There is no token {token}.", expected=f"The model knows 0 to {size - 1}.")
        return int(token)
    if tokenizer is None:
        raise UsageError("A bare model knows tokens as numbers.", do="Give an id, or what gf.load returned.")
    if token in tokenizer.specials:
        return tokenizer.specials[token]
    ids = [int(i) for i in tokenizer.encode(token)]
    if len(ids) == 1:
        return ids[0]
    parts = ", ".join(repr(word) for word in reading.words(ids))
    spaced = len(tokenizer.encode(f" {token}")) == 1
    raise UsageError(
        f"{token!r} is {f'{len(ids)} tokens: {parts}' if ids else 'no token'}.",
        expected="Expected exactly one token of the model's.",
        do=f"{f' {token}'!r}, with its space, is one." if spaced else "Give one of them." if ids else "",
    )


def position_of(reading: Reading, position: int) -> int:
    """The position counted from 0; negative ones count from the end."""
    length = reading.inputs[-1].shape[1]
    if not -length <= position < length:
        raise UsageError(
            f"There is no position {position}.",
            expected=f"The row has {length} tokens: 0 to {length - 1}, or -{length} to -1 from the end.",
        )
    return position % length


def check_number(what: str, number: int, count: int) -> None:
    """Whether there is this layer, head or neuron. Raises UsageError where there is not."""
    if not 0 <= number < count:
        has = f"{what}s 0 to {count - 1}" if count else f"no {what}"
        raise UsageError(f"There is no {what} {number}.", expected=f"This model has {has}.")


def class_names(reading: Reading) -> tuple[str, ...]:
    """What a classifier's classes are called; LABEL_0, LABEL_1, ... where nobody has named them."""
    return reading.outputs or tuple(f"LABEL_{at}" for at in range(reading.model.config.num_classes))  # type: ignore[union-attr] # a network has no classes


def class_number(target: Any, known: Sequence[str]) -> int:
    """A class given by its name or number."""
    if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(known):
        return target
    if target is None or str(target) not in known:
        raise UsageError(
            "No target was given." if target is None else f"There is no class {target!r}.",
            expected=f"The class that is right; {nearest(str(target), known)}",
        )
    return list(known).index(str(target))
