"""Where our own code computes something: file, line and the line itself, found when asked, so never stale.

    line_of("model/attention.py", "Attention.explicit", 'see("dots"')
    -> model/attention.py:115   dots = see("dots", q @ k.transpose(-2, -1))

The file is read and parsed as text: nothing of it is imported or run. A fragment that is not on exactly one line
of the function is a fault of whoever asks, and a test asks for every one of them.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Source:
    """One line of glassformer's code."""

    path: str
    """Inside the package, `model/attention.py`."""
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@cache
def line_of(path: str, function: str, fragment: str) -> Source:
    """The line of `function` (`Class.method` for a method) that holds `fragment`."""
    lines = (_PACKAGE / path).read_text("utf-8").splitlines()
    node: ast.AST = ast.parse("\n".join(lines))
    for name in function.split("."):
        node = next(
            each
            for each in ast.iter_child_nodes(node)
            if isinstance(each, ast.FunctionDef | ast.ClassDef) and each.name == name
        )
    assert isinstance(node, ast.FunctionDef) and node.end_lineno is not None, function
    found = [at for at in range(node.lineno, node.end_lineno + 1) if fragment in lines[at - 1]]
    assert len(found) == 1, f"{path} {function} has {fragment!r} on the lines {found}"
    return Source(path, found[0], lines[found[0] - 1].strip())
