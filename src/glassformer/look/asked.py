"""What is asked about a text: one token of the vocabulary, one position of the row, in a person's words.

token_id(reading, " Paris")     the id of the one token that this is
position_of(reading, -1)        the last position, counted from 0
"""

from __future__ import annotations

from glassformer.errors import ModelError, UsageError
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
    if (rows := len(reading.inputs[-1])) > 1:
        raise UsageError(f"{rows} rows were given; {what} is of one.", do="Give them one by one.")
    return model


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
