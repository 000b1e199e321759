"""For all tests: no deadlines in hypothesis, since these machines are noisy; and the slowest files first, so that no
worker is left alone with one of them at the end.

What takes a minute or more alone is sampled: one of the tests marked `sampled` runs each day, all of them with
TEST_SEED=all. The seed is printed at the top, and TEST_SEED=<it> runs the same ones again.
"""

from __future__ import annotations

import os
import time
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


def pytest_configure() -> None:
    os.environ.setdefault("TEST_SEED", str(int(time.time()) // 86400))  # the workers of one run have the same


def pytest_report_header() -> str:
    return f"TEST_SEED={os.environ['TEST_SEED']}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files are dealt to workers whole, so that what a file sets up is set up once."""
    seed = os.environ["TEST_SEED"]
    sampled = sorted(
        (item for item in items if item.get_closest_marker("sampled")), key=lambda item: item.nodeid
    )
    for place, item in enumerate(sampled):
        if seed != "all" and place != int(seed) % len(sampled):
            item.add_marker(pytest.mark.skip(reason=f"not drawn by TEST_SEED={seed}"))
    order = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(Path(item.path).stem, len(order)))
