"""A token as tables and charts show it."""

from __future__ import annotations


def visible(token: str) -> str:
    """A token for a table or a label, with its spaces (as ·), line ends and tabs to be seen."""
    return repr(token)[1:-1].replace(" ", "·") or "(empty)"
