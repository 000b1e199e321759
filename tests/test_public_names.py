"""`import glassformer as gf`: every public name, loaded when it is first used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import glassformer as gf


@pytest.mark.parametrize("name", gf.__all__)
def test_every_public_name_loads_and_is_documented(name: str) -> None:
    value = getattr(gf, name)
    assert callable(value) and value.__doc__
    assert name in dir(gf)


def test_type_checkers_see_the_same_names_from_the_same_rooms() -> None:
    tree = ast.parse(Path(gf.__file__).read_text(encoding="utf-8"))
    imports = [node for block in tree.body if isinstance(block, ast.If) for node in block.body]
    seen = {
        alias.name: node.module
        for node in imports
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == gf._HOME and sorted(seen) == sorted(gf.__all__)


def test_the_rooms_train_and_look_answer_calls_however_they_were_imported() -> None:
    code = (
        "import glassformer.train.config, glassformer.look, glassformer as gf; print(gf.train(fresh=1, x=2))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "unexpected keyword argument 'x'" in done.stderr and "train" in done.stderr
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        gf.trian  # noqa: B018 # the look-up is the test


@pytest.mark.parametrize(
    "what", ["import glassformer", "from glassformer.cli.main import main; main(['--help'])"]
)
def test_neither_the_import_nor_help_loads_torch_numpy_or_pydantic(what: str) -> None:
    heavy = "{'torch', 'numpy', 'pydantic', 'tokenizers'} & set(sys.modules)"
    code = f"import sys\n{what}\nassert not {heavy}, {heavy}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["-c", "import glassformer"], ["-m", "glassformer", "--help"]])
def test_the_import_and_help_use_less_than_a_quarter_second_of_processor_time(arguments: list[str]) -> None:
    """Once of several times: on a busy machine the clock, and even processor time, measure the others too."""
    code = (
        "import resource, subprocess, sys\n"
        f"subprocess.run([sys.executable, *{arguments!r}], stdout=subprocess.DEVNULL, check=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)"
    )
    used = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(25)
    )
    assert any(float(done.stdout) < 0.25 for done in used)
