"""Tokens arrive in pieces of characters; readers want whole ones, and nothing of a stop string.

Bytes that are only the beginning of a character (UTF-8 spreads one over up to four) wait for the rest. So
does text that may be the beginning of a stop string. What is given out, put together, is the text.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Literal

Finish = Literal["length", "stop", "end"]


class Words:
    """The text of one request while it is written."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.text = ""
        """What was given out so far."""
        self.stopped = False
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def add(self, data: bytes, *, last: bool = False) -> str:
        """The piece of text that is certain now; with `last`, all that is left."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(data, last)
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        if found:
            self.stopped = True
            piece, self._held = self._held[: min(found)], ""
        else:
            sure = len(self._held) - (0 if last else self._unsure())
            piece, self._held = self._held[:sure], self._held[sure:]
        self.text += piece
        return piece

    def _unsure(self) -> int:
        """How many characters at the end may yet become a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        ends = (
            n for n in range(min(longest, len(self._held)), 0, -1) if self._may_become_stop(self._held[-n:])
        )
        return next(ends, 0)

    def _may_become_stop(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stop)
