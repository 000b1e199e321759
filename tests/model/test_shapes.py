"""The shapes written in signatures are checked while other tests of this room run.

jaxtyping's import hook has to come before the modules it watches, and torch.compile cannot see through it, so
the checked tests run in a process of their own.
"""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WATCHED = ["attention", "block", "blockwise", "feedforward", "init", "loss", "norms", "positions", "stacks"]
CHECKED = ["attention", "block", "decoder", "feedforward", "loss", "norms", "places"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    hook = ",".join([*(f"glassformer.model.{name}" for name in WATCHED), "beartype.beartype"])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--jaxtyping-packages={hook}"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, cwd=HERE)


@pytest.mark.slow
def test_every_function_gets_and_gives_the_shapes_its_signature_names():
    result = run(*(f"test_{name}.py" for name in CHECKED))
    assert result.returncode == 0, result.stdout[-3000:]


def test_a_wrong_shape_is_caught(tmp_path):
    """The check itself works: ids without a batch axis stop at the signature of `hidden`."""
    wrong = tmp_path / "test_wrong.py"
    wrong.write_text(
        "import pytest, torch\n"
        "from jaxtyping import TypeCheckError\n"
        "from glassformer.model.config import ModelConfig\n"
        "from glassformer.model.stacks import Decoder\n"
        "def test_wrong():\n"
        "    model = Decoder(ModelConfig(vocab=5, width=8, heads=2, layers=1, context=4))\n"
        "    with pytest.raises(TypeCheckError, match='batch position'):\n"
        "        model(torch.zeros(4, dtype=torch.long))\n"
    )
    assert run(str(wrong)).returncode == 0
