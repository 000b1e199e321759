"""One section of a page that a benchmark writes: everything from its heading to the next, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write(page: Path, heading: str, lines: Sequence[str]) -> None:
    """Put `lines` under `## heading`, in the place of what stands there, or at the end."""
    text = page.read_text(encoding="utf-8")
    start = text.find(f"## {heading}\n")
    before, after = (text.rstrip() + "\n\n", "") if start < 0 else (text[:start], text[start:])
    following = after.find("\n## ")
    rest = after[following + 1 :] if following >= 0 else ""
    body = f"## {heading}\n\n" + "\n".join(lines).strip() + "\n"
    page.write_text(before + body + (f"\n{rest}" if rest else ""), encoding="utf-8")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
