"""An explanation's steps as a print, as rows and as a document."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from glassformer.errors import UsageError
from glassformer.look.arithmetic import Line, Vector
from glassformer.look.explain_seen import Step

_NAMES = 24
"""Room for the names before the equal signs."""
_HOW_TO_READ = (
    "Each step has its place in the model at the right, the formula, the same with numbers, and the line of code. "
    "Long sums show their largest terms. Numbers are rounded to four digits only in print."
)


class Row(NamedTuple):
    """A line of the print, and what kind it is, for whoever colours it."""

    kind: str
    """section, title, sentence, formula, numbers, note, source or empty."""
    text: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The steps, in order, and what was chosen to be shown."""

    steps: tuple[Step, ...]
    choices: dict[str, Any]
    """layer, head, position, neuron, entry, the answer and the weight."""
    about: str = ""
    """What is asked, and what of it is shown."""

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __getitem__(self, title: str) -> Step:
        """The first step of this title."""
        for step in self.steps:
            if step.title == title:
                return step
        raise UsageError(
            f"There is no step {title!r}.", expected="; ".join(dict.fromkeys(s.title for s in self.steps))
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row for each line of numbers."""
        return [
            {
                "step": number,
                "title": step.title,
                "name": line.left,
                "numbers": line.numbers,
                "value": line.value if isinstance(line, Line) else None,
                "place": step.place,
                "source": str(step.sources[0]),
            }
            for number, step in enumerate(self.steps, start=1)
            for line in step.lines
        ]

    def to_dict(self) -> dict[str, Any]:
        return {"choices": self.choices, "steps": [step.to_dict() for step in self.steps]}

    def text(self, width: int = 100) -> str:
        """All of it, to be read."""
        return "\n".join(row.text for row in self.printed(width)) + "\n"

    def printed(self, width: int = 100) -> Iterator[Row]:
        """The same, line by line with the kind of each."""
        for text in textwrap.wrap(f"{self.about} {_HOW_TO_READ}", width):
            yield Row("sentence", text)
        yield Row("empty", "")
        section = ""
        for number, step in enumerate(self.steps, start=1):
            if step.section != section:
                section = step.section
                if number > 1:
                    yield Row("empty", "")
                yield Row("section", f"── {section} ".ljust(width, "─"))
            yield Row("empty", "")
            place = (step.place or "").rjust(width - 4 - len(step.title))
            yield Row("title", f"{number:2}  {step.title}{place}".rstrip())
            for text in textwrap.wrap(step.sentence, width - 4):
                yield Row("sentence", f"    {text}")
            for text in textwrap.wrap(step.formula, width - 6, break_on_hyphens=False):
                yield Row("formula", f"      {text}")
            yield from _numbers(step.lines, width)
            for source in step.sources:
                code = f"    {source!s:<25} {source.code.partition('  #')[0]}"
                yield Row("source", code if len(code) <= width else f"{code[: width - 1]}…")


def _numbers(lines: Sequence[Line | Vector], width: int) -> Iterator[Row]:
    """Equal signs one below the other; folded before a sign, never within a term."""
    names = max((len(line.left) for line in lines), default=0)
    indent = 8 + min(names, _NAMES) + 3
    for line in lines:
        first = f"        {line.left:<{min(names, _NAMES)}} = "
        if len(first) > indent:  # a long name stands alone
            yield Row("numbers", first.rstrip())
            first = " " * indent
        body = textwrap.wrap(
            _bound(line.right_text), width - indent, break_long_words=False, break_on_hyphens=False
        )
        *most, last = [
            (first if at == 0 else " " * indent) + part.replace("\xa0", " ") for at, part in enumerate(body)
        ]
        yield from (Row("numbers", part) for part in most)
        note = f"   ({line.note})" if line.note else ""
        if len(last) + len(note) <= width:
            yield Row("numbers", last + note)
        else:
            yield Row("numbers", last)
            yield Row("note", f"{' ' * indent}{note.strip()}")


def _bound(text: str) -> str:
    """The same with spaces that must not be folded at made hard."""
    for sign in (" × ", " / ", "e^(", " - ", "the other ", " terms: ", " entries"):
        text = text.replace(sign, sign.replace(" ", "\xa0"))
    return re.sub(r" ([+=]) ", " \\1\xa0", text)
