"""Every error glassformer raises on purpose, for the person who can mend it.

    GlassformerError                exit code 1
    ├── UsageError                  2   the request cannot be understood
    │   └── ConfigError             2   a recipe or flag; lists all its problems at once
    ├── TextError                   1   a file, a document, an encoding
    ├── TokenizerError              1   a tokenizer, or ids that do not fit one
    ├── ModelError                  1   weights that do not fit a model, or a model asked what it cannot do
    ├── RunError                    1   a run folder
    │   ├── RunLocked               1   another process writes in it
    │   ├── CrashLoop               1   it crashed again and again at the same place
    │   └── CheckpointError         3   a checkpoint failed its check
    ├── OutOfMemory                 1   a step takes more memory than there is
    └── Stopped                     75  stopped early, everything saved; the same command goes on

Each message says what was given, what was expected and what to do next. The exit code is what
`glassformer` returns to the shell.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class GlassformerError(Exception):
    """What was given, what was expected, what to do next: three sentences, joined for display."""

    exit_code = 1

    def __init__(self, what: str, *, expected: str = "", do: str = "") -> None:
        self.what, self.expected, self.do = what, expected, do
        super().__init__(" ".join(sentence for sentence in (what, expected, do) if sentence))


class UsageError(GlassformerError):
    exit_code = 2


class ConfigError(UsageError):
    """All problems of one recipe, one a line."""

    def __init__(self, what: str, problems: Sequence[str], *, do: str = "") -> None:
        self.problems = list(problems)
        super().__init__(what, do=do)
        lines = [what, *(f"  - {problem}" for problem in problems), do]
        self.args = ("\n".join(lines).rstrip("\n"),)


class TextError(GlassformerError):
    pass


class TokenizerError(GlassformerError):
    pass


class ModelError(GlassformerError):
    pass


class RunError(GlassformerError):
    pass


class RunLocked(RunError):
    pass


class CrashLoop(RunError):
    pass


class CheckpointError(RunError):
    exit_code = 3


class OutOfMemory(GlassformerError):
    """What a step takes is more than there is; everything saved stays."""


class Stopped(GlassformerError):
    exit_code = 75


def nearest(name: str, legal: Iterable[str], count: int = 3) -> str:
    """A phrase naming the legal names closest to `name`, in any case, or all of them when there are few."""
    legal = sorted(legal)
    lowered = {word.lower(): word for word in legal}
    close = difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(f"'{lowered[word]}'" for word in close) + "?"
    return "it can be " + ", ".join(f"'{word}'" for word in legal[:20]) + (" ..." if len(legal) > 20 else "")
