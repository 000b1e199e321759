"""For all tests: no deadlines in hypothesis, since these machines are noisy; and the slowest files first, so that no
worker is left alone with one of them at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

SLOWEST = (
    "test_lab_induction", "test_ranks", "test_drill", "test_silent_ranks", "test_ranks_saving", "test_rehearsal",
    "test_elastic", "test_out_of_memory", "test_ranks_faults", "test_hanging", "test_resume", "test_tensor",
    "test_recipes", "test_silent", "test_saving",
)  # fmt: skip

settings.register_profile("noisy machine", deadline=None)
settings.load_profile("noisy machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files are dealt to workers whole, so that what a file sets up is set up once."""
    order = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(Path(item.path).stem, len(order)))
