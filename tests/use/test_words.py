from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from glassformer.use.words import Words


def write(pieces: list[bytes], stop: list[str]) -> tuple[list[str], Words]:
    words = Words(stop)
    out = [words.add(piece) for piece in pieces]
    return [*out, words.add(b"", last=True)], words


@given(st.lists(st.binary(max_size=5)))
def test_pieces_of_any_bytes_join_to_the_decoded_whole(pieces: list[bytes]) -> None:
    out, words = write(pieces, [])
    assert "".join(out) == b"".join(pieces).decode("utf-8", "replace") == words.text


@given(st.text(), st.lists(st.integers(1, 3), min_size=1))
def test_characters_are_never_split(text: str, sizes: list[int]) -> None:
    text = text.encode("utf-8", "replace").decode()
    data, pieces = text.encode(), []
    while data:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(data[:size])
        data = data[size:]
    out, _ = write(pieces, [])
    assert "".join(out) == text
    assert "\ufffd" not in "".join(out) or "\ufffd" in text


@given(st.text("ab\n", max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3))
def test_text_ends_before_the_first_stop_string_however_it_arrives(text: str, stop: list[str]) -> None:
    first = min((at for at in map(text.find, stop) if at >= 0), default=None)
    out, words = write([letter.encode() for letter in text], stop)
    assert words.stopped == (first is not None)
    assert "".join(out) == words.text
    # Letter by letter, the stop string that is complete first ends the text, not the one that begins first.
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    assert words.text == (text[: min(at for end, at in ends if end == min(ends)[0])] if ends else text)


def test_what_may_become_a_stop_string_waits() -> None:
    words = Words(["\n\ndef"])
    assert words.add(b"x = 1\n\nde") == "x = 1"
    assert words.add(b"l y") == "\n\ndel y"
    assert words.add(b"\n\ndef") == ""
    assert words.stopped and words.text == "x = 1\n\ndel y"
