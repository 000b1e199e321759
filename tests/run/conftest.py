"""What several tests of the run room start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from killed_saver import save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good checkpoints, of step 100 and of step 200."""
    folder = tmp_path / "checkpoints"
    save(folder, 100, keep=5)
    save(folder, 200, keep=5)
    return folder
